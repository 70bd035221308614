"""oasst: OpenAssistant's message trees, a tree in each row.

The conversation of a tree is its best path: after each message the reply that people ranked first (rank 0). Where
nobody ranked the replies, it is the first of them. As preference rows, every prompt on that path whose replies are
ranked makes a pair: the first and the last of them. Messages that were deleted, or did not pass review, are left out
with what follows them. What is left out is noted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import xxhash

from compiler.conversation import Conversation, Kind, Message, Role
from compiler.formats.format import Format
from compiler.options import Names
from schemas.errors import Reason, RowError

_ROLES = {"prompter": Role.USER, "assistant": Role.ASSISTANT}
Node = dict[str, Any]


def lift(row: dict[str, Any], columns: Names, tags: Names) -> Conversation | list[Conversation]:  # noqa: ARG001
    """The best path, or the pairs along it where the row is compiled to preference rows."""
    column = str(columns["prompt"])
    first, notes = row[column], set[str]()
    if first["role"] != "prompter":
        what = f"expected a tree that begins with a prompter, found {first['role']}"
        raise RowError(Reason.TURN_ORDER, what, f"/{column}/role")
    if why := _left_out(first):
        raise RowError(
            Reason.TURN_ORDER, f"expected a first message that passed review, found one that {why}", f"/{column}"
        )
    path = list(_best_path(first, notes))
    if columns.get("rejected") is not None:
        return _pairs(path, str(columns["rejected"]), f"/{column}", notes, row[str(columns["tree"])])
    if path[-1]["role"] == "prompter":
        notes.add("oasst_unanswered")
        del path[-1]
    if not path:
        what = "expected a reply to the first message that passed review, found none"
        raise RowError(
            Reason.TURN_ORDER,
            f"{what}; --where \"tree_state = 'ready_for_export'\" chooses finished trees",
            f"/{column}",
        )
    return Conversation(_messages(path), notes=sorted(notes))


def _best_path(node: Node, notes: set[str]) -> Iterator[Node]:
    """The messages from the first one on, each the best reply to the one before."""
    while True:
        yield node
        replies = _usable(node, notes)
        if not replies:
            return
        if len(replies) > 1:
            notes.add("oasst_branches")
            if all(reply.get("rank") is None for reply in replies):
                notes.add("oasst_unranked")
        node = min(replies, key=_rank)


def _usable(node: Node, notes: set[str]) -> list[Node]:
    """The replies to a message that may be used."""
    replies = node.get("replies") or []
    found = [reply for reply in replies if not _left_out(reply)]
    if len(found) < len(replies):
        notes.add("oasst_left_out")
    return found


def _left_out(node: Node) -> str:
    """Why a message is not used; "" for one that is."""
    if node.get("deleted"):
        return "was deleted"
    if "review_result" in node and node["review_result"] is not True:
        return "was not reviewed" if node["review_result"] is None else "did not pass it"
    return ""


def _rank(node: Node) -> float:
    rank = node.get("rank")
    return float("inf") if rank is None else rank


def _messages(path: list[Node]) -> list[Message]:
    return [Message(_ROLES[node["role"]], node["text"]) for node in path]


def _pairs(path: list[Node], key: str, pointer: str, notes: set[str], tree: str | None) -> list[Conversation]:
    """A pair for each prompt of the path whose replies under `key` are ranked."""
    group = xxhash.xxh3_128_digest(tree.encode()) if tree else None  # a tree stays on one side of the validation split
    made = []
    for i, node in enumerate(path):
        ranked = [one for one in node.get(key) or () if not _left_out(one) and one.get("rank") is not None]
        if node["role"] == "prompter" and len(ranked) > 1:
            best, worst = min(ranked, key=_rank), max(ranked, key=_rank)
            pair = Conversation(
                _messages([*path[: i + 1], best]), group=group, rejected=Message(Role.ASSISTANT, worst["text"])
            )
            made.append(pair)
    if not made:
        raise RowError(Reason.TURN_ORDER, "expected a message with two or more ranked replies, found none", pointer)
    made[0].notes = sorted(notes)  # counted once for the row
    return made


FORMAT = Format(
    name="oasst",
    lift=lift,
    columns={"tree": "message_tree_id", "prompt": "prompt", "rejected": "replies"},
    ignorable=(
        "message_tree_id",  # of each message
        "tree_state",
        "created_date",
        "review_count",
        "synthetic",
        "detoxify",
        "labels",
        "emojis",
        "events",
    ),
    kinds=(Kind.SFT, Kind.PREFERENCE),
)
