"""Run with LLaMA-Factory's Python: what its own loader, collator and model make of converted sets, as JSON."""

import json
import sys
import types

import peft  # noqa: F401  # it looks for torchaudio in its own way, before there is one
import torch

sys.modules["torchaudio"] = types.ModuleType("torchaudio")  # its wheel needs CUDA; nothing here is sound

from llamafactory.data import (  # noqa: E402
    SFTDataCollatorWith4DAttentionMask,
    get_dataset,
    get_template_and_fix_tokenizer,
)
from llamafactory.hparams import get_train_args  # noqa: E402
from llamafactory.model import load_model, load_tokenizer  # noqa: E402

STAGES = {"sft": "sft", "packed": "sft", "pretrain": "sft", "preference": "rm", "kto": "kto"}
COLUMNS = {
    "preference": ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels"),
    "kto": ("input_ids", "labels", "kto_tags"),
}
folder, model_folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
found = {}
for name, stage in STAGES.items():
    packed = {"neat_packing": True, "packing": True, "cutoff_len": 64} if name == "packed" else {}
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(
        {
            "stage": stage, "do_train": True, "model_name_or_path": model_folder, "finetuning_type": "full",
            "template": "qwen", "dataset": "none", "tokenized_path": f"{folder}/{name}",
            "output_dir": f"{folder}/run-{name}", "report_to": "none", "use_cpu": True,
            "flash_attn": "disabled", **packed,
        }
    )  # fmt: skip
    tokenizer = load_tokenizer(model_args)
    template = get_template_and_fix_tokenizer(tokenizer["tokenizer"], data_args)
    data = get_dataset(template, model_args, data_args, training_args, stage=stage, **tokenizer)["train_dataset"]
    columns = COLUMNS.get(name, ("input_ids", "labels"))
    found[name] = {"rows": [[row[column] for column in columns] for row in data]}
    if name in COLUMNS:
        continue
    model = load_model(tokenizer["tokenizer"], model_args, finetuning_args, is_trainable=False).float().eval()
    collate = SFTDataCollatorWith4DAttentionMask(
        template=template, model=model, label_pad_token_id=-100, block_diag_attn=model_args.block_diag_attn,
        neat_packing=data_args.neat_packing, attn_implementation="eager", compute_dtype=torch.float32, **tokenizer,
    )  # fmt: skip
    with torch.no_grad():
        found[name]["loss"] = float(model(**collate([data[i] for i in range(count)])).loss)
print(json.dumps(found))
