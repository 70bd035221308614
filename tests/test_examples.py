"""The examples work as their READMEs say: every command runs, what is shown is what is printed, the masks are right.

The masks are checked against rules written here from the ids alone: which tokens end a turn, and who speaks next.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest
from click.testing import Result
from PIL import Image
from tokenizers import Tokenizer

import registry
from tests.support.command import runner
from tests.support.shared import shared
from tests.support.vision import vision_model

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NAMES = ("chatglm3", "cogagent", "llama_factory", "ms_swift_agent")
BLOCK = re.compile(r"^```(bash|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

CHATGLM3 = {"roles": {64794, 64795, 64796, 64797}, "assistant": 64796}
GLM4 = {"roles": {151335, 151336, 151337, 151338}, "assistant": 151337}
OBSERVATION = re.compile(r"^Observation:(.*?)(?=^(?:Thought|Action|Final Answer):)", re.MULTILINE | re.DOTALL)
CALL = re.compile(r"^Action: .*?^Observation:", re.MULTILINE | re.DOTALL)


@dataclass
class Walk:
    """A README followed from its top, in a copy of its folder; what was printed is kept."""

    folder: Path
    tokenizer: Callable[[], Path]
    blocks: list[tuple[str, str]]
    """(commands, the output shown for them)"""
    printed: list[subprocess.CompletedProcess[str]] = field(default_factory=list)

    def to(self, number: int) -> subprocess.CompletedProcess[str]:
        """Return what a block printed, once those before it have run. Skips where the tokenizer it needs is absent."""
        for commands, shown in self.blocks[len(self.printed) : number + 1]:
            done = self._run(commands)
            failed = f"{commands}\n{done.stdout}"
            assert (done.returncode != 0) == shown.startswith("error:"), failed
            self.printed.append(done)
        return self.printed[number]

    def table(self, name: str, split: str = "train") -> pa.Table:
        """Return the rows of the set `out/NAME`, once the whole README has been followed."""
        self.to(len(self.blocks) - 1)
        shards = sorted((self.folder / "out" / name / split).glob("*.arrow"))
        return pa.concat_tables([pa.ipc.open_file(pa.memory_map(str(shard))).read_all() for shard in shards])

    def _run(self, commands: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(self.folder.parent / "cache"),
        }
        if "$TOKENIZER" in commands:
            environment["TOKENIZER"] = str(self.tokenizer())
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )


def blocks_of(example: str) -> list[tuple[str, str]]:
    """Return the commands of a README with the output shown for each, "" where none is."""
    found: list[tuple[str, str]] = []
    for kind, text in BLOCK.findall((EXAMPLES / example / "README.md").read_text(encoding="utf-8")):
        if kind == "bash":
            found.append((text, ""))
        else:
            assert found and not found[-1][1], f"{example}: an output that follows no command"
            found[-1] = (found[-1][0], text)
    return found


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Walk]:
    """Return the walk through an example's README, the same one for all tests."""
    walks: dict[str, Walk] = {}

    def start(example: str) -> Walk:
        if example not in walks:
            root = tmp_path_factory.mktemp(example)
            shutil.copytree(EXAMPLES / example, root / "copy", ignore=shutil.ignore_patterns("out"))
            tokenizer = {
                "chatglm3": lambda: shared("tokenizers", "chatglm3"),
                "cogagent": lambda: shared("tokenizers", "glm4"),
                "llama_factory": lambda: vision_model(root / "vision"),
            }.get(example, lambda: registry.DEMO_TOKENIZER)
            walks[example] = Walk(root / "copy", tokenizer, blocks_of(example))
        return walks[example]

    return start


