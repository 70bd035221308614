"""Scores of predictions against references: BLEU-4 and ROUGE for Chinese and English, and whether calls match.

Scores are means over rows, times 100. BLEU is over characters (Chinese) or words, ROUGE over words, with Chinese cut by
jieba. ROUGE is the one of ChatGLM3, CogAgent and LLaMA-Factory (rouge_chinese on jieba's words), for English too. BLEU
is theirs (sentence BLEU with NIST smoothing) for replies of four or more tokens. For a correct "4" theirs gives 35,
this one 100, since it counts only the n-gram orders that a reply has.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
_LATIN_WORD = re.compile(r"[A-Za-z]+")
_ORDERS = ("rouge-1", "rouge-2", "rouge-l")


def score(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The scores of predictions against references, by name: text scores, then scores of calls.

    `bleu-4`, `rouge-1`, `rouge-2`, `rouge-l` over all rows; if there are rows in both languages, also with the prefixes
    `zh/` and `en/` over the rows of each. If references have calls: `action_match` and `argument_match`, the shares of
    those references times 100, and `calls`, the number of those references.
    """
    rows = [(language(wanted), text_scores(said, wanted)) for said, wanted in zip(predictions, references, strict=True)]
    languages = sorted({name for name, _ in rows})
    found: dict[str, float] = {}
    for group in ["", *languages] if len(languages) > 1 else [""]:
        chosen = [scores for name, scores in rows if group in ("", name)]
        for metric in ("bleu-4", *_ORDERS) if chosen else ():
            found[f"{group}/{metric}".strip("/")] = sum(scores[metric] for scores in chosen) / len(chosen)
    return found | call_scores(predictions, references)


def language(text: str) -> str:
    """The language: "zh" for text with more Han characters than Latin words, else "en" (words separated by spaces)."""
    return "zh" if len(HAN.findall(text)) > len(_LATIN_WORD.findall(text)) else "en"


def text_scores(prediction: str, reference: str) -> dict[str, float]:
    """BLEU-4 and ROUGE F-measures of one row, 0 to 100; 0 for an empty text."""
    chinese = language(reference) == "zh"
    said, wanted = (_tokens(text, chinese) for text in (prediction, reference))
    if not said or not wanted:
        return dict.fromkeys(("bleu-4", *_ORDERS), 0.0)
    scores = {"bleu-4": _bleu().sentence_score(" ".join(said), [" ".join(wanted)]).score}
    rouge = _rouge().get_scores(*(_words(text, chinese) for text in (prediction, reference)))[0]
    return scores | {name: rouge[name]["f"] * 100 for name in _ORDERS}


def _tokens(text: str, chinese: bool) -> list[str]:
    """The characters of Chinese text without spaces; the words and signs of other text, in lower case."""
    return [char for char in text if not char.isspace()] if chinese else re.findall(r"\w+|[^\w\s]", text.lower())


def _words(text: str, chinese: bool) -> str:
    """The words of a text, separated by spaces; lines are kept, since ROUGE-L compares line by line."""
    if not chinese:
        return "\n".join(" ".join(_tokens(line, chinese)) for line in text.splitlines())
    import rjieba  # jieba's dictionary and algorithm, without its cache file in /tmp

    return " ".join(rjieba.cut(text))


@cache
def _bleu() -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="none", smooth_method="exp", effective_order=True)


@cache
def _rouge() -> Any:
    from rouge_chinese import Rouge

    return Rouge(metrics=list(_ORDERS))


# -- calls --

Call = tuple[str, Any]
"""A tool's name and its arguments: the parsed value, or the text if it is neither JSON nor a Python literal."""

_REACT = re.compile(
    r"^Action:[ \t]*(?P<name>.*?)[ \t]*\n+Action Input:(?P<input>.*?)"
    r"(?=^(?:Thought|Action|Action Input|Observation|Final Answer):|\Z)",
    re.MULTILINE | re.DOTALL,
)
_BLOCK = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_LIST = re.compile(r"\[TOOL_CALLS\]\s*(\[.*\])", re.DOTALL)
_NAMED = re.compile(r"\s*([\w.-]+)\n\s*(\{.*\})\s*\Z", re.DOTALL)
_PYTHON = re.compile(r"\s*([\w.-]+)\n\s*```python\n\s*tool_call\((.*)\)\s*```\s*\Z", re.DOTALL)


def call_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`action_match`, `argument_match` and `calls` over the references with calls; {} if there are none.

    The actions of a row match if the same tools are called in the same order; its arguments match if they are equal
    too, as JSON values: the order of keys, spaces and the kind of quotes do not matter.
    """
    pairs = [(list(calls(said)), wanted) for said, text in zip(predictions, references, strict=True)
             if (wanted := list(calls(text)))]  # fmt: skip
    if not pairs:
        return {}
    names = sum([name for name, _ in said] == [name for name, _ in wanted] for said, wanted in pairs)
    whole = sum(_plain(said) == _plain(wanted) for said, wanted in pairs)
    return {"action_match": 100 * names / len(pairs), "argument_match": 100 * whole / len(pairs), "calls": len(pairs)}


def calls(text: str) -> Iterator[Call]:
    """Yield the calls of a reply: ReAct text, <tool_call> blocks, [TOOL_CALLS], or a name with JSON or Python below.

    These are the layouts of the compiler's templates: ReAct; ChatML, Qwen, Hermes; Mistral; GLM-4; ChatGLM3.
    """
    if found := list(_REACT.finditer(text)):
        yield from ((match["name"], _value(match["input"])) for match in found)
    elif found := list(_BLOCK.finditer(text)):
        yield from (_named_call(_value(match[1])) for match in found)
    elif match := _LIST.search(text):
        listed = _value(match[1])
        yield from map(_named_call, listed if isinstance(listed, list) else [listed])
    elif match := _NAMED.match(text):
        yield match[1], _value(match[2])
    elif match := _PYTHON.match(text):
        yield match[1], _keywords(match[2])


def _named_call(value: Any) -> Call:
    if isinstance(value, dict) and isinstance(value.get("name"), str):
        arguments = value.get("arguments", value.get("parameters", {}))
        return value["name"], _value(arguments) if isinstance(arguments, str) else arguments
    return "", value


def _value(text: str) -> Any:
    text = text.strip()
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text) if text else {}
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    return text


def _keywords(text: str) -> Any:
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        return {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError, AssertionError, RecursionError, MemoryError):
        return text


def _plain(value: Any) -> str:
    """A text that is equal for equal JSON values: 1 equals 1.0 but not true."""

    def whole(part: Any) -> Any:
        if isinstance(part, dict):
            return {str(key): whole(item) for key, item in part.items()}
        if isinstance(part, list | tuple | set):
            return [whole(item) for item in part]
        return int(part) if isinstance(part, float) and part.is_integer() else part

    return json.dumps(whole(value), sort_keys=True, default=repr)
