"""A tiny model that knows a few ReAct conversations by heart, with the set it was trained on.

What it must say is known, so tests of export, chat and prediction can check it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from schemas import checkpoint as files
from schemas.reader import CompiledSet
from tests.support.command import runner
from tests.support.tiny import Row, padded, qwen2
from trainer.models.digest import digest_of
from trainer.objectives import SFT

SYSTEM = "You may call fire_recognition and fire_alert."
FIRE = (
    "Thought: look at it\nAction: fire_recognition\nAction Input: {'image': '/tmp/1.jpg'}\nObservation:",
    " [{'on_fire': True}]\n",
    "Thought: there is one\nFinal Answer: 图片中有着火点。",
)
CHATS: list[list[tuple[str, str]]] = [
    [
        ("system", SYSTEM), ("user", "Is /tmp/1.jpg on fire?"), ("assistant", "".join(FIRE)),
        ("user", "谢谢"), ("assistant", "不客气。"),
    ],
    [("user", "2 + 2?"), ("assistant", "4, of course.")],
    [("user", "你是谁?"), ("assistant", "我是一个小模型。")],
]  # fmt: skip


@dataclass(frozen=True)
class Agent:
    """A compiled set, its manifest and rows, and the folder of the model."""

    set: Path
    manifest: dict[str, Any]
    rows: list[Row]
    model: Path


def compile_set(folder: Path, *options: str, chats: list[list[tuple[str, str]]] = CHATS) -> Path:
    from cli import main

    source = folder / "chats.jsonl"
    lines = [json.dumps({"conversations": [{"from": a, "value": b} for a, b in chat]}) for chat in chats]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    arguments = ["compile", str(source), "--format", "ms_agent", "-o", str(folder / "set")]
    arguments += ["--cache", str(folder / "cache"), "--workers", "1", *options]
    done = runner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "set"


def learn(model: nn.Module, rows: list[Row], steps: int, rate: float, until: float = 0.05) -> float:
    """Train on all rows at once until the loss is below `until`. Returns the loss."""
    batch, loss = padded(rows), float("inf")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    for _ in range(steps):
        parts = SFT.loss(model, batch)
        value = parts.loss_sum / parts.weight_sum
        loss = value.item()
        if loss < until:
            break
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    return loss


def make(folder: Path, chats: list[list[tuple[str, str]]] = CHATS, until: float = 0.05) -> Agent:
    compiled = compile_set(folder, chats=chats)
    opened = CompiledSet.open(compiled)
    rows = list(opened.rows("train"))
    model = qwen2(8005, eos_token_id=8000)
    assert learn(model, rows, 200, 1e-2, until) < until
    model.generation_config.repetition_penalty = 1.0
    model.save_pretrained(folder / "model")
    return Agent(compiled, opened.manifest, rows, folder / "model")


def checkpoint(agent: Agent, folder: Path, model: nn.Module, *, base: Path | None = None, step: int = 7) -> Path:
    """Write a checkpoint as the trainer does: the model's or adapter's own files, run.json, and the mark last."""
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    model.save_pretrained(path)  # type: ignore[operator]
    run = {
        "made_by": files.MADE_BY,
        "run": f"{step:032x}",
        "step": step,
        "steps": step,
        "step_rows": 1,
        "steps_per_epoch": 1,
        "tokens": 1,
        "world": 1,
        "resumes": 0,
        "replaces": 0,
        "config": {},
        "base_model": str(base or agent.model),
        "base_digest": digest_of(base or agent.model) if (base or agent.model).exists() else digest_of(agent.model),
        "model": {"model": "maker/tiny", "revision": None},
        "set": agent.manifest["content_digest"],
        "provenance": {"out": str(agent.set)},
    }
    (path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    (path / "deepspeed").mkdir()
    return seal(path)


def seal(path: Path) -> Path:
    """Write a checkpoint's COMPLETE again, after files of it were changed: as a forger would."""
    run = json.loads((path / "run.json").read_text(encoding="utf-8"))["run"]
    entries = {name: files.digest(path / name) for name in files.files(path)}
    (path / files.COMPLETE).write_bytes(files.sealed(run, entries))
    return path
