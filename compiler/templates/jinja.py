"""Chat templates rendered as `transformers` renders them, without importing it.

Differences, both on purpose: the sandbox is the same but `strftime_now` is not defined (a date in the prompt would
make the same input give other bytes tomorrow; templates that ask for it have a fixed date for when it is missing),
and `tojson` knows the slots of a skeleton.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2.nodes import Assign, Call, CallBlock, Compare, Const, Filter, Getattr, Node, Operand
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.errors import InputError, Reason, RowError


class Slot(Mapping[str, Any]):
    """Stands in for a JSON value in a skeleton: `tojson` writes its mark; to anything else it is empty."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __getitem__(self, key: str) -> Any:
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 1  # a template that asks whether there are arguments must find some


def _to_json_filter(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if indent is None and separators is None and not ensure_ascii and not sort_keys:
        marks: list[str] = []

        def mark_of(slot: Slot) -> str:
            marks.append(slot.mark)
            return slot.mark

        text = json.dumps(value, ensure_ascii=False, default=mark_of)
        for mark in marks:
            text = text.replace(f'"{mark}"', mark)
        return text
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=dict,  # with an indent a slot leaves no mark, so no skeleton is made
    )


def python_arguments(arguments: Mapping[str, Any]) -> str:
    """`a='x', b=1`: arguments as Python keywords, as ChatGLM3 writes them in tool_call(...)."""
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` renders its body: our masks do not depend on it."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own declaration

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return caller()


def _raise_exception(message: str) -> None:
    raise jinja2.exceptions.TemplateError(message)


_ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
)
_ENVIRONMENT.filters["tojson"] = _to_json_filter
_ENVIRONMENT.filters["python_arguments"] = python_arguments
_ENVIRONMENT.globals["raise_exception"] = _raise_exception


class ChatTemplate:
    """One Jinja chat template with the names it may use (bos_token, eos_token, ..., variables that switch it)."""

    def __init__(self, source: str, names: Mapping[str, Any], where: str) -> None:
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                where, f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
            ) from error
        self.source = source
        self._names = dict(names)

    def render(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, generation_prompt: bool) -> str:
        """The rendered text; a template that refuses the conversation is a RowError with its own words."""
        try:
            return self._template.render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self._names,
            )
        except jinja2.exceptions.TemplateError as error:
            raise RowError(Reason.TEMPLATE_REFUSED, f"the chat template refused it: {error.message}") from error
        except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
            text = f"the chat template failed on it: {type(error).__name__}: {error}"
            raise RowError(Reason.TEMPLATE_REFUSED, text) from error

    def reads(self, name: str) -> bool:
        """Whether the template reads a variable that it is given."""
        return name in jinja2.meta.find_undeclared_variables(_ENVIRONMENT.parse(self.source))

    def sensitive_texts(self) -> list[str]:
        """The string constants by which the template may look into a content.

        `'</think>' in content`, `content.split('</think>')`, `content | replace('a', 'b')`: a content that holds one
        of these may be rendered differently from any other, so it never goes through a skeleton.
        """
        tree = _ENVIRONMENT.parse(self.source)
        found: set[str] = set()
        for compare in tree.find_all(Compare):
            if any(operand.op in ("in", "notin") for operand in compare.find_all(Operand)):
                found |= _constants(compare)
        for assigned in tree.find_all(Assign):
            found |= _constants(assigned.node)
        for call in tree.find_all(Call):
            if isinstance(call.node, Getattr):
                found |= {text for argument in call.args for text in _constants(argument)}
        for filtered in tree.find_all(Filter):
            found |= {text for argument in filtered.args for text in _constants(argument)}
        return sorted(text for text in found if text.strip())


def _constants(node: Node) -> set[str]:
    inside = [*node.find_all(Const), *([node] if isinstance(node, Const) else [])]
    return {const.value for const in inside if isinstance(const.value, str)}
