"""`cli chat`: replies in the model's own template, observations that the user types, and what the terminal shows."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from cli import main
from schemas.errors import Problem
from tests.support.agent import FIRE, SYSTEM, Agent, checkpoint, compile_set
from tests.support.command import runner
from tests.support.tiny import greedy, lora, qwen2, strong_prefix
from trainer.models.pretrained import load_model, load_tokenizer
from trainer.use.chat import Chat, ChatReply, _Stream, converse
from trainer.use.checkpoint import open_checkpoint
from trainer.use.export import export

QUESTION, OBSERVATION = "Is /tmp/1.jpg on fire?", "[{'on_fire': True}]"


@pytest.fixture(scope="module")
def exported(agent: Agent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export(open_checkpoint(checkpoint(agent, folder, load_model(agent.model))), folder / "out")
    return folder / "out"


@pytest.fixture
def talk(exported: Path) -> Callable[..., Result]:
    def invoke(typed: str, *arguments: object, model: Path = exported, code: int = 0) -> Result:
        given = ["chat", str(model), *map(str, arguments)]
        result = runner().invoke(main, given, input=typed, catch_exceptions=False)
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.stdout}\n{result.stderr}"
        return result

    return invoke


def chat_with(exported: Path, **settings: Any) -> Chat:
    return Chat(load_model(exported), load_tokenizer(exported), [8002, 8000], **settings)


def test_a_model_without_eyes_is_shown_no_picture(talk: Callable[..., Result]) -> None:
    said = talk("/image a.png\nwhat is it\n", code=2).stderr
    assert "/image a.png: a qwen2 model has no eyes; those of " in said
    assert "Chat with a vision model, or leave pictures out." in said


def test_a_picture_that_cannot_be_shown_at_a_terminal_is_a_message_and_the_chat_goes_on(exported: Path) -> None:
    chat, wrong, done = chat_with(exported), list[Problem](), list[ChatReply]()
    converse(chat, ["/image a.png", QUESTION], lambda _: None, done.append, wrong.append)
    assert [problem.exit_code for problem in wrong] == [2]
    assert [message["content"] for message in chat.messages[:1]] == [QUESTION]
    assert len(done) == 1


def test_an_agent_stops_at_observation_and_goes_on_with_what_the_user_types(exported: Path) -> None:
    chat = chat_with(exported, words=["Observation:"])
    chat.system(SYSTEM)
    call = chat.say(QUESTION)
    assert (call.content, call.ended, chat.waits) == (FIRE[0], "word", True)
    answer = chat.say(OBSERVATION)
    assert (answer.content, answer.ended, chat.waits) == (FIRE[2], "stop", False)
    assert chat.messages[-1] == {"role": "assistant", "content": "".join(FIRE)}
    assert chat.say("谢谢").content == "不客气。"


def test_what_the_model_sees_is_what_it_saw_in_training_token_for_token(
    exported: Path, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat, seen = chat_with(exported, words=["Observation:"]), []
    generate = chat.model.generate
    monkeypatch.setattr(chat.model, "generate", lambda **given: seen.append(given["input_ids"]) or generate(**given))
    chat.system(SYSTEM)
    for text in (QUESTION, OBSERVATION, "谢谢"):
        chat.say(text)
    (row,) = (r["input_ids"] for r in agent.rows if len(r["input_ids"]) > 60)
    assert len(seen) == 3
    for ids in seen:
        given = ids[0].tolist()
        assert given == row[: len(given)]


def test_piped_lines_are_answered(talk: Callable[..., Result]) -> None:
    said = talk("2 + 2?\n\n/clear\n你是谁?\n")
    assert said.stdout == "4, of course.\n我是一个小模型。\n"
    assert talk("").stdout == ""


def test_every_reply_is_a_line_of_json(talk: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "prompt.txt").write_text(SYSTEM + "\n", encoding="utf-8")
    said = talk(
        f"{QUESTION}\n{OBSERVATION}\n", "--stop", "Observation:", "--json", "--system", f"@{tmp_path / 'prompt.txt'}"
    )
    replies = [json.loads(line) for line in said.stdout.splitlines()]
    assert [(r["content"], r["ended"]) for r in replies] == [(FIRE[0], "word"), (FIRE[2], "stop")]
    assert replies[1]["prompt_tokens"] > replies[0]["prompt_tokens"] + replies[0]["new_tokens"]


def test_commands_and_continued_lines(talk: Callable[..., Result]) -> None:
    assert talk(f"/system {SYSTEM}\n{QUESTION}\n/exit\nignored\n", "--stop", "Observation:").stdout == FIRE[0] + "\n"
    assert (
        json.loads(talk("2 + \\\n2?\n", "--json").stdout)["prompt_tokens"]
        > json.loads(talk("2 + 2?\n", "--json").stdout)["prompt_tokens"]
    )
    assert talk("2 + 2?\\\n").stdout == "4, of course.\n"  # the input ends within a continued line


def test_a_reply_that_was_cut_says_so(talk: Callable[..., Result]) -> None:
    said = talk("2 + 2?\n", "--max-new-tokens", "2")
    assert said.stderr.endswith("[cut after --max-new-tokens 2]\n")
    assert json.loads(talk("2 + 2?\n", "--max-new-tokens", "2", "--json").stdout)["ended"] == "length"


def test_drawn_replies_depend_on_the_seed_alone(talk: Callable[..., Result]) -> None:
    hot = ("--temperature", "3", "--max-new-tokens", "8")
    one, again, other = (talk("2 + 2?\n", *hot, "--seed", seed).stdout for seed in (1, 1, 2))
    assert one == again != other


def test_an_adapter_is_put_on_its_model(agent: Agent, talk: Callable[..., Result], tmp_path: Path) -> None:
    path = checkpoint(agent, tmp_path, lora(load_model(agent.model)))
    assert talk("2 + 2?\n", "--adapter", path, model=agent.model).stdout == "4, of course.\n"
    assert "cli chat MODEL --adapter" in talk("", model=path, code=2).stderr


def test_an_adapter_is_asked_in_the_template_it_was_trained_with(
    agent: Agent, talk: Callable[..., Result], tmp_path: Path
) -> None:
    carded = compile_set(tmp_path, "--template", "qwen")
    other = Agent(carded, json.loads((carded / "manifest.json").read_text(encoding="utf-8")), [], agent.model)
    path = checkpoint(other, tmp_path, lora(load_model(agent.model)))
    asked = [json.loads(talk("2 + 2?\n", "--adapter", p, "--json", model=agent.model).stdout)["prompt_tokens"]
             for p in (path, checkpoint(agent, tmp_path, lora(load_model(agent.model)), step=8))]  # fmt: skip
    system = load_tokenizer(carded / "tokenizer")("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert asked[0] == asked[1] + len(system["input_ids"])
    carded.rename(tmp_path / "moved")
    assert "--set" in talk("", "--adapter", path, model=agent.model, code=5).stderr
    talk("2 + 2?\n", "--adapter", path, "--set", tmp_path / "moved", model=agent.model)


def test_a_prefix_is_put_on_its_model(agent: Agent, talk: Callable[..., Result], tmp_path: Path) -> None:
    prefix = strong_prefix(load_model(agent.model))
    path, tokenizer = checkpoint(agent, tmp_path, prefix), load_tokenizer(agent.set / "tokenizer")
    said = json.loads(talk("2 + 2?\n", "--adapter", path, "--json", "--max-new-tokens", 5, model=agent.model).stdout)
    chat = [{"role": "user", "content": "2 + 2?"}]
    wanted = greedy(prefix, list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)), 5)
    assert said["content"] == tokenizer.decode(wanted) != "4, of course."


def test_what_cannot_be_talked_with_is_named(talk: Callable[..., Result], agent: Agent, tmp_path: Path) -> None:
    assert "no such folder" in talk("", model=tmp_path / "gone", code=5).stderr
    assert "no config.json" in talk("", model=tmp_path, code=5).stderr
    assert "there is no tokenizer" in talk("hi\n", model=agent.model, code=5).stderr  # weights alone
    broken = tmp_path / "broken"
    qwen2().save_pretrained(broken)
    (broken / "model.safetensors").write_bytes(b"no")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (broken / name).write_bytes((agent.set / "tokenizer" / name).read_bytes())
    assert "model.safetensors: cannot be read" in talk("hi\n", model=broken, code=5).stderr


def test_a_model_without_a_chat_template_is_refused_in_words(
    talk: Callable[..., Result], exported: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(exported, tmp_path / "plain")
    config = tmp_path / "plain" / "tokenizer_config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    del settings["chat_template"]
    config.write_text(json.dumps(settings), encoding="utf-8")
    assert "no chat template" in talk("hi\n", model=tmp_path / "plain", code=2).stderr


def test_more_than_the_model_takes_is_refused_in_words(talk: Callable[..., Result]) -> None:
    said = talk("2 + 2?\n", "--max-new-tokens", 1_000_000, code=2)
    assert "32,768" in said.stderr and "/clear" in said.stderr


def test_text_is_shown_when_its_characters_are_complete(agent: Agent) -> None:
    tokenizer, shown = load_tokenizer(agent.set / "tokenizer"), []
    stream = _Stream(tokenizer, [8002], shown.append)
    text = "火🔥 fire 𠮷"
    ids = tokenizer(text)["input_ids"]
    assert len(ids) > len(text.split())
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for token in [*ids, 8002]:
        stream.put(torch.tensor([token]))
    stream.end()
    assert "".join(shown) == text
    assert len([part for part in shown if part]) > 2 and not any("\ufffd" in part for part in shown)


ENVIRONMENT = os.environ | {"PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_a_pipe_into_the_real_command_works(exported: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cli", "chat", str(exported)],
        input="2 + 2?\n/clear\n你是谁?\n", capture_output=True, text=True, encoding="utf-8", timeout=120,
        env=ENVIRONMENT | {"PYTHONIOENCODING": "utf-8"}, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "4, of course.\n我是一个小模型。\n"), done.stderr


def test_a_terminal_is_asked_for_observations(exported: Path) -> None:
    controller, terminal = pty.openpty()
    command = [sys.executable, "-m", "cli", "chat", str(exported), "--stop", "Observation:", "--system", SYSTEM]
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=subprocess.DEVNULL, env=ENVIRONMENT | {"TERM": "dumb"}
    )
    os.close(terminal)

    def until(mark: str, seconds: float = 90) -> str:
        text, end = b"", time.monotonic() + seconds
        while mark.encode() not in text:
            left = end - time.monotonic()
            assert left > 0 and select.select([controller], [], [], left)[0], text.decode(errors="replace")
            text += os.read(controller, 4096)
        return text.decode(errors="replace")

    try:
        until(">>> ")
        os.write(controller, f"{QUESTION}\n".encode())
        until("Observation: ")  # the prompt after the model's own word, which has no space behind it
        os.write(controller, f"{OBSERVATION}\n".encode())
        assert "Final Answer: " in until(">>> ")
        os.write(controller, b"\x04")  # end of input
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(controller)