def rows_of(path: Path) -> list[Any]:
    """Return the rows of a .json array or of JSON Lines."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]


def by_role_tokens(ids: list[int], roles: set[int], assistant: int, left_out: Sequence[int] = ()) -> list[int]:
    """Return the labels where a role token opens a turn: what follows the assistant's, through the next role token.

    `left_out` numbers the replies that are not trained.
    """
    labels, speaker, reply = [], None, -1
    for token in ids:
        labels.append(token if speaker == assistant and reply not in left_out else -100)
        if token in roles:
            speaker, reply = token, reply + (token == assistant)
    return labels


def replies_of(ids: list[int], tokenizer: Tokenizer) -> list[tuple[int, int]]:
    """Return (start, end) of the ChatML replies in a row: from behind the header through the stop."""
    start, stop = tokenizer.token_to_id("<|im_start|>"), tokenizer.token_to_id("<|im_end|>")
    header = [start, *tokenizer.encode("assistant\n", add_special_tokens=False).ids]
    begins = [i + len(header) for i in range(len(ids)) if ids[i : i + len(header)] == header]
    return [(begin, ids.index(stop, begin) + 1) for begin in begins]


def by_replies(ids: list[int], replies: list[tuple[int, int]]) -> list[int]:
    """Return the labels where exactly these replies are trained."""
    return [token if any(a <= i < b for a, b in replies) else -100 for i, token in enumerate(ids)]


STEPS = [(example, number) for example in NAMES for number in range(len(blocks_of(example)))]


@pytest.mark.parametrize(("example", "number"), STEPS)
def test_a_command_runs_and_prints_what_the_readme_shows(
    walk: Callable[[str], Walk], example: str, number: int
) -> None:
    """A line shown is a line printed, or its beginning; `...` stands for lines left out."""
    here = walk(example)
    printed = here.to(number).stdout.splitlines()
    at = 0
    for shown in filter(None, re.split(r"^\.\.\.\n", here.blocks[number][1], flags=re.MULTILINE)):
        lines = shown.splitlines()
        starts = range(at, len(printed) - len(lines) + 1)
        found = (i for i in starts if all(map(str.startswith, printed[i : i + len(lines)], lines)))
        at = next(found, -1) + len(lines)
        assert at >= len(lines), f"not printed:\n{shown}\nprinted:\n" + "\n".join(printed)


@pytest.mark.parametrize("example", NAMES)
def test_a_readme_is_short_and_its_files_are_small(example: str) -> None:
    assert len((EXAMPLES / example / "README.md").read_text(encoding="utf-8").splitlines()) < 110
    files = [path for path in (EXAMPLES / example).rglob("*") if path.is_file() and "out" not in path.parts]
    assert [path for path in files if path.stat().st_size > 10_000 or path.suffix in (".mp4", ".pyc")] == []


def test_the_table_names_every_example() -> None:
    table = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    folders = {path.name for path in EXAMPLES.iterdir() if path.is_dir()}
    assert folders == set(NAMES) == set(re.findall(r"^\| \[(\w+)\]\(\1\)", table, re.MULTILINE))


def test_cogagent_trains_the_reply_and_its_stop_and_not_the_header(walk: Callable[[str], Walk]) -> None:
    table = walk("cogagent").table("shards")
    assert Counter(table["dataset"].to_pylist()) == {"train": 2, "screens": 7}
    for row in table.to_pylist():
        assert row["labels"] == by_role_tokens(row["input_ids"], **GLM4)
        assert row["labels"][-1] == 151336
        assert [(image["num_tokens"], row["input_ids"][image["position"]]) for image in row["images"]] == [
            (1600, 151329)
        ]


def test_every_step_of_a_trajectory_sees_its_own_screenshot(walk: Callable[[str], Walk]) -> None:
    here = walk("cogagent")
    steps = [step["image"] for row in rows_of(here.folder / "screens.json") for step in row["steps"]]
    rows = [row for row in here.table("shards").to_pylist() if row["dataset"] == "screens"]
    rows.sort(key=lambda row: (row["row"], row["part"]))
    assert [row["images"][0]["uri"] for row in rows] == steps


def test_no_trajectory_is_on_both_sides_of_the_split(walk: Callable[[str], Walk]) -> None:
    here = walk("cogagent")
    sides = [
        set(zip(*(here.table("split", s)[c].to_pylist() for c in ("file", "row")), strict=True))
        for s in ("train", "val")
    ]
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 4


def test_llama_factorys_text_trains_every_reply_and_no_tool_answer(walk: Callable[[str], Walk]) -> None:
    here = walk("llama_factory")
    tokenizer = Tokenizer.from_file(str(registry.DEMO_TOKENIZER / "tokenizer.json"))
    counts = {
        "sft": {"alpaca_sft": 4, "sharegpt_sft": 3, "openai_sft": 2},
        "esg": {"ESG_Knowledge_Network": 9},
        "kto": {"sharegpt_kto": 3},
    }
    for name, expected in counts.items():
        table = here.table(name)
        assert Counter(table["dataset"].to_pylist()) == expected
        for row in table.to_pylist():
            assert row["labels"] == by_replies(row["input_ids"], replies_of(row["input_ids"], tokenizer))
    assert here.table("esg", "val").num_rows == 1
    wished = {row["row"]: row["desirable"] for row in here.table("kto").to_pylist()}
    assert wished == {0: True, 1: False, 2: True}


def test_a_turn_of_the_history_is_trained_as_the_last_one_is(walk: Callable[[str], Walk]) -> None:
    table = walk("llama_factory").table("sft")
    tokenizer = Tokenizer.from_file(str(registry.DEMO_TOKENIZER / "tokenizer.json"))
    row = next(r for r in table.to_pylist() if (r["dataset"], r["row"]) == ("alpaca_sft", 1))
    trained = tokenizer.decode([i for i in row["labels"] if i != -100], skip_special_tokens=False)
    source = rows_of(EXAMPLES / "llama_factory" / "alpaca_sft.json")[1]
    assert trained == "".join(f"{reply}<|im_end|>" for reply in [*(r for _, r in source["history"]), source["output"]])


def test_a_preference_row_trains_its_two_replies_and_no_earlier_one(walk: Callable[[str], Walk]) -> None:
    table = walk("llama_factory").table("preference")
    tokenizer = Tokenizer.from_file(str(registry.DEMO_TOKENIZER / "tokenizer.json"))
    assert Counter(table["dataset"].to_pylist()) == {"alpaca_preference": 2, "sharegpt_preference": 2}
    for row in table.to_pylist():
        chosen, rejected = row["input_ids"], row["rejected_input_ids"]
        (begin, _), (other, _) = replies_of(chosen, tokenizer)[-1], replies_of(rejected, tokenizer)[-1]
        assert chosen[:begin] == rejected[:other]
        assert row["labels"] == by_replies(chosen, replies_of(chosen, tokenizer)[-1:])
        assert row["rejected_labels"] == by_replies(rejected, replies_of(rejected, tokenizer)[-1:])


def test_a_document_is_trained_whole_and_ends(walk: Callable[[str], Walk]) -> None:
    table = walk("llama_factory").table("pretrain")
    tokenizer = Tokenizer.from_file(str(registry.DEMO_TOKENIZER / "tokenizer.json"))
    texts = {row["text"] + "<|endoftext|>" for row in rows_of(EXAMPLES / "llama_factory" / "alpaca_pretrain.json")}
    assert {tokenizer.decode(row["input_ids"], skip_special_tokens=False) for row in table.to_pylist()} == texts
    assert all(row["labels"] == [-100, *row["input_ids"][1:]] for row in table.to_pylist())


def test_pictures_and_videos_are_placeholders_that_are_not_trained(walk: Callable[[str], Walk]) -> None:
    """448x336 is 16 x 12 of 28 pixels, 280x196 is 10 x 7; four frames of 224x112 are two times 8 x 4."""
    here = walk("llama_factory")
    tokenizer = Tokenizer.from_file(str(here.tokenizer() / "tokenizer.json"))
    pads = {kind: tokenizer.token_to_id(f"<|{kind}_pad|>") for kind in ("image", "video")}
    rows = {(row["dataset"], row["row"]): row for row in here.table("vision").to_pylist()}
    expected = {("sharegpt_image", 0): [192], ("sharegpt_image", 1): [70, 70], ("sharegpt_video", 0): [64]}
    assert {key: [m["num_tokens"] for m in row["images"] + row["videos"]] for key, row in rows.items()} == expected
    for (dataset, _), row in rows.items():
        assert row["input_ids"].count(pads[dataset.split("_")[1]]) == sum(expected[dataset, row["row"]])
        assert row["labels"] == by_replies(row["input_ids"], replies_of(row["input_ids"], tokenizer))


def test_a_video_file_counts_as_its_frames_do(
    walk: Callable[[str], Walk], run: Callable[..., Result], tmp_path: Path
) -> None:
    """The document's form: "videos" holds a path."""
    folder, out = walk("llama_factory").folder, tmp_path / "out"
    row = rows_of(folder / "sharegpt_video.json")[0]
    with av.open(str(tmp_path / "ferry.mp4"), "w") as file:
        stream = file.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 224, 112, "yuv420p"
        for frame in row["videos"][0]:
            file.mux(stream.encode(av.VideoFrame.from_image(Image.open(folder / frame).convert("RGB"))))
        file.mux(stream.encode())
    (tmp_path / "clip.json").write_text(json.dumps([row | {"videos": ["ferry.mp4"]}]), encoding="utf-8")
    run("compile", tmp_path / "clip.json", "--tokenizer", vision_model(tmp_path / "vision"), "-o", out)
    (shard,) = (out / "train").glob("*.arrow")
    assert pa.ipc.open_file(pa.memory_map(str(shard))).read_all()["videos"].to_pylist()[0][0]["num_tokens"] == 64


