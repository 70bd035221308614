"""`cli convert`: other trainers read the same ids, labels and masks, and compute the same loss."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import jsonschema
import pyarrow.parquet as pq
import pytest
import torch
import transformers
from click.testing import Result

import compiler
import trainer
from compiler.commands import convert as command
from compiler.convert import targets
from schemas import schema
from tests.support.command import outside
from tests.support.trained import compile_set, rows, save_model, small_set, write
from trainer.data.collate import tensors
from trainer.objectives.dpo import DPO
from trainer.objectives.kto import KTO

Run = Callable[..., Result]
Rows = list[dict[str, Any]]
ROOT = Path(__file__).resolve().parent.parent
OF_TRL = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing`:FutureWarning", "ignore::DeprecationWarning", "ignore:OMP_NUM_THREADS:UserWarning"
)
"""What TRL itself brings about, and accelerate where a test before joined a group."""
WORDS = ["red", "green", "blue", "seven", "eleven", "moon", "river"]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"), scale=3)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A set of each kind, without weights but for `weighted`."""
    folder = tmp_path_factory.mktemp("sets")
    said = [[{k: m[k] for k in ("role", "content")} for m in row["messages"]] for row in rows(12, 3)]
    files: dict[str, Rows] = {
        "sft": [{"messages": one} for one in said],
        "pretrain": [{"text": f"{' '.join(WORDS[: i % 5 + 1])} and so on"} for i in range(12)],
        "preference": [
            {"instruction": f"say {w}", "chosen": f"{w} it is, {w}", "rejected": "no" * (i % 3 + 1)}
            for i, w in enumerate(WORDS)
        ],
        "kto": [
            {"instruction": f"say {w}", "output": f"{w} it is", "kto_tag": i % 3 != 1} for i, w in enumerate(WORDS)
        ],
    }
    made = {
        name: compile_set(folder / name, write(folder / f"{name}.jsonl", lines), "--kind", name)
        for name, lines in files.items()
    }
    for name in ("sft", "pretrain"):
        made[f"packed {name}"] = compile_set(
            folder / f"packed-{name}", folder / f"{name}.jsonl", "--kind", name, "--pack", 64
        )
    return made | {"weighted": small_set(folder / "weighted")}


def ours(out: Path, split: str = "train") -> Rows:
    return list(compiler.open(out).rows(split))


def examples_of(row: dict[str, Any]) -> Rows:
    """The examples of a pack."""
    found, at = [], 0
    for length in row["seq_lens"]:
        found.append({name: row[name][at : at + length] for name in ("input_ids", "labels")})
        at += length
    return found


