"""What `cli inspect` prints: rows with their tokens marked, ChatGLM3's sanity check, JSON lines, rejects, checks.

Every mark is a glyph as well as a colour, so that a pipe and `NO_COLOR` lose nothing:

    ⟦trained⟧  ⟦2.0:weight 2⟧  ‹control token›  ⚠<|looks like one|>  ↵ end of line  ␣ space that could be missed

What stands outside ⟦ ⟧ is context; a bar in the margin runs along lines with trained tokens. Tokens are in alternating
shades where there are colours, and parted by ┊ where there are none. The data cannot forge a mark or reach the terminal
as a command: marks and characters that do not print are written `<U+001B>`.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.text import Text

from compiler.encode import TEMPLATE
from compiler.inspect import (
    LIMIT,
    Check,
    Query,
    Row,
    Split,
    Token,
    Vocabulary,
    choose,
    parse_check,
    rejects,
    run_checks,
)
from compiler.shards import ShardSet
from schemas.errors import UsageError

CONTEXT = ("color(246)", "color(242)")
TRAINED = ("color(35)", "color(29)")
WEIGHTED = ("color(172) bold", "color(130) bold")
"""Two shades each, readable on black and on white."""
CONTROL, LOOKALIKE, FOUND, MARK, QUIET = "bold color(33)", "bold color(160)", "reverse", "bold", "dim"
EDGE, NEWLINE, SPACE, TAB = "┊", "↵", "␣", "⇥"
_PICTURES = {"\n": NEWLINE, "\t": TAB}
_MARKS = frozenset("⟦⟧‹›⚠┊↵␣⇥")
_MISSED_SPACE = re.compile(r"(?<= ) | (?= )| (?=\n|$)")
_LABEL = len("assistant ")
_MARGIN = _LABEL + 2
_AROUND = 25
"""Characters shown before and after a match."""
_JOINER = "\u200d"


def show(opened: ShardSet, query: Query, *, rejected: bool, checks: tuple[str, ...], style: str) -> bool:
    """Print what is asked for; return False where a check failed. `style` is text, sanity or json."""
    _refuse_contradictions(query, rejected, style)
    parsed = [parse_check(given, opened.manifest) for given in checks]
    if rejected:
        _show_rejects(opened, query, style)
    elif not parsed or query.asks:
        _show_rows(opened, query, style)
    if parsed:
        _report(parsed, run_checks(opened, parsed), style)
    return all(check.ok for check in parsed)


def _refuse_contradictions(query: Query, rejected: bool, style: str) -> None:
    given = {"--row": query.row, "--find": query.find, "--sample": query.sample, "--rejected": rejected or None}
    used = [name for name, value in given.items() if value is not None]
    used += ["--dataset"] if query.row is not None and query.dataset is not None else []
    if len(used) > 1 and used != ["--find", "--sample"]:
        raise UsageError(" ".join(used), "they do not go together", "--find, --sample and --dataset do.")
    if rejected and style == "sanity":
        raise UsageError("--rejected --format sanity", "a rejected row has no tokens", "Leave --format out.")


def _show_rows(opened: ShardSet, query: Query, style: str) -> None:
    split, vocabulary = Split(opened, query.split), Vocabulary(opened)
    numbers, note = choose(split, query, vocabulary)
    rows = split.rows(numbers, vocabulary)
    if style == "text":
        page = Page.on(sys.stdout)
        page.legend()
        for row in rows:
            page.row(row, opened.manifest, query.find)
        page.say(note)
        return
    for row in rows:
        if style == "json":
            print(json.dumps(row.as_json(), ensure_ascii=False))
        else:
            print(f"{_place(row)}  {row.dataset}  row {row.row} of {row.split}", file=sys.stderr)
            print(*sanity(row, vocabulary), sep="\n")
    if note:
        print(note, file=sys.stderr)


def sanity(row: Row, vocabulary: Vocabulary) -> Iterator[str]:
    """Yield the lines that ChatGLM3's fine-tuning script prints; a part of a character is shown as bytes."""
    yield "Sanity Check >>>>>>>>>>>>>"
    for token in row.tokens:
        yield f"{vocabulary.piece(token.id)!r:>20}: {token.id:>6} -> {token.label:>6}"
    yield "<<<<<<<<<<<<< Sanity Check"


