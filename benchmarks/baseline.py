"""What a user would write: `datasets.map` with the tokenizer's `apply_chat_template`, saved to disk.

`python -m benchmarks.baseline TOKENIZER WORKERS OUT FILE...`. It keeps ids alone: no masks, no checks, no provenance.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

_ROLES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool"}


def messages_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A row of the corpus as chat messages."""
    if "instruction" in row:
        asked = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
        return [{"role": "user", "content": asked}, {"role": "assistant", "content": row["output"]}]
    messages: list[dict[str, Any]] = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    for turn in row["conversations"]:
        role = _ROLES.get(turn["from"], turn["from"])
        if turn["from"] == "function_call":
            call = {"type": "function", "function": json.loads(turn["value"])}
            messages.append({"role": role, "content": "", "tool_calls": [call]})
        else:
            messages.append({"role": role, "content": turn["value"]})
    return messages


def main() -> None:
    """Tokenize the files."""
    from datasets import concatenate_datasets, load_dataset
    from transformers import AutoTokenizer

    folder, workers, out, *files = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def encode(row: dict[str, Any]) -> dict[str, Any]:
        tools = json.loads(row["tools"]) if row.get("tools") else None
        ids = tokenizer.apply_chat_template(messages_of(row), tools=tools, tokenize=True, return_dict=False)
        return {"input_ids": ids, "labels": ids}

    parts = []
    for file in files:
        data = load_dataset("json", data_files=file, split="train", cache_dir=str(Path(out) / "cache"))
        parts.append(data.map(encode, num_proc=int(workers), remove_columns=data.column_names))
    concatenate_datasets(parts).shuffle(seed=0).save_to_disk(str(Path(out) / "set"), num_proc=int(workers))


if __name__ == "__main__":
    main()
