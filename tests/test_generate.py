"""predict_with_generate: a model that knows the rows by heart predicts the references, alone or as one of several."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from schemas.errors import UsageError
from tests.support.agent import FIRE, Agent
from tests.support.tiny import greedy, lora, qwen2, row, strong_prefix
from trainer.models.pretrained import load_model, load_tokenizer
from trainer.predict.generate import ReplyPrompt, predict, predict_with_generate, prompts, stop_ids, stop_words


@pytest.fixture(scope="module")
def model(agent: Agent) -> Any:
    return load_model(agent.model)


@pytest.fixture(scope="module")
def tokenizer(agent: Agent) -> Any:
    return load_tokenizer(agent.set / "tokenizer")


@pytest.fixture(scope="module")
def wanted(agent: Agent) -> list[ReplyPrompt]:
    return [prompt for r in agent.rows for prompt in prompts(r)]


def settings(agent: Agent) -> dict[str, Any]:
    return {"stops": stop_ids(agent.manifest), "words": stop_words(agent.manifest), "max_new_tokens": 80}


def provenance(**more: Any) -> dict[str, Any]:
    return {"dataset": "d", "file": "f", "row": 3, "part": 0, "images": [], "videos": []} | more


def test_every_stretch_of_trained_tokens_is_asked_for_after_all_before_it() -> None:
    given = row([1, 2, 3, 4, 5, 6, 7], 2, seq_lens=[7], **provenance())
    given["labels"][4] = -100
    found = list(prompts(given))
    assert [(p.prompt_ids, p.reference_ids, p.reply) for p in found] == [
        ([1, 2], [3, 4], 0),
        ([1, 2, 3, 4, 5], [6, 7], 1),
    ]


def test_a_pack_is_its_sequences() -> None:
    one = provenance(dataset=["a", "b"], file=["f", "g"], row=np.array([1, 2]), part=[0, 5])
    given = row([1, 2, 3, 4, 5, 6], 6, seq_lens=[3, 3], **one)
    given["labels"][2], given["labels"][3], given["labels"][5] = 3, 4, 6
    found = list(prompts(given))
    assert [(p.prompt_ids, p.reference_ids, p.dataset, p.row, p.part, p.reply) for p in found] == [
        ([1, 2], [3], "a", 1, 0, 0),
        ([4, 5], [6], "b", 2, 5, 1),  # 4 is trained too, and has nothing before it
    ]


def test_rows_with_images_are_refused() -> None:
    with pytest.raises(UsageError, match="images"):
        list(prompts(row([1, 2], 1, seq_lens=[2], **provenance(images=[{"uri": "a.jpg"}]))))


def test_the_stop_word_is_the_keyword_whose_content_is_not_trained(agent: Agent) -> None:
    assert stop_words(agent.manifest) == ["Observation:"]
    assert stop_words({"datasets": [{"policy": {"name": "none"}}]}) == []
    assert stop_ids(agent.manifest) == [8002]  # <|im_end|>


def test_a_model_that_knows_the_rows_predicts_the_references(
    agent: Agent, model: Any, tokenizer: Any, wanted: list[ReplyPrompt]
) -> None:
    found = predict(model, tokenizer, wanted, batch_size=3, **settings(agent))
    assert len(found) == 5
    assert [p.prediction for p in found] == [p.reference for p in found]
    assert {FIRE[0], FIRE[2], "不客气。", "4, of course.", "我是一个小模型。"} == {p.prediction for p in found}
    assert all(p.stopped for p in found)


def test_a_batch_padded_on_the_left_is_its_prompts_one_by_one(
    agent: Agent, tokenizer: Any, wanted: list[ReplyPrompt]
) -> None:
    model, short = qwen2(8005), settings(agent) | {"max_new_tokens": 6}
    whole = predict(model, tokenizer, wanted, batch_size=8, **short)
    assert whole == [p for one in wanted for p in predict(model, tokenizer, [one], batch_size=1, **short)]
    assert not any(p.stopped for p in whole)


def test_the_model_is_in_the_mode_it_was_in(
    agent: Agent, model: Any, tokenizer: Any, wanted: list[ReplyPrompt]
) -> None:
    model.train()
    model.lm_head.eval()
    predict(model, tokenizer, wanted[:1], **settings(agent))
    assert model.training and not model.lm_head.training
    model.eval()


def test_predictions_are_lines_of_json_and_scored(agent: Agent, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    scores = predict_with_generate(model, tokenizer, agent.rows, agent.manifest, path, max_new_tokens=80)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 5 and all(line["prediction"] == line["reference"] for line in lines)
    assert set(lines[0]) == {"prompt", "prediction", "reference", "stopped", "dataset", "file", "row", "part", "reply"}
    assert lines[0]["dataset"] == "chats" and [p.name for p in tmp_path.iterdir()] == ["predictions.jsonl"]
    assert scores["action_match"] == scores["argument_match"] == 100 and scores["calls"] == 1
    assert scores["bleu-4"] == pytest.approx(100) and scores["zh/rouge-l"] == pytest.approx(100)


RANK = """
import json, sys, torch
from trainer.predict.generate import *
from trainer.models.pretrained import load_model, load_tokenizer
torch.set_num_threads(1)
rank, meet, model, tokenizer, wanted = int(sys.argv[1]), *sys.argv[2:]
torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
wanted = [ReplyPrompt(**one) for one in json.loads(wanted)]
done = []
found = predict(load_model(Path(model)), load_tokenizer(Path(tokenizer)), wanted, stops=[8002], words=["Observation:"],
                max_new_tokens=80, batch_size=2, progress=lambda *at: done.append(at))
