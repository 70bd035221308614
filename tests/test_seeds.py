"""What the users' own documents show, reproduced."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from click.testing import Result

from tests.support.shared import shared

ROOT = Path(__file__).parent.parent
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


def test_the_sample_of_seed_001_as_printed_is_an_error_at_its_bare_quote(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    printed = shared("seeds", "001_61f46ed5a7811110.txt").read_text(encoding="utf-8")
    file = tmp_path / "row.json"
    file.write_text(printed.partition("```json\n")[2].partition("```")[0], encoding="utf-8")
    done = run("compile", file, "-o", tmp_path / "out", code=3)
    assert 'the text ends at this quote; a quote within a text is written \\"' in done.stderr
    assert 'navigate to the "Network" section' in done.stderr


def test_the_row_of_seed_003_is_read_as_printed(run: Callable[..., Result], tmp_path: Path) -> None:
    printed = shared("seeds", "003_4878146f135afe52.txt").read_text(encoding="utf-8")
    begin = printed.index('{\n"id": "MS_Agent_Bench_126374"')
    file = tmp_path / "row.json"
    file.write_text(printed[begin : printed.index("\n}\n", begin) + 2], encoding="utf-8")
    done = run("compile", file, "-o", tmp_path / "out")
    assert "row: recognised as ms_agent (1 of the first 1 rows match its schema)" in done.stderr


def test_tools_of_seed_004_stand_in_a_system_block_before_the_rows_own(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    """Its second sample without the comments; the order is that of its code (formats.md, 1.3)."""
    printed = shared("seeds", "004_f74d60c9a247ecb3.txt").read_text(encoding="utf-8")
    lines = [line.strip("| ") for line in printed.split("| ```json | |")[2].partition("| ``` | |")[0].splitlines()]
    text = "".join(line for line in lines if not line.startswith("//")).replace('"tools": []', '"tools": ["weather"]')
    file = tmp_path / "rows.json"
    file.write_text(re.sub(r",(?=[\]}])", "", text), encoding="utf-8")
    run(
        "compile", file, "--tokenizer", shared("tokenizers", "chatglm3"), "--template", "chatglm3", "-o", tmp_path / "o"
    )
    shown = run("inspect", tmp_path / "o").stdout.replace("┊", "").replace("␣", " ")
    tools, system, user = (
        shown.index(text) for text in ("have access to", "<system prompt text>", "<user prompt text>")
    )
    assert tools < shown.index('"weather"') < system < user
    assert shown.count("‹|system|›") == 2


STARTS = (
    "pip ", "git ", "cd ", "python ", "torchrun", "swift ", "export ", "vim ", "./", "OMP_", "MODEL_PATH=", "source ",
    "nproc_per_node=", "PYTHONPATH=", "--", "<<<",
)  # fmt: skip
"""How a line begins that people type."""


def typed(text: str) -> list[str]:
    """The lines of a document that people type, without the frame of its page, comments and continued lines' signs."""
    found: list[str] = []
    for line in text.splitlines():
        bare = re.sub(r"\s+", " ", re.sub(r"^\| ?| ?\|( \|)?$", "", line.strip()).partition(" # ")[0]).strip()
        joined = bool(found) and found[-1].endswith("\\") and found[-1].startswith("python ")
        bare = bare.strip()
        if joined:
            found[-1] = f"{found[-1][:-1].strip()} {bare}"
        elif bare.startswith(STARTS) and not re.match(r"-+\|", bare):
            found.append(bare)
    return [re.sub(r" *\\$", "", one) for one in found]


def test_every_command_of_the_documents_stands_in_the_table() -> None:
    page = re.sub(r"\s+", " ", (ROOT / "docs" / "documents.md").read_text(encoding="utf-8"))
    counts = {}
    for path in sorted(shared("seeds").glob("*.txt")):
        lines = [line for line in typed(path.read_text(encoding="utf-8")) if not is_talk(line)]
        counts[path.name[:3]] = len(lines)
        missing = [line for line in lines if line not in page]
        assert not missing, f"{path.name}: {missing}"
    assert counts == {"001": 3, "002": 6, "003": 50, "004": 13}


def is_talk(line: str) -> bool:
    """Whether a line is what someone says to a model, or a mark of the sanity check."""
    said = line.removeprefix("<<<").removeprefix("[MS]").strip()
    return line.startswith("<<<") and not re.match(r"(\[M\] ?)?(reset-system|multi-line)", said)


def test_every_key_of_the_documents_files_stands_in_the_table() -> None:
    page = (ROOT / "docs" / "documents.md").read_text(encoding="utf-8")
    text = {path.name[:3]: path.read_text(encoding="utf-8") for path in shared("seeds").glob("*.txt")}
    yaml = text["002"].partition("### model\n")[2].partition("eval_steps: 500")[0]
    keys = re.findall(r"^(\w+): ", yaml, re.M) + re.findall(r"^ +\+ (\w+): ", text["001"], re.M)
    keys += re.findall(r"• ([a-z_]+)[:(]", text["002"])
    assert len(keys) > 55
    assert [key for key in keys if f"`{key}`" not in page] == []
