"""The document's ChatGLM3 from its examples to a chat: compiled, trained by its own files, exported in both layouts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import trainer.models
from cli import main
from tests.support.command import runner
from tests.support.documents import FILES
from tests.support.original import save_original
from tests.support.serve import serving
from tests.support.sets import rows
from tests.support.shared import shared
from tests.support.trained import compile_set
from trainer.models.pretrained import load_model

Run = Callable[..., Result]
EXAMPLE = Path(__file__).parent.parent / "examples" / "chatglm3"
SMALL = {
    "use_cpu": "true", "max_steps": 2, "eval_steps": 2, "generation_max_new_tokens": 3, "per_device_eval_batch_size": 2,
}  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]


@dataclass
class Here:
    folder: Path
    model: Path
    data: Path


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("chatglm3")
    sizes = {"padded_vocab_size": 65024, "seq_length": 8192}
    model = save_original(folder / "chatglm3-6b", "chatglm3", shared("tokenizers", "chatglm3"), **sizes)
    given = ["--tokenizer", model, "--template", "chatglm3", "--val-size", 2, "--no-shuffle"]
    data = compile_set(folder / "set", EXAMPLE / "chat.json", EXAMPLE / "tool_chat.json", *given)
    return Here(folder, model, data)


@pytest.fixture(scope="module")
def trained(here: Here) -> dict[str, Path]:
    """The checkpoints of the document's three files."""
    found = {}
    for name in ("lora", "ptuning_v2", "sft"):
        out = here.folder / name
        changed = [
            f"--set={key}={value}" for key, value in (SMALL | {"output_dir": out, "learning_rate": 1e-2}).items()
        ]
        given = ["train", str(here.data), str(FILES[f"chatglm3_{name}"]), "--model", str(here.model), *changed]
        done = runner().invoke(main, given)
        assert done.exit_code == 0, done.stderr
        assert "'<|assistant|>'" in done.stderr  # the first sequence, in words
        predicted = [json.loads(line) for line in (out / "predictions-2.jsonl").read_text("utf-8").splitlines()]
        assert predicted and all("<|assistant|>" in one["prompt"] for one in predicted)
        found[name] = out / "checkpoint-2"
    return found


@pytest.mark.parametrize("name", ["lora", "sft"])
def test_both_layouts_say_the_same(here: Here, trained: dict[str, Path], tmp_path: Path, run: Run, name: str) -> None:
    run("export", trained[name], tmp_path / "plain")
    run("export", trained[name], tmp_path / "own", "--layout", "original")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", trust_remote_code=False).eval()
    assert type(plain).__name__ == "GlmForCausalLM"
    ids = torch.tensor([[64790, 64792, 64795, 30910, 13]])
    with torch.no_grad():
        assert torch.equal(trainer.models.load(tmp_path / "own")(ids).logits, plain(ids).logits)
    shapes = {k: t.shape for k, t in load_file(here.model / "model.safetensors").items()}
    assert {k: t.shape for k, t in load_file(tmp_path / "own" / "model.safetensors").items()} == shapes
    for kept in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "own" / kept).read_bytes() == (here.model / kept).read_bytes()
    stops = json.loads((tmp_path / "plain" / "generation_config.json").read_text())["eos_token_id"]
    assert set(stops) == {2, 64795, 64797}  # </s>, <|user|>, <|observation|>


def test_the_exported_tokenizer_and_template_give_the_tokens_of_the_set(
    here: Here, trained: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    said = run("export", trained["lora"], tmp_path / "out").stdout
    assert "It refuses messages with calls" in said
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    chats = [row["conversations"] for row in json.loads((EXAMPLE / "chat.json").read_text("utf-8"))]
    wanted = {
        row["row"]: row["input_ids"]
        for split in ("train", "val") for row in rows(here.data, split) if row["file"].endswith("/chat.json")
        or row["file"] == "chat.json"
    }  # fmt: skip
    assert wanted
    for number, ids in wanted.items():
        messages = [{"role": one["role"], "content": one["content"]} for one in chats[number]]
        assert tokenizer.apply_chat_template(messages, return_dict=False) == ids
    call = {"type": "function", "function": {"name": "track", "arguments": {"user_id": 1}}}
    with pytest.raises(Exception, match="cannot write calls"):
        tokenizer.apply_chat_template([{"role": "assistant", "content": "", "tool_calls": [call]}])


def test_it_chats_merged_and_with_its_prefix(here: Here, trained: dict[str, Path], tmp_path: Path) -> None:
    adapter = ["--adapter", str(trained["ptuning_v2"])]
    for name, layout in (("out", []), ("own", ["--layout", "original"])):
        exported = runner().invoke(main, ["export", str(trained["lora"]), str(tmp_path / name), *layout])
        assert exported.exit_code == 0, exported.stderr
        stops = load_model(tmp_path / name).generation_config.eos_token_id
        assert set(stops) == {2, 64795, 64797}  # </s>, <|user|>, <|observation|>
    for model, more in ((tmp_path / "out", []), (here.model, adapter)):
        asked = ["chat", str(model), *more, "--json", "--max-new-tokens", "4"]
        done = runner().invoke(main, asked, input="你好\n再见\n")
        assert done.exit_code == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2


def test_a_server_answers_chats(trained: dict[str, Path], tmp_path: Path, run: Run) -> None:
    openai = pytest.importorskip("openai", reason="needs the openai client")
    run("export", trained["lora"], tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out", trust_remote_code=False)
    asked = [{"role": "system", "content": "简短"}, {"role": "user", "content": "你好"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    with serving(tmp_path / "out") as address, openai.OpenAI(base_url=address, api_key="EMPTY", timeout=90) as client:
        model = client.models.list().data[0].id
        said = client.chat.completions.create(model=model, messages=asked, temperature=0, max_tokens=4)
    assert said.usage.prompt_tokens == len(ids)
    assert said.choices[0].finish_reason in ("stop", "length")