def test_no_word_of_an_api_is_trained_and_its_calls_weigh_two(walk: Callable[[str], Walk]) -> None:
    """What is not trained of a reply is the text of its Observations; what weighs 2 is its calls."""
    here = walk("ms_swift_agent")
    tokenizer = Tokenizer.from_file(str(registry.DEMO_TOKENIZER / "tokenizer.json"))
    sources = rows_of(here.folder / "local" / "iic" / "ms_agent" / "train.jsonl")
    rows = [row for row in here.table("local").to_pylist() if row["dataset"] == "ms-agent"]
    assert sorted(row["row"] for row in rows) == list(range(6))
    for row in rows:
        said = [m["value"] for m in sources[row["row"]]["conversations"] if m["from"] == "assistant"]
        ids, labels = np.array(row["input_ids"]), np.array(row["labels"])
        replied = np.zeros(len(ids), bool)
        for begin, end in replies_of(row["input_ids"], tokenizer):
            replied[begin:end] = True
            assert labels[end - 1] == ids[end - 1]
        assert not (labels[~replied] != -100).any()
        assert tokenizer.decode(ids[replied & (labels == -100)].tolist()) == "".join(
            chain(*map(OBSERVATION.findall, said))
        )
        weights = np.array(row["loss_weights"] or (labels != -100), float)
        assert tokenizer.decode(ids[weights == 2].tolist()) == "".join(chain(*map(CALL.findall, said)))


