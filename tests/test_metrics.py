"""Scores of predictions, against formulas written from their papers and the numbers of the usual evaluation scripts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest

from trainer.predict.metrics import calls, language, score, text_scores


def bleu(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Sentence BLEU-4 with NIST smoothing: a missing order counts 1/2, the next 1/4, ... of one n-gram.

    Papineni et al. 2002; smoothing 3 of Chen and Cherry 2014, which is NLTK's method3.
    """
    logs, halving = [], 1.0
    for n in range(1, 5):
        grams = [Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1)) for text in (said, wanted)]
        total, hits = grams[0].total(), (grams[0] & grams[1]).total()
        if not hits:
            halving /= 2
        logs.append(math.log((hits or halving) / total))
    return 100 * math.exp(sum(logs) / 4) * min(1.0, math.exp(1 - len(wanted) / len(said)))


def rouge(said: Sequence[str], wanted: Sequence[str], n: int) -> float:
    """F-measure over distinct n-grams, as pltrdy/rouge and rouge_chinese count them."""
    one, two = ({tuple(text[i : i + n]) for i in range(len(text) - n + 1)} for text in (said, wanted))
    precision, recall = len(one & two) / len(one), len(one & two) / len(two)
    return 100 * 2 * precision * recall / (precision + recall + 1e-8)


def test_bleu_is_over_characters_in_chinese_and_over_words_in_english() -> None:
    said, wanted = "这件上衣很显瘦", "这件衬衫非常显瘦"
    assert text_scores(said, wanted)["bleu-4"] == pytest.approx(bleu(list(said), list(wanted)))
    said, wanted = "the cat sat on a mat .", "the cat is on the mat ."
    assert text_scores(said, wanted)["bleu-4"] == pytest.approx(bleu(said.split(), wanted.split()))


def test_rouge_is_over_jiebas_words() -> None:
    said, wanted = ["上衣", "非常", "显瘦"], ["这件", "上衣", "显瘦", "非常"]
    scores = text_scores("".join(said), "".join(wanted))
    assert scores["rouge-1"] == pytest.approx(rouge(said, wanted, 1))
    assert scores["rouge-2"] == pytest.approx(rouge(said, wanted, 2)) == 0
    precision, recall = 2 / 3, 2 / 4  # longest common subsequence: 上衣 显瘦, or 上衣 非常
    assert scores["rouge-l"] == pytest.approx(100 * 2 * precision * recall / (precision + recall), rel=1e-4)


def test_the_same_text_has_every_point_however_short() -> None:
    for text in ("4", "好", "Yes.", "上衣显瘦", "a b c d e"):
        scores = text_scores(text, text)
        assert scores["bleu-4"] == pytest.approx(100) and scores["rouge-1"] == pytest.approx(100)


def test_an_empty_prediction_has_no_points() -> None:
    assert set(text_scores(" \n", "好的").values()) == set(text_scores("好的", "").values()) == {0.0}


def test_a_set_of_both_languages_is_scored_by_language_too() -> None:
    found = score(["上衣显瘦", "no idea"], ["上衣显瘦", "the cat"])
    assert found["zh/bleu-4"] == pytest.approx(100)
    assert found["en/rouge-1"] == 0
    assert found["rouge-1"] == pytest.approx(50)
    assert set(score(["a"], ["a"])) == {"bleu-4", "rouge-1", "rouge-2", "rouge-l"}
    assert score([], []) == {}


def test_the_language_is_that_of_most_words() -> None:
    assert [language(t) for t in ("使用 API 调用", "Call the API 调", "42")] == ["zh", "en", "en"]


REACT = "Thought: look\nAction: fire_recognition\nAction Input: {'image': '/tmp/1.jpg'}\nObservation:"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (REACT, [("fire_recognition", {"image": "/tmp/1.jpg"})]),
        ('Action: f\nAction Input: {"a": [1, null]}\nFinal Answer: x', [("f", {"a": [1, None]})]),
        ("Action: f\nAction Input: /tmp/1.jpg\n", [("f", "/tmp/1.jpg")]),
        ("Action: f\nAction Input:\nObservation: a\nAction: g\nAction Input: {}", [("f", {}), ("g", {})]),
        ("I would write Action: f in a line\nAction Input: 1", []),
        ('<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', [("f", {"a": 1})]),
        ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>\n<tool_call>no', [("f", {}), ("", "no")]),
        ('[TOOL_CALLS] [{"name": "f", "arguments": {}}, {"name": "g"}]', [("f", {}), ("g", {})]),
        ('get_weather\n{"city": "卑尔根"}', [("get_weather", {"city": "卑尔根"})]),
        ("track\n```python\ntool_call(symbol='10111', n=2)\n```", [("track", {"symbol": "10111", "n": 2})]),
        ("Rain in Bergen.", []),
    ],
)  # fmt: skip
def test_calls_are_read_from_every_layout(text: str, wanted: list[tuple[str, object]]) -> None:
    assert list(calls(text)) == wanted


def test_arguments_match_as_json_values() -> None:
    wanted = 'Action: f\nAction Input: {"a": 1, "b": [true]}\nObservation:'
    same = "Thought: hm\nAction: f\nAction Input: {'b': [True], 'a': 1.0}\nObservation:"
    other = same.replace("True", "1")
    name = same.replace("Action: f", "Action: g")
    found = score([same, other, name, "no call", "text"], [wanted] * 4 + ["no call here"])
    assert (found["action_match"], found["argument_match"], found["calls"]) == (50, 25, 4)


def test_nothing_a_model_writes_breaks_the_reader_of_calls() -> None:
    for text in ("[" * 20_000, "{'a': " * 1000, "\0", "(" * 500, "9" * 5000, "{1: 2, (3,): {4}}"):
        found = score([f"Action: f\nAction Input: {text}"], ["Action: f\nAction Input: {}"])
        assert found["argument_match"] == 0