print(json.dumps([[p.prediction for p in found], done]))
torch.distributed.destroy_process_group()
"""


def test_two_processes_share_the_prompts_and_both_have_all(
    agent: Agent, wanted: list[ReplyPrompt], tmp_path: Path
) -> None:
    given = json.dumps([vars(prompt) for prompt in wanted])  # five: one process has one more
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    places = [str(tmp_path / "meet"), str(agent.model), str(agent.set / "tokenizer"), given]
    ranks = [
        subprocess.Popen([*command, str(rank), *places], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=60) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], said
    (one, done), (two, done_too) = (json.loads(out) for out, _ in said)
    tokenizer = load_tokenizer(agent.set / "tokenizer")
    assert one == two == [tokenizer.decode([i for i in p.reference_ids if i != 8002]) for p in wanted]
    assert done == done_too == [[2, 3], [3, 3]]  # as many batches each


def test_a_prefix_is_not_lost_when_the_model_writes(agent: Agent, tokenizer: Any, wanted: list[ReplyPrompt]) -> None:
    model = strong_prefix(load_model(agent.model))
    found = predict(model, tokenizer, wanted[:2], stops=[8002], max_new_tokens=5)
    assert [p.prediction for p in found] == [tokenizer.decode(greedy(model, p.prompt_ids, 5)) for p in wanted[:2]]
    assert found[0].prediction != found[0].reference


SMALL = {
    "vocab_size": 8005, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip


@pytest.mark.parametrize("name", ["Glm", "Llama", "Qwen2", "Gemma3"])
def test_prompts_after_a_prefix_begin_where_they_began_in_training(
    agent: Agent, tokenizer: Any, wanted: list[ReplyPrompt], name: str
) -> None:
    """In a batch of several lengths, as each alone: a pass over all tokens for each one, as in training."""
    torch.manual_seed(3)
    heads = {"head_dim": 16} if name in ("Glm", "Gemma3") else {}
    heads |= {"sliding_window": 8, "num_hidden_layers": 6} if name == "Gemma3" else {}  # the last one sees all
    config = getattr(transformers, {"Gemma3": "Gemma3TextConfig"}.get(name, f"{name}Config"))(**SMALL | heads)
    model = strong_prefix(getattr(transformers, f"{name}ForCausalLM")(config).eval())
    model.config.use_cache = False  # as in training
    found = predict(model, tokenizer, wanted, batch_size=8, **settings(agent) | {"max_new_tokens": 6, "stops": [0]})
    assert [p.prediction for p in found] == [tokenizer.decode(greedy(model, p.prompt_ids, 6)) for p in wanted]


def test_generation_knows_the_rows_of_a_lora_model_too(agent: Agent, tokenizer: Any, wanted: list[ReplyPrompt]) -> None:
    adapted = lora(load_model(agent.model))
    found = predict(adapted, tokenizer, wanted[:2], **settings(agent))
    assert [p.prediction for p in found] == [p.reference for p in found]
    assert isinstance(adapted.training, bool) and torch.is_grad_enabled()