def _show_rejects(opened: ShardSet, query: Query, style: str) -> None:
    found, limit = rejects(opened, query.dataset), query.limit or LIMIT
    whose = f" of {query.dataset}" if query.dataset else ""
    rows = "rejected row" + "s" * (len(found) != 1)
    note = f"{min(limit, len(found))} of {len(found):,} {rows}{whose}" if found else f"no row{whose} was rejected"
    note += f"; --limit {len(found)} shows all" if len(found) > limit else ""
    if style == "json":
        for entry in found[:limit]:
            print(json.dumps(entry, ensure_ascii=False))
        print(note, file=sys.stderr)
        return
    page = Page.on(sys.stdout)
    for entry in found[:limit]:
        page.reject(entry)
    page.say(note)


def _report(checks: list[Check], rows: int, style: str) -> None:
    if style == "json":
        result = {"ok": all(check.ok for check in checks), "rows": rows, "checks": [c.as_json() for c in checks]}
        print(json.dumps(result, ensure_ascii=False))
        return
    for check in checks:
        print(*_verdict(check, rows), sep="\n", file=sys.stdout if check.ok else sys.stderr)


def _verdict(check: Check, rows: int) -> Iterator[str]:
    if not check.tokens:
        yield f"{check.given} holds, but there was nothing to check: no token of {check.what} in {rows:,} rows"
    elif check.ok:
        yield f"{check.given} holds: none of {check.tokens:,} tokens of {check.what} is trained, in {rows:,} rows"
    else:
        wrong = f"{check.trained:,} of {check.tokens:,} tokens of {check.what} {'is' if check.trained == 1 else 'are'}"
        yield f"{check.given} fails: {wrong} trained, in {check.rows:,} of {rows:,} rows"
        for entry in check.violations:
            place = f"{entry['split']} row {entry['row']}  {_visible(entry['file'])}:{entry['source_row']}"
            yield f"  {place}  token {entry['token']} ⟦{_cut(_visible(entry['text']), 60)}⟧"
        if check.rows > len(check.violations):
            yield f"  and {check.rows - len(check.violations):,} rows more"


# -- text --


