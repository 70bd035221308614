"""What the users' own documents show, reproduced."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from tests.support.shared import shared

SANITY = re.compile(r"'(.*?)': +(\d+) -> +(-?\d+)")


def test_the_sanity_lines_of_seed_004_are_printed_with_the_real_tokenizer(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    """Its ToolAlpaca data, its tokens, ids and targets: the prompt's beginning, the end of the question, the reply."""
    seed = shared("seeds", "004_f74d60c9a247ecb3.txt").read_text(encoding="utf-8")
    shown = SANITY.findall(seed.partition("Sanity Check >>>")[2].partition("<<<")[0])
    begins, reply = shown[:8], shown[shown.index(("<|assistant|>", "64796", "-100")) :]
    assert [piece for piece, _, _ in reply] == ["<|assistant|>", "", r"\n", "I", "need", "to", "use"]

    out = tmp_path / "out"
    data, tokenizer = shared("data", "chatglm3", "tool_alpaca.jsonl"), shared("tokenizers", "chatglm3")
    run("compile", data, "--tokenizer", tokenizer, "--template", "chatglm3", "-o", out)
    found = run("inspect", out, "--find", "I need to use", "--limit", "200", "--format", "sanity").stdout
    rows = [SANITY.findall(row) for row in found.split("Sanity Check >>>>>>>>>>>>>\n")[1:]]
    assert all(row[: len(begins)] == begins for row in rows)
    assert any(row[i : i + len(reply)] == reply for row in rows for i in range(len(row)))


def test_no_tool_result_of_seed_004s_data_is_trained(run: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "out"
    data, tokenizer = shared("data", "chatglm3", "tool_alpaca.jsonl"), shared("tokenizers", "chatglm3")
    run("compile", data, "--tokenizer", tokenizer, "--template", "chatglm3", "-o", out)
    done = run("inspect", out, "--assert", "tool:0", "--assert", "user:0")
    assert done.stdout.count(" holds: none of ") == 2


def test_the_row_of_seed_003_trains_the_calls_and_not_the_observations(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    """Its one real ms-agent row, compiled with Qwen2.5's own template and the react weights it is made for."""
    row = shared("data", "ms-swift", "ms_agent_seed_row.json").read_text(encoding="utf-8")
    file = tmp_path / "agent.json"
    file.write_text(f"[{row}]", encoding="utf-8")
    out = tmp_path / "out"
    run("compile", file, "--tokenizer", shared("tokenizers", "qwen2.5"), "-o", out)
    done = run("inspect", out, "--assert", "observation:0", "--assert", "user:0", "--assert", "system:0")
    assert done.stdout.count(" holds: none of ") == 3
    text = run("inspect", out).stdout.replace("┊", "")
    assert "⟦2.0:Action: hm_product_recommend" in text
    assert "Observation:⟧ [" in text
