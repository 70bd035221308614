"""The operations of CogAgent's action space with their arguments, and one operation as a value.

The table is that of CogAgent's Action_space_en.md (whose second SCROLL_DOWN is SCROLL_RIGHT).
"""

from __future__ import annotations

from dataclasses import dataclass, field

Box = tuple[int, int, int, int]
Signature = tuple[tuple[str, ...], tuple[str, ...]]
"""The required and the optional arguments."""

_ELEMENT = ("element_type", "element_info")
OPERATIONS: dict[str, Signature] = {
    **dict.fromkeys(("CLICK", "DOUBLE_CLICK", "RIGHT_CLICK", "HOVER"), (("box",), _ELEMENT)),
    "TYPE": (("box", "text"), _ELEMENT),
    **dict.fromkeys(("SCROLL_UP", "SCROLL_DOWN", "SCROLL_LEFT", "SCROLL_RIGHT"), (("box", "step_count"), _ELEMENT)),
    "KEY_PRESS": (("key",), ()),
    "GESTURE": (("actions",), ()),
    "LAUNCH": ((), ("app", "url")),
    "QUOTE_TEXT": (("box", "output"), (*_ELEMENT, "auto_scroll", "result")),
    "LLM": (("prompt", "output"), ("result",)),
    "QUOTE_CLIPBOARD": (("output",), ("result",)),
    "END": ((), ()),
}
"""What an agent can do."""
KEYS: dict[str, Signature] = dict.fromkeys(("KEY_DOWN", "KEY_PRESS", "KEY_UP"), (("key",), ()))
"""What a GESTURE is made of."""
ARGUMENTS = frozenset(name for required, optional in OPERATIONS.values() for name in (*required, *optional))
USES_VARIABLES = ("text", "prompt", "app", "url")
"""The arguments in which `__CogName_x__` stands for a value; `result` and `element_info` only describe."""


@dataclass(frozen=True)
class Operation:
    """One operation. `str(operation)` is its canonical text: one line, which parses to an equal operation."""

    name: str
    arguments: dict[str, str | int | bool | Box | list[Operation]] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{name}={_written(value)}' for name, value in self.arguments.items())})"

    @property
    def output(self) -> str | None:
        """The variable that the operation sets, None where it sets none."""
        name = self.arguments.get("output")
        return name if isinstance(name, str) else None


def _written(value: str | int | bool | Box | list[Operation]) -> str:
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return "'" + escaped.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r") + "'"
    if isinstance(value, tuple):
        return f"[[{','.join(map(str, value))}]]"
    if isinstance(value, list):
        return f"[{', '.join(map(str, value))}]"
    return str(value)