@dataclass
class Page:
    """Where rows are printed. Without a `width` nothing is wrapped; with `edges` a mark parts tokens, not a colour."""

    console: Console
    width: int | None
    edges: bool

    @classmethod
    def on(cls, file: IO[str]) -> Page:
        """Return a page that fits what the file is: a terminal with or without colours, or a pipe."""
        console = Console(file=file, highlight=False)
        edges = console.no_color or console.color_system not in ("256", "truecolor")
        return cls(console, console.width if console.is_terminal else None, edges)

    def _print(self, text: Text) -> None:
        text.rstrip()
        self.console.print(text, soft_wrap=True)

    def say(self, note: str) -> None:
        """Print a closing sentence, if there is one."""
        if note:
            self._print(Text())
            self._print(Text(note, QUIET))

    def legend(self) -> None:
        """Print what the marks mean."""
        parts = [("context", CONTEXT[0]), ("⟦trained⟧", TRAINED[0]), ("⟦2.0:weight 2⟧", WEIGHTED[0])]
        parts += [("‹control token›", CONTROL), ("⚠only looks like one", LOOKALIKE)]
        parts += [(f"{EDGE} token edge" if self.edges else "one shade a token", QUIET)]
        parts += [(f"{NEWLINE} newline", QUIET), (f"{SPACE} space", QUIET)]
        self._print(Text("   ").join(Text(text, style) for text, style in parts))

    def row(self, row: Row, manifest: dict[str, Any], find: str | None) -> None:
        """Print a row: where it is from, how much of it is trained and where, its tokens."""
        self._print(Text())
        title = (f"━━ {_place(row)}", MARK)
        self._print(Text.assemble(title, (f" ━━ {row.dataset} ━━ row {row.row} of {row.split}", QUIET)))
        self._print(Text(f"   {_facts(row, manifest)}", QUIET))
        self._print(Text.assemble("   ", (_map(row), TRAINED[0])))
        for match in _matches(row, find):
            self._print(match)
        last = ""
        for line in _Writer(row, self.edges, find).lines():
            last = "" if line.opens else last
            self._line(line, line.role if line.role != last else "")
            last = line.role or last

    def _line(self, line: _Line, label: str) -> None:
        text = Text.assemble(*line.parts)
        parts = (
            [text]
            if self.width is None
            else text.wrap(self.console, max(self.width - _MARGIN, _MARGIN), overflow="fold")
        )
        for part in parts:
            trained = any(str(span.style).startswith(TRAINED + WEIGHTED) for span in part.spans)
            margin = Text.assemble((f"{label:<{_LABEL}}", QUIET), ("┃ " if trained else "  ", TRAINED[0]))
            self._print(margin + part)
            label = ""

    def reject(self, entry: dict[str, Any]) -> None:
        """Print a rejected row: where it is, what is wrong, how it begins."""
        place = _visible(f"{entry['file']}:{entry['row']}#{entry['pointer']}")
        message = _visible(entry["message"])
        self._print(Text.assemble((place, MARK), "  ", (entry["reason"], LOOKALIKE), f": {message}"))
        raw = _visible(entry["raw"]) if "raw" in entry else "bytes " + entry["raw_hex"]
        self._print(Text(f"    {_cut(raw, 200)}", QUIET))


def _place(row: Row) -> str:
    return _visible(f"{row.file}:{row.source_row}")


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _facts(row: Row, manifest: dict[str, Any]) -> str:
    weights = next(entry["weights"] for entry in manifest["datasets"] if entry["name"] == row.dataset)
    template = manifest["template"]
    facts = [f"{row.length:,} tokens", f"{row.num_trained:,} trained ({row.num_trained / row.length:.1%})"]
    facts += [f"template {template['name']} ({template['provenance'][:60]})", f"weights {weights}"]
    facts += [f"repeat {row.repeat}"] if row.repeat else []
    return " · ".join(facts)


def _map(row: Row) -> str:
    """Return where in the row the trained tokens are, start to end."""
    trained = np.array([token.weight > 0 for token in row.tokens])
    parts = np.array_split(trained, min(60, len(trained)))
    return "".join("·░▒▓█"[int(np.ceil(part.mean() * 4))] for part in parts)


def _matches(row: Row, find: str | None) -> Iterator[Text]:
    """Yield where the text that was looked for stands in the row, three times at most."""
    found = _occurrences(row.text, find)
    ends = np.cumsum([len(token.text) for token in row.tokens])
    glyphs = _glyphs(row.text) if found else []
    for start, end in found[:3]:
        first, last = max(start - _AROUND, 0), min(end + _AROUND, len(glyphs))
        before, match, after = ("".join(glyphs[a:b]) for a, b in ((first, start), (start, end), (end, last)))
        token = int(np.searchsorted(ends, start, side="right"))
        line = Text(f"   found at token {token}: {'…' * (first > 0)}{before}", QUIET)
        yield line.append(match, FOUND).append(after + "…" * (last < len(glyphs)), QUIET)
    if len(found) > 3:
        yield Text(f"   and {len(found) - 3:,} times more", QUIET)


@dataclass
class _Line:
    """One line of the decoded text: (glyphs, style) in order. `opens`: it begins with the template's control token."""

    parts: list[tuple[str, str]] = field(default_factory=list)
    role: str = ""
    opens: bool = False


