"""`python tools/try_peers.py [NAME ...]`: converted sets, read by the loaders of the trainers they are for.

Each peer is installed in an environment of its own. It loads what `cli convert` wrote with its own code, and computes
a loss with its own collator; ids, labels and loss must be those of the set. What a peer's script prints is compared
here, so nothing of this project is imported beside the peer's libraries. Its last result is in docs/handing-on.md.
Needs the extras `train` and `test`; TRL is tried by the tests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

import compiler
import trainer
from tests.support.trained import compile_set, rows, save_model, write

HERE = Path(__file__).resolve().parent
COUNT = 4
"""Rows of a batch whose loss is compared."""
TORCH = ["torch==2.13.0"]


@dataclass(frozen=True)
class Peer:
    """A trainer: what pip is told, and the layout that it reads."""

    requirement: str
    needs: list[str]
    """What its loader imports: all that it asks for would be several gigabytes of kernels and web servers."""
    to: str


PEERS = {
    "llamafactory": Peer(
        "llamafactory==0.9.5",
        [
            "transformers<=5.6.0,>=4.55", "datasets<=4.0.0", "peft<=0.18.1,>=0.18.0", "trl<=0.24.0,>=0.18",
            "accelerate<=1.11.0", "torchdata<=0.11.0", "tyro<0.9.0", "av<=16.0.0", "omegaconf", "pandas",
            "sentencepiece", "tiktoken", "protobuf", "einops", "scipy", "matplotlib", "modelscope", "hf-transfer",
            "fire", "fastapi", "uvicorn", "sse-starlette",
        ],
        "llamafactory",
    ),
    "axolotl": Peer(
        "axolotl==0.19.0 axolotl-contribs-lgpl==0.0.7 axolotl-contribs-mit==0.0.6",
        [
            "transformers==5.16.1", "datasets==4.8.4", "peft==0.20.0", "trl==1.9.0", "accelerate==1.13.0",
            "pydantic==2.12.5", "addict", "pyyaml", "requests", "colorama", "python-dotenv", "posthog", "numba",
            "pillow",
        ],
        "hf",
    ),
}  # fmt: skip


def make(folder: Path) -> dict[str, Path]:
    """Compile a set of each kind."""
    words = ["red", "green", "blue", "seven", "eleven", "moon", "river"]
    said = [[{k: m[k] for k in ("role", "content")} for m in row["messages"]] for row in rows(12, 3)]
    sources: dict[str, list[dict[str, Any]]] = {
        "sft": [{"messages": one} for one in said],
        "pretrain": [{"text": f"{' '.join(words[: i % 5 + 1])} and so on"} for i in range(12)],
        "preference": [{"instruction": f"say {w}", "chosen": f"{w} it is", "rejected": "no"} for w in words],
        "kto": [{"instruction": f"say {w}", "output": w, "kto_tag": i % 3 != 1} for i, w in enumerate(words)],
    }
    made = {
        name: compile_set(folder / name, write(folder / f"{name}.jsonl", lines), "--kind", name)
        for name, lines in sources.items()
    }
    return made | {"packed": compile_set(folder / "packed", folder / "sft.jsonl", "--pack", 64)}


def loss(out: Path, model: Any) -> float:
    """Our loss of the first rows of a set."""
    data = trainer.dataset(out, batch_size=COUNT)
    with torch.no_grad():
        parts = data.loss(model, data.collate([data.rows.row(i) for i in range(COUNT)]))
    return float(parts.loss_sum / parts.weight_sum)


def differences(name: str, out: Path, found: dict[str, Any], model: Any) -> Iterator[str]:
    """What a peer read otherwise."""
    columns = {
        "preference": ("input_ids", "labels", "rejected_input_ids", "rejected_labels"),
        "kto": ("input_ids", "labels", "desirable"),
    }.get(name, ("input_ids", "labels"))
    wanted = [[row[column] for column in columns] for row in compiler.open(out).rows("train")]
    if len(wanted) != len(found["rows"]):
        yield f"{name}: {len(found['rows'])} rows for {len(wanted)}"
    for i, (ours, theirs) in enumerate(zip(wanted, found["rows"], strict=False)):
        if name == "packed":  # padded to one length
            theirs = [one[: len(ours[0])] for one in theirs]
        if ours != theirs:
            yield f"{name}: row {i} is {theirs}, and in the set {ours}"
    if "loss" in found and abs(found["loss"] - loss(out, model)) > 1e-4:
        yield f"{name}: a loss of {found['loss']:.6f}, ours is {loss(out, model):.6f}"


def attempt(name: str, peer: Peer, sets: dict[str, Path], model_folder: Path, folder: Path) -> list[str]:
    """Install a peer, convert the sets for it, and compare what it reads."""
    python = str(folder / name / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", folder / name], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", *TORCH, *peer.needs], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", *peer.requirement.split()], check=True)
    return compare(name, python, peer, sets, model_folder, folder)


def compare(name: str, python: str, peer: Peer, sets: dict[str, Path], model_folder: Path, folder: Path) -> list[str]:
    """What a peer that is installed reads otherwise than it is in the sets."""
    converted = folder / f"for-{name}"
    for kind, out in sets.items():
        if kind == "packed" and peer.to == "hf":
            continue
        command = [sys.executable, HERE.parent / "cli.py", "convert", out, "--to", peer.to, "-o", converted / kind]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    script = [python, str(HERE / "peers" / f"read_{name}.py"), str(converted), str(model_folder), str(COUNT)]
    apart = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True, cwd=folder, env=apart)
    found = json.loads(done.stdout.splitlines()[-1])
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder).eval()
    return [one for kind, read in found.items() for one in differences(kind, sets[kind], read, model)]


def main(names: list[str]) -> int:
    """Try the peers; return 0 if all read what is in the sets."""
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        sets, model = make(folder), save_model(folder / "model", scale=3)
        failed = 0
        for name in names or PEERS:
            python, _, own = name.partition("=")
            peer = PEERS[python]
            wrong = compare(python, own, peer, sets, model, folder) if own else attempt(name, peer, sets, model, folder)
            print(
                f"{peer.requirement.split()[0]}:",
                "reads ids, labels and losses of the sets" if not wrong else "\n".join(wrong),
            )
            failed += bool(wrong)
        return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
