"""README.md of a conversion: for people, and for the library datasets, whose front matter names the splits."""

from __future__ import annotations

from typing import Any

from compiler.convert.base import Target
from schemas.manifest import Manifest


def card(manifest: Manifest, target: Target, result: dict[str, Any]) -> str:
    """The text."""
    pattern = target.file.replace("{number:05d}", "*")
    lines = []
    if pattern.endswith((".parquet", ".jsonl")):
        lines = ["---", "configs:", "- config_name: default", "  data_files:"]
        for split in result["splits"]:
            lines += [f"  - split: {split}", f"    path: {pattern.format(split=split)}"]
        lines += ["---", ""]
    what = "packs" if result["packed"] else "rows"
    lines += [
        f"# A {result['kind']} set for {target.readers}", "",
        f"Written by `cli convert --to {target.name}` from the set `{result['set']}`.", "",
        f"| split | {what} | files |", "|---|---|---|",
        *(f"| {name} | {one['rows']:,} | {one['files']} |" for name, one in result["splits"].items()), "",
        f"To use it: `{target.use}`.", "",
        _made_for(manifest, target), "",
        f"Datasets: {', '.join(entry['name'] for entry in manifest['datasets'])}.",
    ]  # fmt: skip
    if "packing" in manifest and result["packed"]:
        lines += ["", f"Packs have at most {manifest['packing']['length']:,} tokens."]
    if result["dropped_weights"]:
        lines += ["", f"Loss weights of {result['dropped_weights']:,} {what} were dropped (`--drop-weights`)."]
    return "\n".join(lines) + "\n"


def _made_for(manifest: Manifest, target: Target) -> str:
    if target.from_sources:
        return 'Each line is a conversation in OpenAI\'s form. A reply with `"weight": 0` is context, and not trained.'
    return (
        f"Tokenizer: digest `{manifest['tokenizer']['digest']}`. "
        f"Chat template: `{manifest['template']['name']}`, digest "
        f"`{manifest['template']['digest']}`. Train a model that has both."
    )