class _Writer:
    """Lays a row's tokens out on lines, with every mark. A line ends where text follows its newline: ⟧ stays on it."""

    def __init__(self, row: Row, edges: bool, find: str | None) -> None:
        self._row, self._edges = row, edges
        self._glyphs, self._extra = _glyphs(row.text), [""] * len(row.text)
        for start, end in row.lookalikes:
            self._extra[start:end] = [f" {LOOKALIKE}"] * (end - start)
            self._glyphs[start] = "⚠" + self._glyphs[start]
        for match in _occurrences(row.text, find):
            self._extra[slice(*match)] = [f" {FOUND}"] * (match[1] - match[0])
        self._lines, self._ended = [_Line()], False
        self._at, self._weight, self._shade = 0, 0.0, 0
        self._apart = True
        """Whether the next token is already apart from the one before it, by a mark or a new line."""

    def lines(self) -> list[_Line]:
        """Return the row's lines; one that is a message's header alone has the message's role."""
        for token in self._row.tokens:
            self._bracket(token.weight)
            self._token(token)
        self._bracket(0.0)
        for line, following in zip(self._lines[-2::-1], self._lines[:0:-1], strict=True):
            line.role = line.role or ("" if following.opens else following.role)
        return self._lines

    def _bracket(self, weight: float) -> None:
        if weight == self._weight:
            return
        if self._weight:
            self._lines[-1].parts.append(("⟧", MARK))
        if weight:
            self._put("⟦" if weight == 1 else f"⟦{_number(weight)}:", MARK)
        self._weight, self._apart = weight, True

    def _token(self, token: Token) -> None:
        start, self._at = self._at, self._at + len(token.text)
        if not token.text:  # its character is shown with the token that completes it
            return
        shades = CONTEXT if not self._weight else TRAINED if self._weight == 1 else WEIGHTED
        style = shades[self._shade]
        line = self._line()
        if token.role != TEMPLATE[0]:
            line.role = line.role or token.role
        if token.control:
            line.opens = line.opens or (token.role == TEMPLATE[0] and not line.parts)
            name = token.text[1:-1] if token.text[0] + token.text[-1] == "<>" else token.text
            self._put(f"‹{_visible(name)}›", f"{style} {CONTROL}")
            self._apart = True
            return
        if self._edges and not self._apart and not _joins(token.text[0]):
            self._put(EDGE, QUIET)
        for position in range(start, self._at):
            self._put(self._glyphs[position], style + self._extra[position])
            self._ended = self._row.text[position] == "\n"
        self._apart = self._ended
        self._shade ^= 1

    def _line(self) -> _Line:
        if self._ended:
            self._lines.append(_Line())
            self._ended = False
        return self._lines[-1]

    def _put(self, glyphs: str, style: str) -> None:
        parts = self._line().parts
        if parts and parts[-1][1] == style:
            glyphs = parts.pop()[0] + glyphs
        parts.append((glyphs, style))


def _joins(char: str) -> bool:
    """Return whether a character is drawn onto the one before it: nothing can stand between them."""
    return char == _JOINER or unicodedata.category(char).startswith("M")


def _number(weight: float) -> str:
    return repr(round(weight, 4))  # 1.1 is 1.100000023841858 as a float32


def _occurrences(text: str, find: str | None) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(re.escape(find), text)] if find else []


def _glyphs(text: str) -> list[str]:
    """Return what is shown for each character, so that every one is seen and none is obeyed."""
    missed = {match.start() for match in _MISSED_SPACE.finditer(text)}
    return [SPACE if i in missed and char == " " else _glyph(char) for i, char in enumerate(text)]


def _glyph(char: str) -> str:
    if char in _PICTURES:
        return _PICTURES[char]
    category = unicodedata.category(char)
    # Cn, unassigned, is shown: an emoji younger than this Python is one.
    hidden = char in _MARKS or (category[0] in "CZ" and category != "Cn" and char not in (" ", _JOINER))
    return f"<U+{ord(char):04X}>" if hidden else char


def _visible(text: str) -> str:
    return "".join(_glyphs(text))
