"""Chat templates rendered as `transformers` renders them, without importing it.

Differences, both on purpose: the sandbox is the same but `strftime_now` is not defined (a date in the prompt would
make the same input give other bytes tomorrow; templates that ask for it have a fixed date for when it is missing),
and `tojson` knows the slots of a skeleton.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2.nodes import Assign, Call, CallBlock, Compare, Const, Filter, Getattr, Node, Operand
from jinja2.parser import Parser
from jinja2.runtime import LoopContext, new_context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from schemas.errors import InputError, Reason, RowError
from schemas.limits import MEMORY, TimeLimitError, limited

SECONDS = 10.0
"""Seconds of processor time that a rendering may take; most take a ten-thousandth of one."""
MOST_TEXT = 1 << 26
"""The most characters of a rendering."""
_MOST_BITS = 1 << 16
_OF_DICT = frozenset(dir(dict))
_SAFE = {
    kind: frozenset(name for name in dir(kind) if name[0] != "_") - {"format", "format_map"}
    for kind in (str, LoopContext)
}
"""The attributes of texts and of loops that the sandbox allows: it need not be asked each time."""


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


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, without numbers of any length: time is looked at between the steps of a template, not within one."""

    intercepted_binops = frozenset(("*", "**"))

    def getattr(self, obj: Any, attribute: str) -> Any:
        """What `message.content` is. For a dictionary, jinja2 first has Python raise that it has no such attribute."""
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if attribute in _SAFE.get(kind, ()):
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute, unless the result would be a number with too many digits."""
        if isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * (right if operator == "**" else 1) + right.bit_length()
            if bits > _MOST_BITS:
                raise jinja2.exceptions.SecurityError(f"a number of more than {_MOST_BITS} bits")
        return super().call_binop(context, operator, left, right)


_ENVIRONMENT = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols])
_ENVIRONMENT.filters["tojson"] = _to_json_filter
_ENVIRONMENT.filters["python_arguments"] = python_arguments
_ENVIRONMENT.globals["raise_exception"] = _raise_exception


@lru_cache(maxsize=8)
def _compiled(source: str) -> jinja2.Template:
    """A template as Python code; a run asks for one several times."""
    return _ENVIRONMENT.from_string(source)


class ChatTemplate:
    """One Jinja chat template with the names it may use (bos_token, eos_token, ..., variables that switch it)."""

    def __init__(self, source: str, names: Mapping[str, Any], where: str) -> None:
        try:
            with limited(SECONDS):  # what is constant is worked out here
                self._template = _compiled(source)
        except TimeLimitError as error:
            raise InputError(where, f"the chat template took more than {SECONDS:g} seconds to be read") from error
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                where, f"the chat template is not valid Jinja: line {error.lineno}: {error.message}"
            ) from error
        except Exception as error:  # what jinja2 takes and Python does not: break outside of a loop, deep nesting
            what = f"the chat template cannot be used: {type(error).__name__}: {str(error)[:200]}"
            raise InputError(where, what) from error
        self.source, self._where = source, where
        self._globals = dict(self._template.globals)  # a chain of mappings, which each rendering would go through
        self._names = self._globals | dict(names)

    def render(self, messages: list[dict[str, Any]], tools: list[Any] | None, *, generation_prompt: bool) -> str:
        """The rendered text; a template that refuses the conversation is a RowError with its own words."""
        try:
            with limited(SECONDS):
                return self._written(
                    messages=messages,
                    tools=tools,
                    documents=None,
                    add_generation_prompt=generation_prompt,
                    **self._names,
                )
        except (TimeLimitError, MemoryError) as error:  # no reject: what is kept would depend on the machine
            much = f"{SECONDS:g} seconds" if isinstance(error, TimeLimitError) else f"{MEMORY >> 20} MiB of memory"
            hint = "Most take a thousandth of that; choose another template, or leave out the longest rows."
            raise InputError(self._where, f"the chat template takes more than {much} for a row", hint) from error
        except jinja2.exceptions.TemplateError as error:
            raise RowError(Reason.TEMPLATE_REFUSED, f"the chat template refused it: {error.message}") from error
        except Exception as error:  # a template is a program, and may fail as one
            what = f"the chat template failed on it: {type(error).__name__}: {str(error)[:500]}"
            raise RowError(Reason.TEMPLATE_REFUSED, what) from error

    def _written(self, **names: Any) -> str:
        """Write the text as `Template.render` does, up to a limit."""
        pieces, left = [], MOST_TEXT
        context = new_context(_ENVIRONMENT, None, self._template.blocks, names, shared=True, globals=self._globals)
        for piece in self._template.root_render_func(context):
            pieces.append(piece)
            left -= len(piece)
            if left < 0:
                raise jinja2.exceptions.TemplateError(f"it writes more than {MOST_TEXT:,} characters")
        return "".join(pieces)

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
