"""The trainers that benchmarks/train.py compares with `cli train`, each in a process of its own.

    python -m benchmarks.train_contenders plain|trainer|trl TASK.json

A task names the model, the rows in their order of training, and the settings; the loss of each step is a line of its
file `log`, as in that of `cli train`. Nothing of this project is used here.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

Task = dict[str, Any]
Row = dict[str, Any]


def main() -> None:
    """Train as a task says."""
    name, path = sys.argv[1:]
    task = json.loads(Path(path).read_text())
    CONTENDERS[name](task, json.loads(Path(task["rows"]).read_text()))


def plain(task: Task, rows: list[Row]) -> None:
    """The loop that one writes with torch, PEFT and Transformers."""
    model = adapted(task)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=task["learning_rate"], weight_decay=0.0)
    micro = task["micro"]
    for first in range(0, len(rows), micro * task["accumulation"]):
        step = rows[first : first + micro * task["accumulation"]]
        batches = [batch_of(step[i : i + micro], task) for i in range(0, len(step), micro)]
        count = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        total = 0.0
        for batch in batches:
            loss = model(**batch, num_items_in_batch=count, use_cache=False).loss
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        log(task, total)
    model.save_pretrained(task["out"])


def log(task: Task, loss: float) -> None:
    """Add the line of a step."""
    with Path(task["log"]).open("a") as file:
        file.write(json.dumps({"loss": loss}) + "\n")


def adapted(task: Task) -> Any:
    """The model with a LoRA, whose weights the seed decides."""
    torch.manual_seed(task["seed"])
    auto: Any = transformers.AutoModelForCausalLM
    model = auto.from_pretrained(task["model"], dtype=torch.float32)
    return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **task["lora"])).train()


def batch_of(rows: list[Row], task: Task) -> dict[str, torch.Tensor]:
    """Rows padded on the right, or a pack, whose positions begin at 0 in every sequence."""
    ids, labels = ([torch.tensor(row[name]) for row in rows] for name in ("input_ids", "labels"))
    pad = torch.nn.utils.rnn.pad_sequence
    batch = {"input_ids": pad(ids, True, task["pad"]), "labels": pad(labels, True, -100)}
    if "seq_lens" in rows[0]:
        [pack] = rows
        return batch | {"position_ids": torch.tensor([positions(pack)])}
    return batch | {"attention_mask": pad([torch.ones_like(one) for one in ids], True, 0)}


def positions(pack: Row) -> list[int]:
    """The place of each token in its sequence."""
    return [place for length in pack["seq_lens"] for place in range(length)]


def trainer(task: Task, rows: list[Row]) -> None:
    """Transformers' Trainer: packs tell where sequences begin by position_ids, rows are padded by its collator."""
    model = adapted(task)
    packed = "seq_lens" in rows[0]
    data = [
        {name: row[name] for name in ("input_ids", "labels")} | ({"position_ids": positions(row)} if packed else {})
        for row in rows
    ]
    collate: Any = transformers.default_data_collator
    if not packed:
        tokenizer = transformers.AutoTokenizer.from_pretrained(task["model"], padding_side="right")
        collate = transformers.DataCollatorForSeq2Seq(tokenizer)
    made: Any = transformers.Trainer(
        model, transformers.TrainingArguments(**arguments(task)), data_collator=collate, train_dataset=data,
        callbacks=[Logged(task)],
    )  # fmt: skip
    made.train()
    made.save_model(task["out"])


def trl(task: Task, rows: list[Row]) -> None:
    """TRL's SFTTrainer: packs are those that its own packing makes, with `seq_lengths`; the collator is its own."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    packed = "seq_lens" in rows[0]
    names = {"input_ids": "input_ids", "labels": "labels"} | ({"seq_lengths": "seq_lens"} if packed else {})
    data = datasets.Dataset.from_list([{name: row[ours] for name, ours in names.items()} for row in rows])
    settings = SFTConfig(**arguments(task), max_length=None, padding_free=packed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(task["model"])
    made: Any = SFTTrainer(
        adapted(task), args=settings, train_dataset=data, processing_class=tokenizer, callbacks=[Logged(task)]
    )
    made.train()
    made.save_model(task["out"])


def arguments(task: Task) -> dict[str, Any]:
    """What both classes take."""
    return {
        "output_dir": task["out"], "per_device_train_batch_size": task["micro"],
        "gradient_accumulation_steps": task["accumulation"], "max_steps": task["steps"],
        "learning_rate": task["learning_rate"], "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential", "logging_steps": 1, "save_strategy": "no", "report_to": "none",
        "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "disable_tqdm": True, "seed": task["seed"],
    }  # fmt: skip


class Logged(transformers.TrainerCallback):
    """The losses, as they are logged."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        """Add the line of a step; the last line is of the whole run, and has no loss of a step."""
        if "loss" in logs:
            log(self.task, logs["loss"])


CONTENDERS = {"plain": plain, "trainer": trainer, "trl": trl}

if __name__ == "__main__":
    main()
