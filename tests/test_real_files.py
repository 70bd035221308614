"""Every real file of ../shared/data: compiled to so many rows, or refused for a reason that is named here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from schemas.reader import CompiledSet
from tests.support.shared import SHARED, shared

ROWS: dict[str, tuple[str, int]] = {
    "advertisegen/dev.jsonl": ("content_summary", 1070),
    "chatglm3/tool_alpaca.jsonl": ("chatglm3", 163),
    "llamafactory/alpaca_en_demo.json": ("alpaca", 999),
    "llamafactory/c4_demo.jsonl": ("pretrain", 300),
    "llamafactory/dpo_en_demo.json": ("sharegpt", 300),
    "llamafactory/glaive_toolcall_en_demo.json": ("sharegpt", 300),
    "llamafactory/identity.json": ("alpaca", 91),
    "llamafactory/kto_en_demo.json": ("openai", 300),
    "ms-swift/ms_agent_seed_row.json": ("ms_agent", 1),
    "ms-swift/self_cognition.jsonl": ("query_response", 134),
    "ms-swift/tests/alpaca.csv": ("alpaca", 3),
    "ms-swift/tests/alpaca.jsonl": ("alpaca", 3),
    "ms-swift/tests/alpaca2.csv": ("alpaca", 3),
    "ms-swift/tests/chatml.jsonl": ("openai", 3),
    "ms-swift/tests/conversations.jsonl": ("ms_agent", 3),
    "ms-swift/tests/multi_modal_1.jsonl": ("query_response", 3),
    "ms-swift/tests/sharegpt.jsonl": ("conversation_pairs", 3),
    "ms-swift/tests/swift_multi.json": ("query_response", 3),
    "ms-swift/tests/swift_multi.jsonl": ("query_response", 3),
    "ms-swift/tests/swift_single.csv": ("query_response", 3),
    "ms-swift/tests/swift_single.jsonl": ("query_response", 3),
    "openai/drone_training.jsonl": ("openai", 103),
    "toolbench/data_example_answer_G1_answer_10_ChatGPT_DFS_woFilter_w2.json": ("toolbench", 1),
}
"""(format, rows of the set)"""

REFUSED: dict[str, tuple[int, str]] = {
    "dirty/octobrist_invalid.json": (3, "Expecting property name enclosed in double quotes"),
    "dirty/openai_drone_double_encoded_excerpt.jsonl": (3, "--repair arguments would make the row good"),
    "llamafactory/dataset_info.json": (2, "its rows match no known format"),  # entries of datasets, not rows
    "llamafactory/example_configs.json": (2, "its rows match no known format"),
    "llamafactory/mllm_demo.json": (3, "give --tokenizer DIR of a vision model"),
    "llamafactory/mllm_video_demo.json": (3, "give --tokenizer DIR of a vision model"),
    "ms-swift/example_calls.json": (2, "its rows match no known format"),
    "ms-swift/tests/multi_modal_2.jsonl": (3, "--repair media-first"),
    "ms-swift/tests/multi_modal_3.jsonl": (3, "--repair media-first"),
    "ms-swift/tests/swift_pre.csv": (2, "its rows match no known format"),  # replies without a prompt
    "ms-swift/tests/swift_pre.jsonl": (2, "its rows match no known format"),
    "toolalpaca/train_format.json": (3, "6 of 169 examples"),
}
"""(exit code, what is said)"""


def test_every_real_file_is_listed() -> None:
    shared("data")
    files = (path for path in (SHARED / "data").rglob("*") if path.is_file() and path.suffix != ".jpg")
    found = {path.relative_to(SHARED / "data").as_posix() for path in files}
    assert found == {*ROWS, *REFUSED}


@pytest.mark.parametrize("name", ROWS)
def test_a_real_file_compiles_to_its_rows(run: Callable[..., Result], tmp_path: Path, name: str) -> None:
    run("compile", shared("data", name), "-o", tmp_path / "out", "--unknown-keys", "error")
    (entry,) = CompiledSet.open(tmp_path / "out").manifest["datasets"]
    assert (entry["format"], entry["realized"]["rows"]) == ROWS[name]


@pytest.mark.parametrize("name", REFUSED)
def test_a_real_file_that_cannot_be_compiled_is_one_message(
    run: Callable[..., Result], tmp_path: Path, name: str
) -> None:
    code, message = REFUSED[name]
    done = run("compile", shared("data", name), "-o", tmp_path / "out", code=code)
    assert message in done.stderr
    assert not (tmp_path / "out").exists()
