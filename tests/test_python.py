"""The Python API: what docs/python.md shows runs, and its rows, order and losses are those of the commands."""

from __future__ import annotations

import html
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import transformers

import compiler
import trainer
from compiler.inspect.rows import SplitExamples
from compiler.inspect.tokens import decode_row
from compiler.inspect.vocabulary import TokenBytes
from compiler.report import row_html
from schemas.errors import IntegrityError, Problem, UsageError
from schemas.steps import Order
from tests.support.command import outside
from tests.support.trained import rows, save_model, small_set, write

ROOT = Path(__file__).resolve().parent.parent
BETWEEN = "--- the next block"


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.mktemp("small"))


def test_the_page_runs_as_it_stands(tmp_path: Path, model_folder: Path) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    (tmp_path / "model").symlink_to(model_folder)
    write(tmp_path / "chats.jsonl", rows(12, 1))
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", page, re.DOTALL)
    assert len(blocks) == 7
    # A process of its own: what other tests leave in torch and accelerate is not a reader's.
    (tmp_path / "page.py").write_text(f"print({BETWEEN!r})\n".join(code for code, _ in blocks), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "page.py"], cwd=tmp_path, env=outside(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    lines = [
        line for line in done.stdout.splitlines(True) if not line.startswith(("{'", "[20"))
    ]  # Trainer's log, and DeepSpeed's
    assert "".join(lines).split(f"{BETWEEN}\n") == [wanted for _, wanted in blocks]


def test_a_notebook_shows_the_set_its_rows_and_a_row_with_the_component_of_the_report(shards: Path) -> None:
    opened = compiler.open(shards)
    every = opened.rows("train")
    row = every[2]
    whole = SplitExamples(opened.set, "train")
    alone = row_html(decode_row(whole, 2, TokenBytes(opened.set)), ["X"], pack=None)
    [said] = re.findall(r"<p class=\"quiet\">(.*?) · file ", row._repr_html_())
    assert row._repr_html_() == alone.replace(">X · ", f">{said} · ")
    assert [one._repr_html_().count('<details class="row"') for one in (every, opened, row)] == [3, 1, 1]
    assert "<style>" in row._repr_html_() and "<script" not in opened._repr_html_()
    assert html.escape(repr(opened)) in opened._repr_html_()
    assert list(every)[2] == row and list(every)[2]._repr_html_() == row._repr_html_()
    assert type(pickle.loads(pickle.dumps(row))) is dict and pickle.loads(pickle.dumps(row)) == row


def test_a_notebook_shows_the_examples_of_a_pack(tmp_path: Path) -> None:
    row = compiler.open(small_set(tmp_path, "--pack", 64)).rows("train")[1]
    page = row._repr_html_()
    assert page.count('<details class="row"') == min(3, len(row["seq_lens"])) and "in pack 1," in page


def test_importing_the_packages_imports_nothing_heavy() -> None:
    code = (
        "import sys, compiler, trainer; compiler.open, compiler.compile, trainer.dataset;"
        "print(sorted({'click', 'numpy', 'pyarrow', 'polars', 'torch', 'datasets', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=outside(), capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_rows_and_tables_are_those_of_the_files(shards: Path) -> None:
    opened = compiler.open(shards)
    read = pa.ipc.open_file(shards / "train" / "shard-00000.arrow").read_all()
    assert opened.splits == {"train": read.num_rows, "val": 6}
    assert list(opened.rows("train")) == read.to_pylist()
    assert [opened.rows("train")[i] for i in (0, 7, -1)] == [read.to_pylist()[i] for i in (0, 7, -1)]
    assert opened.to_arrow("train").equals(read)
    assert opened.to_polars("train")["input_ids"].to_list() == read["input_ids"].to_pylist()
    assert opened.to_hf("train")["labels"] == read["labels"].to_pylist()
    with pytest.raises(IndexError):
        opened.rows("val")[6]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"max_lenght": 5}, "did you mean 'max_length'"),
        ({"val_size": [1, 2]}, "expected one value"),
        ({"shuffle": "no"}, "expected True or False"),
        ({"max_length": True}, "expected a value"),
        ({"overlength": "nowhere"}, "nowhere"),
        ({"only": "0/2"}, "writes no set"),
        ({"name": "Ada", "author": "Bob"}, "--self-cognition"),
    ],
)
def test_an_option_that_cannot_be_is_refused_as_the_command_refuses_it(options: dict[str, Any], wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        compiler.compile("chats.jsonl", **options)


def test_what_is_no_set_or_a_split_without_rows_is_one_message(tmp_path: Path, shards: Path) -> None:
    with pytest.raises(Problem, match="not complete, or not one"):
        compiler.open(tmp_path)
    with pytest.raises(UsageError, match="split test: it is empty"):
        compiler.open(shards).to_arrow("test")
    with pytest.raises(UsageError, match="expected 0 to 1"):
        trainer.dataset(shards, rank=2, world=2)


def test_a_damaged_batch_is_refused(tmp_path: Path) -> None:
    out = small_set(tmp_path)
    shard = out / "train" / "shard-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(IntegrityError, match="damaged"):
        compiler.open(out).rows("train")[0]


def test_steps_are_those_of_training_from_any_position_for_any_processes(shards: Path) -> None:
    size = compiler.open(shards).splits["train"]
    order = Order(size, 4, 9)
    whole = list(trainer.dataset(shards, batch_size=4, seed=9).steps(20))
    assert [one.rows.tolist() for one in whole] == [order.step(number).tolist() for number in range(20)]
    for world, batch in ((2, 2), (4, 1)):
        parts = [
            trainer.dataset(shards, batch_size=batch, rank=rank, world=world, seed=9, step=11, threads=1).steps(20)
            for rank in range(world)
        ]
        for step, *ranks in zip(whole[11:], *parts, strict=True):
            assert np.concatenate([one.mine[0] for one in ranks]).tolist() == step.rows.tolist()


def test_the_rows_of_the_map_are_the_steps_one_after_the_other(shards: Path) -> None:
    data = trainer.dataset(shards, batch_size=4, seed=9, step=2)
    wanted = [int(row) for one in data.steps() for row in one.rows]
    assert [data[i]["number"] for i in range(len(data))] == wanted
    data.set_epoch(1)
    each = data.order.steps_per_epoch
    assert [data[i]["number"] for i in range(len(data))] == [
        int(r) for n in range(each) for r in data.order.step(each + n)
    ]


@pytest.mark.parametrize("packed", [False, True])
def test_the_loss_that_a_model_computes_from_the_inputs_is_the_loss_of_training(
    tmp_path: Path, model_folder: Path, packed: bool
) -> None:
    plain = [
        {"messages": [{"role": m["role"], "content": m["content"]} for m in row["messages"]]} for row in rows(20, 3)
    ]
    options = {"pack": 64} if packed else {}
    compiler.compile(
        write(tmp_path / "plain.jsonl", plain), out=tmp_path / "out", cache=tmp_path / "cache", workers=1, **options
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(model_folder)
    data = trainer.dataset(tmp_path / "out", batch_size=1 if packed else 3)
    with torch.no_grad():
        some = [data[i] for i in range(1 if packed else 3)]
        parts = data.loss(model, data.collate(some))
        assert len(some[0]["seq_lens"]) > 1 or not packed
        assert float(model(**data.inputs(some)).loss) == pytest.approx(
            float(parts.loss_sum / parts.weight_sum), rel=1e-5
        )


def test_weights_that_the_models_own_loss_would_ignore_are_refused_or_dropped_on_request(shards: Path) -> None:
    data = trainer.dataset(shards)
    with pytest.raises(UsageError, match=r"\.jsonl:\d+: it has loss weights other than 1"):
        data.inputs([data[i] for i in range(len(data))])
    assert "loss_weights" not in trainer.dataset(shards, drop_weights=True).inputs([data[i] for i in range(3)])
