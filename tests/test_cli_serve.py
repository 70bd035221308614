"""`cli serve`: an agent's client as seed 003's document prints it, and what a request may have."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

import registry
from schemas.reader import CompiledSet
from tests.support.agent import FIRE, SYSTEM, Agent, checkpoint, compile_set, make
from tests.support.command import outside
from tests.support.eyes import Asked
from tests.support.serve import SECONDS, cli_serve
from tests.support.shared import shared
from trainer.models.pretrained import load_model, load_tokenizer
from trainer.predict.generate import stop_ids
from trainer.use.chat import Chat
from trainer.use.checkpoint import open_checkpoint
from trainer.use.export import export
from trainer.use.tokenizer import copy_tokenizer

openai = pytest.importorskip("openai", reason="needs the openai client")
for _needed in ("starlette", "uvicorn"):
    pytest.importorskip(_needed, reason="needs the extra serve")

ROOT = Path(__file__).resolve().parent.parent
ASKED = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Is /tmp/1.jpg on fire?"}]
OBSERVED = "[{'coordinate': [101.1, 200.9], 'on_fire': True}]"
CALL = (
    "Thought: I need to check if there is fire in the image\nAction: Use fire_recognition API\n"
    "Action Input: /tmp/2.jpg\nObservation:"
)
ANSWER = "Final Answer: There is fire in the image at coordinates [101.1, 200.9]"


def exported(agent: Agent, folder: Path) -> Path:
    export(open_checkpoint(checkpoint(agent, folder, load_model(agent.model))), folder / "exported")
    return folder / "exported"


# -- the document's client --


@pytest.fixture(scope="module")
def script() -> str:
    """The client of the document. Its indentation was lost in the copy: the line below a `for` is its body."""
    (file,) = shared("seeds").glob("003*.txt")
    text = file.read_text(encoding="utf-8")
    code = text[text.index("from openai import OpenAI") : text.index("## Output:")]
    return re.sub(r"^(for .*:)\n", r"\1\n    ", code, flags=re.MULTILINE)


@pytest.mark.slow
def test_the_client_of_the_document_runs_as_printed(script: str, tmp_path: Path) -> None:
    """Only host and port are other ones. The model has learnt the conversation of the document.

    The client puts the observation on a line of its own. In the other form the stop word's colon is a token of its own.
    """
    names: dict[str, Any] = {}
    exec(script[script.index("system =") : script.index("resp =")], names)
    said = [(one["role"], one["content"]) for one in names["messages"]]
    chats = [[*said, ("assistant", f"{CALL}{space}{OBSERVED}\n{ANSWER}")] for space in (" ", "\n")]
    learnt = make(tmp_path, chats, until=0.01)
    with cli_serve(exported(learnt, tmp_path), "--stop", "Observation:") as address:
        changed = script.replace("http://localhost:8000/v1", address)
        assert changed != script
        done = subprocess.run(
            [sys.executable, "-c", changed], capture_output=True, text=True, timeout=SECONDS, env=outside(), check=False
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = [*names["messages"], {"role": "assistant", "content": f"{CALL}\n{OBSERVED}"}]
    assert done.stdout == f"model_type: exported\nresponse: {CALL}\n{sent}\nresponse: \n{ANSWER}\n"


# -- the documented loop and others, against one server --


@pytest.fixture(scope="module")
def address(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with cli_serve(exported(agent, tmp_path_factory.mktemp("served"))) as found:
        yield found


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    with openai.OpenAI(base_url=address, api_key="EMPTY", timeout=SECONDS, max_retries=0) as opened:
        yield opened


@pytest.mark.slow
def test_the_documented_agent_works_as_it_stands(address: str) -> None:
    text = (ROOT / "docs" / "after-training.md").read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "chat.completions" in c)
    names: dict[str, Any] = {}
    exec(code.replace("http://localhost:8000/v1", address), names)
    seen: list[str] = []
    assert names["agent"](ASKED, lambda reply: seen.append(reply) or FIRE[1].strip()) == "".join(FIRE)
    names["client"].close()
    assert seen == [FIRE[0]]


@pytest.mark.slow
def test_a_reply_ends_by_itself_and_every_piece_of_a_stream_has_a_text(client: Any) -> None:
    asked = {
        "model": "exported",
        "messages": [{"role": "user", "content": "2 + 2?"}],
        "n": 1,
        "user": "me",
        "stop": None,
    }
    whole = client.chat.completions.create(**asked)
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("4, of course.", "stop")
    *pieces, counts = client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    assert "".join(piece.choices[0].delta.content for piece in pieces) == "4, of course."
    assert [piece.choices[0].finish_reason for piece in pieces[-2:]] == [None, "stop"]
    assert (counts.choices, counts.usage) == ([], whole.usage)
    short = client.chat.completions.create(max_tokens=2, **asked)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 2)


@pytest.mark.slow
def test_drawn_replies_depend_on_the_seed_of_the_request(client: Any) -> None:
    asked = {"model": "exported", "messages": ASKED, "temperature": 3, "max_tokens": 8}
    one, other, again = (
        client.chat.completions.create(seed=seed, **asked).choices[0].message.content for seed in (1, 2, 1)
    )
    assert one == again != other


@pytest.mark.slow
def test_a_client_that_leaves_stops_its_reply(client: Any) -> None:
    """Otherwise the next one would wait for all of its tokens, which take minutes."""
    asked = {"model": "exported", "messages": ASKED, "temperature": 3, "seed": 1}
    with client.chat.completions.create(stream=True, max_tokens=30_000, **asked) as stream:
        next(stream)
        next(stream)
    before = time.monotonic()
    assert client.chat.completions.create(max_tokens=2, **asked).usage.completion_tokens == 2
    assert time.monotonic() - before < 20


# -- in this process --


class Knows:
    """Stands for a model that knows a row by heart: asked what stands in it, it writes the trained rest."""

    def __init__(self, model: Any, row: dict[str, Any]) -> None:
        self.config, self.device, self.row = model.config, model.device, row

    def generate(self, input_ids: torch.Tensor, streamer: Any, **_: object) -> torch.Tensor:
        at = input_ids.shape[1]
        assert input_ids[0].tolist() == self.row["input_ids"][:at]
        end = next((i for i in range(at, len(self.row["labels"])) if self.row["labels"][i] == -100), None)
        written = self.row["labels"][at:end]
        for part in (input_ids, *torch.tensor(written)):
            streamer.put(part)
        streamer.end()
        return torch.tensor([[*input_ids[0], *written]])


def client_of(chat: Chat) -> Callable[..., Any]:
    from starlette.testclient import TestClient

    from trainer.use.serve import serve

    found = TestClient(serve(chat, "tiny"))
    return lambda **given: found.post("/v1/chat/completions", json={"model": "tiny", "messages": ASKED} | given)


@pytest.mark.parametrize("template", ["auto", "chatglm3"])
def test_what_the_model_sees_is_what_it_saw_in_training(agent: Agent, tmp_path: Path, template: str) -> None:
    """ChatGLM3 writes a line break before its replies, which messages do not have."""
    turns = [("system", SYSTEM), ("user", ASKED[1]["content"]), ("assistant", "".join(FIRE))]
    tokenizer = registry.DEMO_TOKENIZER if template == "auto" else shared("tokenizers", template)
    data = compile_set(tmp_path, "--tokenizer", str(tokenizer), "--template", template, chats=[turns])
    opened = CompiledSet.open(data)
    here = Agent(data, opened.manifest, list(opened.rows("train")), agent.model)
    model = load_model(agent.model)
    copy_tokenizer(open_checkpoint(checkpoint(here, tmp_path, model)), tmp_path / "exported")
    chat = Chat(Knows(model, here.rows[0]), load_tokenizer(tmp_path / "exported"), stop_ids(opened.manifest))
    ask = client_of(chat)
    choice = ask(stop="Observation:").json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (FIRE[0], "stop")
    for ended in ("", "\n"):
        reply = {"role": "assistant", "content": FIRE[0] + FIRE[1].rstrip() + ended}
        choice = ask(stop="Observation:", messages=[*ASKED, reply]).json()["choices"][0]
        assert reply["content"] + choice["message"]["content"] == "".join(FIRE)


def test_a_token_that_goes_beyond_a_stop_word_is_cut_there() -> None:
    from trainer.use.serve import _Task

    task = _Task(Chat(None, None, [], words=["Observation:", "End"]), None, "", "")
    assert task.visible("Action: a\nObservation:\n[ End") == "Action: a\nObservation:"
    assert task.visible("Action: a\nObs") == "Action: a\nObs"


@pytest.fixture
def ask(agent: Agent) -> Callable[..., Any]:
    """A function that sends a request to a server in this process."""
    tokenizer = load_tokenizer(agent.set / "tokenizer")
    return client_of(Chat(Asked(load_model(agent.model), 8000), tokenizer, [8002, 8000]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n": 2}, "the request#/n: 1 was expected"),
        ({"frequency_penalty": 0.5}, "the request#/frequency_penalty: 0 was expected"),
        ({"tools": []}, "'tools' was unexpected"),
        ({"top_k": 3}, "did you mean 'top_p'?"),
        ({"top_p": 0.5}, "nothing is drawn at temperature 0"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens has another value"),
        ({"max_tokens": 40000, "stream": True}, "are more than the model's 32,768"),
        ({"seed": True}, "the request#/seed: True is not of type 'integer'"),
        ({"model": "other"}, "expected the model 'tiny', found 'other'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "the request#/messages/0/role: 'tool' is not one of"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "expected a message before the reply, found none"),
        ({"messages": [ASKED[1] | {"tool_calls": [{}]}]}, "'tool_calls' was unexpected"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "the request#/messages/0/content/0/type: 'text' was expected",
        ),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_what_a_request_cannot_have_is_an_error_of_openai(
    ask: Callable[..., Any], given: dict[str, Any], said: str
) -> None:
    answer = ask(**given)
    assert answer.status_code == (404 if "model" in given else 400)
    error = answer.json()["error"]
    assert said in error["message"] and error["type"] == "invalid_request_error"


def test_a_port_in_use_is_said_before_the_model_is_loaded(run: Callable[..., Result], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = run("serve", tmp_path / "none", "--port", port, code=5).stderr
    assert f"--host 127.0.0.1 --port {port}: Address already in use" in said
