"""Which repairs would make a rejected row good. They are tried, so what a reject advises is true of its row."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from compiler.conversation import Conversation
from compiler.options import Names
from compiler.rows.mend import ROW_REPAIRS, mend
from compiler.rows.repair import REPAIRS
from schemas.errors import Reason, Reject

Made = list[Conversation | Reject]
Attempt = Callable[[Any, Sequence[str]], Made]
"""(row, repairs) -> what the row makes with these repairs too."""

_NUMBER = re.compile("[0-9]+")


class Hints:
    """The repairs that rejected rows of one unit need.

    Rows of a file are often wrong in the same way. The repairs that made one row good are tried first on the next row
    with the same reason at the same place in its messages, all at once: one attempt instead of one for each repair.
    """

    def __init__(self, attempt: Attempt, asked: tuple[str, ...], columns: Names, tags: Names) -> None:
        self._attempt, self._asked, self._columns, self._tags = attempt, asked, columns, tags
        self._known: dict[tuple[Reason, str], list[str]] = {}

    def add(self, row: Any, made: Made) -> Made:
        """What a row made, with the repairs that would make all of it good in the messages of its rejects."""
        first = next((one for one in made if isinstance(one, Reject) and "--repair" not in one.message), None)
        if first is None or not (found := self._repairs_for(row, first)):
            return made
        hint = f"; --repair {','.join([*self._asked, *found])} would make the row good"
        return [replace(one, message=one.message + hint) if isinstance(one, Reject) else one for one in made]

    def _repairs_for(self, row: Any, reject: Reject) -> list[str]:
        """The fewest repairs by which the whole row is good; [] where all of them together do not do it."""
        pattern = reject.reason, _NUMBER.sub("*", reject.pointer)
        known = self._known.get(pattern)
        if known is not None and self._changed_by(known, row) == known:
            return known
        if reject.reason is Reason.SCHEMA and not self._would_mend(row):
            return []  # repairs of conversations come too late for it
        found = self._changed_by([*ROW_REPAIRS, *REPAIRS], row)
        alone = ([name] for name in found if len(found) > 1)
        found = next((names for names in alone if self._changed_by(names, row) == names), found)
        if found:
            self._known[pattern] = found
        return found

    def _would_mend(self, row: Any) -> bool:
        """Whether a repair that was not asked for changes the row as it is in the file."""
        return not set(mend(row, ROW_REPAIRS, self._columns, self._tags)[1]) <= set(self._asked)

    def _changed_by(self, repairs: list[str], row: Any) -> list[str]:
        """Those of the repairs that change a row which is good with them and those asked for; [] if it is not good."""
        repairs = [name for name in repairs if name not in self._asked]
        changed: set[str] = set()
        for one in self._attempt(row, repairs):
            if isinstance(one, Reject):
                return []
            changed |= set(one.repairs)
        return [name for name in repairs if name in changed]