def model_of(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


def our_loss(out: Path, model: Any, count: int) -> float:
    data = trainer.dataset(out, batch_size=2)
    with torch.no_grad():
        parts = data.loss(model, data.collate([data.rows.row(i) for i in range(count)]))
    return float(parts.loss_sum / parts.weight_sum)


@OF_TRL
@pytest.mark.parametrize("name", ["sft", "pretrain"])
def test_trl_reads_the_ids_and_labels_of_the_set_and_computes_its_loss(
    sets: dict[str, Path], tmp_path: Path, model_folder: Path, run: Run, name: str
) -> None:
    run("convert", sets[name], "--to", "hf", "-o", tmp_path / "hf")
    loaded = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["train"]
    wanted = ours(sets[name])
    assert loaded["train"]["input_ids"][:] == [row["input_ids"] for row in wanted]
    assert loaded["train"]["labels"][:] == [row["labels"] for row in wanted]
    assert loaded["train"]["attention_mask"][:] == [[1] * len(row["input_ids"]) for row in wanted]
    model = model_of(model_folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    settings = trl.SFTConfig(str(tmp_path / "run"), use_cpu=True, report_to="none", max_length=None, bf16=False)
    peer = trl.SFTTrainer(model, settings, train_dataset=loaded["train"], processing_class=tokenizer)
    batch = peer.data_collator([peer.train_dataset[i] for i in range(4)])
    with torch.no_grad():
        assert float(model(**batch).loss) == pytest.approx(our_loss(sets[name], model, 4), rel=1e-5)


class Prepared:
    """TRL tokenizes pairs again unless it is told that they are prepared."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


@OF_TRL
@pytest.mark.parametrize(("name", "objective"), [("preference", DPO), ("kto", KTO)])
def test_trl_computes_the_loss_of_pairs(
    sets: dict[str, Path],
    tmp_path: Path,
    model_folder: Path,
    run: Run,
    name: str,
    objective: Any,
) -> None:
    run("convert", sets[name], "--to", "hf", "-o", tmp_path / "hf")
    loaded = datasets.load_dataset(str(tmp_path / "hf"), cache_dir=str(tmp_path / "cache"))["train"]
    size = len(loaded)
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    model, reference = model_of(model_folder), model_of(save_model(tmp_path / "other", scale=2))
    settings = getattr(trl, f"{objective.name.upper()}Config")(
        str(tmp_path / "run"), per_device_train_batch_size=size, use_cpu=True, report_to="none", max_length=None,
        bf16=False, beta=0.3,
    )  # fmt: skip
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    other = type("Peer", (Prepared, getattr(trl, f"{objective.name.upper()}Trainer")), {})(
        model, reference, settings, train_dataset=loaded, processing_class=tokenizer
    )
    model.eval()
    batch = other.data_collator([loaded[i] for i in range(size)])
    data = trainer.dataset(sets[name], batch_size=size)
    read = [data.rows.row(i) for i in range(size)]
    if objective.pair:
        read = [objective.pair(row, read[(i + 1) % size]) for i, row in enumerate(read)]
    with torch.no_grad():
        mine = objective.loss(model, tensors(data.collate(read), torch.device("cpu")), reference=reference, beta=0.3)
        theirs = other.compute_loss(model, batch)
    assert float(theirs) == pytest.approx(float(mine.loss_sum / mine.weight_sum), rel=1e-4)
    for row, kept in zip(ours(sets[name]), loaded, strict=True):
        answer = kept["chosen_ids" if name == "preference" else "completion_ids"]
        assert answer == [label for label in row["labels"] if label != -100]
        assert row["input_ids"][: len(kept["prompt_ids"]) + len(answer)] == kept["prompt_ids"] + answer


def test_llamafactory_finds_its_columns_of_rows_and_pairs(sets: dict[str, Path], tmp_path: Path, run: Run) -> None:
    for name in ("sft", "preference", "kto"):
        run("convert", sets[name], "--to", "llamafactory", "-o", tmp_path / name)
    loaded = {
        name: datasets.load_from_disk(str(tmp_path / name))["train"].to_list() for name in ("sft", "preference", "kto")
    }
    for row, kept in zip(ours(sets["sft"]), loaded["sft"], strict=True):
        assert kept == {"attention_mask": [1] * len(row["labels"]), **{k: row[k] for k in ("input_ids", "labels")}}
    for row, kept in zip(ours(sets["preference"]), loaded["preference"], strict=True):
        assert {key: value for key, value in kept.items() if "mask" not in key} == {
            "chosen_input_ids": row["input_ids"], "chosen_labels": row["labels"],
            "rejected_input_ids": row["rejected_input_ids"], "rejected_labels": row["rejected_labels"],
        }  # fmt: skip
    whole = ours(sets["kto"])
    for i, (row, kept) in enumerate(zip(whole, loaded["kto"], strict=True)):
        prompt, other = (next(j for j, x in enumerate(one["labels"]) if x != -100) for one in (row, whole[(i + 1) % 7]))
        assert kept["kl_input_ids"] == row["input_ids"][:prompt] + whole[(i + 1) % 7]["input_ids"][other:]
        assert kept["kl_labels"] == [-100] * prompt + whole[(i + 1) % 7]["labels"][other:]
        assert (kept["kto_tags"], kept["input_ids"]) == (row["desirable"], row["input_ids"])
        assert len(kept["kl_attention_mask"]) == len(kept["kl_labels"])


@pytest.mark.parametrize("name", ["packed sft", "packed pretrain"])
def test_llamafactory_packs_are_neat(sets: dict[str, Path], tmp_path: Path, run: Run, name: str) -> None:
    run("convert", sets[name], "--to", "llamafactory", "-o", tmp_path / "out")
    for row, kept in zip(ours(sets[name]), datasets.load_from_disk(str(tmp_path / "out"))["train"], strict=True):
        wanted: dict[str, list[int]] = {"input_ids": [], "labels": [], "attention_mask": [], "position_ids": []}
        for number, one in enumerate(examples_of(row), 1):
            wanted["input_ids"] += one["input_ids"]
            wanted["labels"] += [-100, *one["labels"][1:]]
            wanted["attention_mask"] += [number] * len(one["labels"])
            wanted["position_ids"] += range(len(one["labels"]))
        rest = 65 - len(row["input_ids"])
        pad = compiler.open(sets[name]).manifest["tokenizer"]
        fill = {"input_ids": pad["controls"][pad["named_tokens"]["pad_token"]], "labels": -100}
        assert kept == {key: value + [fill.get(key, 0)] * rest for key, value in wanted.items()}


@pytest.mark.parametrize("name", ["packed sft", "packed pretrain", "sft"])
def test_megatron_bridge_predicts_what_the_set_trains(
    sets: dict[str, Path], tmp_path: Path, model_folder: Path, run: Run, name: str
) -> None:
    """The reader drops the last token of each example from the input, the first from the targets, the mask's last."""
    run("convert", sets[name], "--to", "megatron-bridge", "-o", tmp_path / "out")
    (path,) = (tmp_path / "out" / "training").glob("*.idx.parquet")
    kept, whole = pq.read_table(path).to_pylist(), ours(sets[name])
    model, losses = model_of(model_folder), []
    assert len(kept) == len(whole)
    for row in kept[:2]:
        bounds = [*row["seq_start_id"], len(row["input_ids"])]
        for start, end in pairwise(bounds):
            ids, mask = row["input_ids"][start:end], torch.tensor(row["loss_mask"][start : end - 1]).bool()
            with torch.no_grad():
                scored = model(torch.tensor([ids[:-1]])).logits[0].log_softmax(-1)
            losses += (-scored[mask, torch.tensor(ids[1:])[mask]]).tolist()
    assert sum(losses) / len(losses) == pytest.approx(our_loss(sets[name], model, 2), rel=1e-4)
    assert [row["input_ids"] for row in kept] == [row["input_ids"] for row in whole]


def test_packs_are_unpacked_on_request(sets: dict[str, Path], tmp_path: Path, run: Run) -> None:
    run("convert", sets["packed sft"], "--to", "hf", "-o", tmp_path / "out", "--unpack")
    kept = pq.read_table(tmp_path / "out" / "data" / "train-00000.parquet").to_pylist()
    wanted = [one for row in ours(sets["packed sft"]) for one in examples_of(row)]
    assert [{key: row[key] for key in ("input_ids", "labels")} for row in kept] == wanted


def test_dropped_weights_are_counted_and_all_splits_are_there(sets: dict[str, Path], tmp_path: Path, run: Run) -> None:
    done = run("convert", sets["weighted"], "--to", "llamafactory", "-o", tmp_path / "o", "--drop-weights", "--json")
    said = json.loads(done.stdout)
    whole = ours(sets["weighted"]) + ours(sets["weighted"], "val")
    assert said["dropped_weights"] == sum(row["loss_weights"] is not None for row in whole) > 0
    assert said["splits"] == {"train": {"rows": 34, "files": 1}, "validation": {"rows": 6, "files": 1}}
    jsonschema.validate(said, schema("conversion"))
    jsonschema.validate(json.loads((tmp_path / "o" / "conversion.json").read_text()), schema("conversion"))
    assert tuple(targets.TARGETS) == command.TARGETS == tuple(schema("conversion")["properties"]["target"]["enum"])


@pytest.mark.parametrize(
    ("name", "options", "wanted"),
    [
        ("weighted", ["--to", "hf"], ".jsonl:"),
        ("packed sft", ["--to", "hf"], "Add --unpack"),
        ("sft", ["--to", "hf", "--unpack"], "not packed"),
        ("kto", ["--to", "megatron-bridge"], "For kto sets: --to hf, --to llamafactory"),
        ("kto", ["--to", "hf", "--drop-weights"], "never how much"),
        ("sft", ["--to", "hf", "--split", "val"], "Splits with rows: train"),
    ],
)
def test_what_a_layout_cannot_carry_is_refused_by_one_message(
    sets: dict[str, Path], tmp_path: Path, run: Run, name: str, options: list[str], wanted: str
) -> None:
    done = run("convert", sets[name], *options, "-o", tmp_path / "out", code=2)
    assert wanted in done.stderr
    assert done.stderr.count("error:") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_others_is_left_alone_and_an_earlier_conversion_is_replaced(
    sets: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "holds no conversion" in run("convert", sets["sft"], "--to", "hf", "-o", out, code=2).stderr
    (out / "notes.txt").unlink()
    run("convert", sets["sft"], "--to", "hf", "-o", out)
    run("convert", sets["kto"], "--to", "llamafactory", "-o", out)
    assert not (out / "data").exists()
    (out / "train" / "notes.txt").write_text("mine")
    assert "'train/notes.txt' is in it" in run("convert", sets["sft"], "--to", "hf", "-o", out, code=2).stderr
    assert (
        "in the folder of the set" in run("convert", sets["sft"], "--to", "hf", "-o", sets["sft"] / "x", code=2).stderr
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_no_set_and_a_damaged_batch_leave_nothing_behind(tmp_path: Path, run: Run) -> None:
    out = small_set(tmp_path / "small")
    assert "no manifest.json" in run("convert", tmp_path, "--to", "hf", "-o", tmp_path / "out", code=5).stderr
    shard = out / "val" / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    done = run("convert", out, "--to", "hf", "-o", tmp_path / "out", "--drop-weights", code=4)
    assert "val/shard-00000.arrow: batch 0" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_disk_that_is_full_leaves_nothing_behind(sets: dict[str, Path], tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: the same call fails, with another number."""
    code = "import resource, sys, cli; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); cli.main(sys.argv[1:])"
    command_line = ["convert", str(sets["sft"]), "--to", "llamafactory", "-o", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *command_line],
        cwd=ROOT,
        env=outside(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 5, done.stderr
    assert "cannot be written" in done.stderr
    assert "Nothing was published" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