def test_the_table_of_the_document_is_the_table_of_the_readme(walk: Callable[[str], Walk]) -> None:
    here = walk("ms_swift_agent")
    text = (here.folder / "README.md").read_text(encoding="utf-8")
    table = {
        name: [int(n.replace(",", "")) for n in numbers.split("|")]
        for name, numbers in re.findall(r"^\| ([\w-]+) \| ([\d,| ]+) \|$", text, re.MULTILINE)
    }
    assert {name: numbers[0] for name, numbers in table.items()} == {
        "ms-agent": 30000,
        "ms-bench": 60000,
        "self-cognition": 3000,
    }
    for at, name in ((2, "samples"), (3, "local")):
        counted = Counter(here.table(name)["dataset"].to_pylist())
        assert sorted(counted.values()) == sorted(numbers[at] for numbers in table.values())


def test_self_cognition_says_the_name_and_nothing_is_left_to_fill_in(walk: Callable[[str], Walk]) -> None:
    tokenizer = Tokenizer.from_file(str(registry.DEMO_TOKENIZER / "tokenizer.json"))
    rows = [row for row in walk("ms_swift_agent").table("samples").to_pylist() if row["dataset"] == "self-cognition"]
    texts = {tokenizer.decode(row["input_ids"]) for row in rows}
    assert len(rows) == 3000
    assert any("卡卡罗特" in text for text in texts) and any("陶白白" in text for text in texts)
    assert not any("{{" in text for text in texts)


def test_chatglm3_trains_replies_calls_and_the_next_role_token(walk: Callable[[str], Walk]) -> None:
    here = walk("chatglm3")
    tables = {name: here.table(name) for name in ("chat", "toolalpaca")}
    assert Counter(tables["chat"]["dataset"].to_pylist()) == {"chat": 3, "tool_chat": 2}
    assert tables["toolalpaca"].num_rows == 2
    for row in tables["chat"].to_pylist() + tables["toolalpaca"].to_pylist():
        left_out = [0] if (row["dataset"], row["row"]) == ("chat", 2) else []
        assert row["labels"] == by_role_tokens(row["input_ids"], **CHATGLM3, left_out=left_out)
        assert row["labels"][-1] == 2


def test_chatglm3s_pairs_have_no_role_token_and_train_the_response(walk: Callable[[str], Walk]) -> None:
    table = walk("chatglm3").table("pairs")
    assert Counter(table["dataset"].to_pylist()) == {"prompt_response": 2, "advertise_gen": 3}
    for row in table.to_pylist():
        assert not CHATGLM3["roles"] & set(row["input_ids"])
        first = next(i for i, label in enumerate(row["labels"]) if label != -100)
        assert row["input_ids"][:2] == [64790, 64792]
        assert first > 2
        assert row["labels"] == [-100] * first + row["input_ids"][first:]
        assert row["labels"][-1] == 2


