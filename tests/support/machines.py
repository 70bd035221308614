"""The page of settings for machines: its tables, and their figures by the estimate of memory.

`python -m tests.support.machines` writes the figures into the tables, for the settings that stand there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from trainer.models.tune import count
from trainer.run import estimate
from trainer.run.estimate import ModelShape, Use
from trainer.run.probe import LARGE

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "machines.md"
GIB = 2**30
PARTS = ("weights", "gathered", "optimizer", "gradients", "activations", "attention", "logits", "all")
Row = dict[str, str]


def sections(text: str) -> Iterator[tuple[str, str]]:
    """Yield (heading, text) of each section of a page."""
    yield from re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)


def tables(text: str) -> Iterator[list[Row]]:
    """Yield the tables of a text, as rows by the heads of their columns."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        head, _, *lines = [_cells(line) for line in block.splitlines()]
        yield [dict(zip([name.strip("`") for name in head], line, strict=True)) for line in lines]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip()[1:-1].split("|")]


def number(text: str) -> int:
    """The number that a text means."""
    return int(text.replace(",", ""))


def found(column: str, text: str) -> list[tuple[str, Row]]:
    """(heading, row) of all tables with a column of this name."""
    return [
        (h, row) for h, section in sections(text) for table in tables(section) if column in table[0] for row in table
    ]


@functools.cache
def configuration(name: str) -> Qwen2Config:
    """The configuration of a model of the page."""
    row = next(row for _, row in found("layers", PAGE.read_text("utf-8")) if row["model"] == name)
    return Qwen2Config(
        vocab_size=number(row["vocabulary"]), hidden_size=number(row["hidden"]),
        intermediate_size=number(row["intermediate"]), num_hidden_layers=number(row["layers"]),
        num_attention_heads=number(row["heads"]), num_key_value_heads=number(row["key/value heads"]),
        tie_word_embeddings=row["tied"] == "yes",
    )  # fmt: skip


def adapted(model: Any, rank: int) -> Any:
    """The model with LoRA on all linear layers but the head."""
    chosen = LoraConfig(r=rank, target_modules="all-linear", exclude_modules="lm_head", task_type="CAUSAL_LM")
    return get_peft_model(model, chosen)


@functools.cache
def counted(name: str, rank: int = 0) -> tuple[int, ...]:
    """(parameters, trained ones, those of linear layers but the head) of a model, with LoRA of a rank above 0.

    Each layer adds the same: models with one and with two are made, without memory.
    """
    config = configuration(name)
    one, two = (_counted(Qwen2Config(**{**config.to_dict(), **_layers(n)}), rank) for n in (1, 2))
    return tuple(a + (config.num_hidden_layers - 1) * (b - a) for a, b in zip(one, two, strict=True))


def _layers(number: int) -> dict[str, Any]:
    return {"num_hidden_layers": number, "layer_types": ["full_attention"] * number}


def _counted(config: Qwen2Config, rank: int) -> tuple[int, int, int]:
    with torch.device("meta"):
        model: Any = Qwen2ForCausalLM(config)
        head = model.get_output_embeddings()
        layers = [one for one in model.modules() if isinstance(one, torch.nn.Linear) and one is not head]
        linear = sum(layer.weight.numel() for layer in layers)
        return *count(adapted(model, rank) if rank else model), linear


def figures(heading: str, row: Row, text: str) -> dict[str, str]:
    """What the columns of a row of settings say, by the settings in it and by the page's text."""
    (rank,) = re.findall(r"`lora: \{r: (\d+)\}`", text)
    (a_step,) = re.findall(r"A step trains ([\d,]+) tokens", text)
    cards, size = re.findall(r"(One|Eight) .*?(\d+) GB", heading)[0]
    processes, stage = {"One": 1, "Eight": 8}[cards], int(row["zero_stage"])
    parameters, trained, linear = counted(row["model"], int(rank) if row["tuning"] == "lora" else 0)
    packs, micro = number(row["packs"]), number(row["micro"])
    accumulation = number(a_step) // (packs * micro * processes)
    bits = row.get("bits")
    use = Use(
        parameters=parameters, trained=trained, tokens=packs * micro, longest=packs, tuning=row["tuning"],
        quantized=linear if bits else 0, bits=estimate.BITS[int(bits)] if bits else 16,
        processes=processes, zero_stage=stage, bucket=estimate.BUCKET if stage == 3 else min(estimate.BUCKET, trained),
        accumulates=accumulation > 1, recomputed=int(row["recomputed"] == "yes"), masked=True,
        whole_logits=stage == 3 or 4 * packs * micro * configuration(row["model"]).vocab_size < LARGE,
        optimizer_on_host="host" in heading,
    )  # fmt: skip
    memory = estimate.estimate(ModelShape.of(configuration(row["model"])), use)
    said = {part: f"{memory[part] / GIB:.1f}" for part in PARTS}
    left = f"{int(size) - memory['all'] / GIB:.1f}"
    return said | {"accumulation": str(accumulation), "left": left}


def rewrite(text: str) -> str:
    """The page with the figures of its tables computed."""
    for heading, section in sections(text):
        lines = section.split("\n")
        heads: list[str] = []
        for i, line in enumerate(lines):
            if not line.startswith("|"):
                heads = []
            elif not heads:
                heads = [name.strip("`") for name in _cells(line)]
            elif "zero_stage" in heads and "---" not in line:
                row = dict(zip(heads, _cells(line), strict=True))
                row |= {name: value for name, value in figures(heading, row, text).items() if name in row}
                lines[i] = "| " + " | ".join(row.values()).replace("|  |", "| |") + " |"
        text = text.replace(section, "\n".join(lines), 1)
    return text


if __name__ == "__main__":
    PAGE.write_text(rewrite(PAGE.read_text("utf-8")), "utf-8")
