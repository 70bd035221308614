"""Run with axolotl's Python: what its own loader and collator make of converted sets, as JSON."""

import json
import sys

import torch
import transformers
from axolotl.utils.collators import DataCollatorForSeq2Seq
from axolotl.utils.config import normalize_config, validate_config
from axolotl.utils.data import prepare_datasets
from axolotl.utils.dict import DictDefault


def main() -> None:
    """Read the sets and print what they are."""
    folder, model_folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    tokenizer.pad_token = tokenizer.eos_token
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32).eval()
    found = {}
    for name in ("sft", "pretrain"):
        asked = DictDefault(
            {
                "base_model": model_folder, "datasets": [{"path": f"{folder}/{name}", "type": None, "split": "train"}],
                "sequence_len": 512, "micro_batch_size": count, "gradient_accumulation_steps": 1, "num_epochs": 1,
                "learning_rate": 1e-4, "val_set_size": 0, "output_dir": f"{folder}/run-{name}",
                "dataset_prepared_path": f"{folder}/prepared-{name}", "shuffle_merged_datasets": False,
            }
        )  # fmt: skip
        settings = validate_config(
            asked,
            capabilities={"bf16": False, "n_gpu": 1, "compute_capability": "sm_80"},
            env_capabilities={"torch_version": "2.13.0"},
        )
        normalize_config(settings)
        rows = prepare_datasets(settings, tokenizer)[0]
        batch = DataCollatorForSeq2Seq(tokenizer, model=model)([rows[i] for i in range(count)])
        with torch.no_grad():
            loss = float(model(**{key: batch[key] for key in ("input_ids", "attention_mask", "labels")}).loss)
        found[name] = {"rows": [[row["input_ids"], row["labels"]] for row in rows], "loss": loss}
    print(json.dumps(found))


if __name__ == "__main__":  # its loader starts processes, which import this file
    main()
