"""The exported folder behind `transformers serve`, asked by the openai client, as docs/after-training.md says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.agent import FIRE, SYSTEM, Agent, checkpoint
from tests.support.serve import SECONDS, serving
from trainer.models.pretrained import load_model
from trainer.use.checkpoint import open_checkpoint
from trainer.use.export import export

openai = pytest.importorskip("openai", reason="needs the openai client")
for _needed in ("fastapi", "uvicorn"):
    pytest.importorskip(_needed, reason="needs transformers[serving]")

ROOT = Path(__file__).resolve().parent.parent
ASKED = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Is /tmp/1.jpg on fire?"}]


@pytest.fixture(scope="module")
def server(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Serve an export on a free port of the loopback; return its address and the folder it was started in."""
    folder = tmp_path_factory.mktemp("served")
    export(open_checkpoint(checkpoint(agent, folder, load_model(agent.model))), folder / "exported")
    with serving(folder / "exported") as address:
        yield address, folder


@pytest.fixture
def client(server: tuple[str, Path]) -> Iterator[Any]:
    with openai.OpenAI(base_url=server[0], api_key="EMPTY", timeout=SECONDS, max_retries=0) as opened:
        yield opened


@pytest.mark.slow
def test_a_chat_ends_at_the_stop_of_the_template(client: Any) -> None:
    model = client.models.list().data[0].id
    said = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "2 + 2?"}], temperature=0, max_tokens=60
    ).choices[0]  # fmt: skip
    assert (said.message.content, said.finish_reason) == ("4, of course.", "stop")


@pytest.mark.slow
def test_a_stop_word_ends_a_reply_and_replies_are_streamed(client: Any) -> None:
    model = client.models.list().data[0].id
    asked = {"model": model, "messages": ASKED, "temperature": 0, "max_tokens": 80, "stop": ["Observation:"]}
    said = client.chat.completions.create(**asked).choices[0].message.content
    assert said.removesuffix("Observation:") == FIRE[0].removesuffix("Observation:")
    pieces = [
        chunk.choices[0].delta.content
        for chunk in client.chat.completions.create(stream=True, **asked)
        if chunk.choices
    ]
    assert "".join(filter(None, pieces)) == said and len(pieces) > 5


@pytest.mark.slow
def test_the_documented_agent_loop_works_as_it_stands(
    server: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(server[1])
    text = (ROOT / "docs" / "after-training.md").read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "client.completions" in c)
    names: dict[str, Any] = {}
    exec(code.replace("http://localhost:8000/v1", server[0]), names)
    seen: list[str] = []
    reply = names["agent"](ASKED, lambda reply: seen.append(reply) or FIRE[1].strip())
    names["client"].close()
    assert reply == "".join(FIRE)
    assert seen == [FIRE[0].removesuffix("Observation:")]