# -- the document's own files --

RUNS = [
    (example, command)
    for example in NAMES
    for command in re.findall(
        r'(cli train [^`]+) --model "\$MODEL"`', (EXAMPLES / example / "README.md").read_text(encoding="utf-8")
    )
]
STEPS = {
    "configs/lora.yaml": 3000, "configs/ptuning_v2.yaml": 3000, "configs/sft.yaml": 3000,
    "scripts/finetune_ds.sh": 500, "scripts/finetune_ds_multiturn.sh": 200,
    "scripts/finetune_pt.sh": 1000, "scripts/finetune_pt_multiturn.sh": 1000,
    "train_lora/qwen2.5_14B_lora_sft.yaml": 3 * 2,  # three epochs of 9 rows, 8 a step
    "run.sh": 2 * 374,  # two epochs of 2,987 rows, 2 x 4 a step
}  # fmt: skip
"""By file: the steps that it makes of the example's rows on one device."""


@pytest.fixture(scope="module")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A tiny model for an example's sets, in the layout of the document's."""
    from tests.support.original import EYES, save_original
    from tests.support.trained import save_model

    folder = tmp_path_factory.mktemp("models")

    def make(example: str) -> Path:
        path = folder / example
        if path.exists():
            return path
        if example == "chatglm3":
            return save_original(path, "chatglm3", shared("tokenizers", "chatglm3"), padded_vocab_size=65024)
        if example == "cogagent":
            sizes = {"padded_vocab_size": 151552, "seq_length": 8192, "vision_config": EYES, "pad_token_id": 151329}
            eyes = {"boi_token_id": 151339, "eoi_token_id": 151340, "eos_token_id": [151329, 151336, 151338]}
            return save_original(path, "cogagent", shared("tokenizers", "glm4"), **sizes, **eyes)
        if example == "llama_factory":
            return save_model(path, max_position_embeddings=2048)
        return save_original(path, "qwen", seq_length=2048)

    return make


def cli_in(folder: Path, *arguments: object, typed: str | None = None) -> str:
    """What the command line prints on stdout, in this process, started in a folder."""
    from cli import main

    with contextlib.chdir(folder):
        done = runner().invoke(main, [*map(str, arguments)], input=typed, catch_exceptions=False)
    assert done.exit_code == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore")  # of libraries about their own future
@pytest.mark.parametrize(("example", "command"), RUNS)
def test_an_unchanged_file_of_the_document_plans_its_run(
    walk: Callable[[str], Walk], model_of: Callable[[str], Path], example: str, command: str
) -> None:
    here = walk(example)
    here.to(len(here.blocks) - 1)
    *given, file = command.split()[1:]
    half = "--fp16" in (here.folder / file).read_text(encoding="utf-8")
    more = ["--set", "fp16=false"] if half else []  # a CPU does not compute in it
    said = cli_in(here.folder, *given, file, "--model", model_of(example), "--dry-run", "--json", *more)
    assert json.loads(said)["steps"] == STEPS[file]


@pytest.mark.slow
@pytest.mark.usefixtures("one_process")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("example", "made", "short", "export"),
    [
        ("llama_factory", "saves/llama3-8b/lora/sft/checkpoint-6", [], []),
        ("ms_swift_agent", "output/checkpoint-2", ["--set", "max_steps=2"], ["--layout", "original"]),
    ],
)
def test_an_example_becomes_a_model_that_answers(
    walk: Callable[[str], Walk],
    model_of: Callable[[str], Path],
    example: str,
    made: str,
    short: list[str],
    export: list[str],
) -> None:
    """Those of ChatGLM3 and CogAgent do in tests of their own."""
    here = walk(example)
    here.to(len(here.blocks) - 1)
    command = next(command for name, command in RUNS if name == example)
    cli_in(here.folder, *command.split()[1:], "--model", model_of(example), *short)
    cli_in(here.folder, "export", made, "exported", *export)
    said = cli_in(here.folder, "chat", "exported", "--json", "--max-new-tokens", 3, typed="你是谁?\n")
    assert json.loads(said)["new_tokens"] > 0
    if export:
        kept = (model_of(example) / "config.json").read_bytes()
        assert (here.folder / "exported" / "config.json").read_bytes() == kept
