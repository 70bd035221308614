"""Rows of a set as HTML: the one component of reports, of `cli browse` and of notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby, islice

from compiler.encode.shapes import TEMPLATE
from compiler.inspect.page import cut, facts, trained_map
from compiler.inspect.rows import SplitExamples
from compiler.inspect.tokens import ShownRow, decode_row
from compiler.inspect.vocabulary import TokenBytes
from compiler.report.assets import asset, environment
from compiler.report.boxes import boxes_of
from compiler.report.measure import LONGEST
from compiler.report.packs import Pack, examples_of, pack_of
from compiler.report.thumbs import Thumbs
from compiler.report.turns import FIRST, LAST, Turn, shared, turns_of, visible
from schemas.reader import CompiledSet, SplitReader


class RowPages:
    """The rows of a set by split and number; of a packed set, its examples."""

    def __init__(self, opened: CompiledSet) -> None:
        self.opened = opened
        self._splits: dict[str, SplitExamples] = {}

    @cached_property
    def vocabulary(self) -> TokenBytes:
        """The bytes of ids."""
        return TokenBytes(self.opened)

    def examples(self, split: str) -> SplitExamples:
        """The rows of a split."""
        if split not in self._splits:
            self._splits[split] = SplitExamples(self.opened, split)
        return self._splits[split]

    def decoded(self, split: str, number: int) -> ShownRow:
        """A row, token by token."""
        return decode_row(self.examples(split), number, self.vocabulary)

    def html(self, row: ShownRow, thumbs: Thumbs, *, opened: bool, link: str = "") -> str:
        """A row with what is known of it, for a page with the style. `link` is the address of its own page, if any."""
        pack = pack_of(self.opened.split(row.split), self.opened, row.row) if self.opened.is_packed else None
        media = self.opened.manifest.get("media")
        family = "" if media is None else media["name"]
        said = facts(row, self.opened.manifest)
        return _row(row, said, pack, thumbs.of(row), family, opened=opened, link=link)


def notebook(split: SplitReader, rows: Sequence[int], most: int) -> str:
    """Rows of a split as HTML that stands for itself; of a pack, its first examples, at most so many."""
    pages = RowPages(split.opened)
    thumbs, found = Thumbs(split.opened), []
    for row in rows:
        numbers = examples_of(split, row)
        for number in numbers[:most]:
            length = pages.examples(split.name).length(number)
            if length > LONGEST:
                found.append(f"<p>{split.name} row {number:,}: {length:,} tokens, too long to be shown</p>")
            else:
                found.append(pages.html(pages.decoded(split.name, number), thumbs, opened=len(rows) == 1))
        if len(numbers) > most:
            found.append(f"<p>and {len(numbers) - most:,} more examples in this pack</p>")
    return f'<div class="fdc"><style>{asset("row.css")}</style>{"".join(found)}</div>'


def row_html(row: ShownRow, said: Sequence[str] = (), *, pack: Pack | None = None, styled: bool = True) -> str:
    """One row as HTML that stands for itself, as in a notebook's `_repr_html_`; without `styled`, for a page.

    `said` are further facts about the row, such as those of `compiler.inspect.page.facts`.
    """
    html = _row(row, said, pack, {}, "", opened=True, link="")
    return f'<div class="fdc"><style>{asset("row.css")}</style>{html}</div>' if styled else html


def _row(
    row: ShownRow, said: Sequence[str], pack: Pack | None, thumbs: dict[int, str], family: str, *, opened: bool,
    link: str,
) -> str:  # fmt: skip
    boxes = boxes_of(row.tokens, row.images, family)
    for at, more in boxes_of(row.rejected_tokens or (), row.images, family, "box rejected").items():
        boxes[at] = [*boxes.get(at, []), *more]
    media = [
        {**one, "kind": "image", "data": thumbs.get(one["position"], ""), "boxes": boxes.get(one["position"], [])}
        for one in row.images
    ]
    media += [{**one, "kind": "video", "data": "", "boxes": []} for one in row.videos]
    for one in media:
        one["uri"] = visible(cut(one["uri"], 300))
    sides: list[tuple[str, list[Turn]]] = []
    common = len(row.tokens)
    if row.rejected_tokens is not None:
        common = shared(row.tokens, row.rejected_tokens)
        sides = [("chosen", turns_of(row.tokens, media, common))]
        sides += [("rejected", turns_of(row.rejected_tokens, media, common))]
    return (
        environment()
        .get_template("row.jinja")
        .render(
            row=row,
            place=visible(row.place).replace("\n", ""),
            said=said,
            pack=pack,
            turns=turns_of(row.tokens[:common], media),
            sides=sides,
            roles=roles_of(row),
            map=trained_map(row),
            begin=_begin(row),
            template=TEMPLATE[0],
            opened=opened,
            link=link,
            around=(FIRST, LAST),
        )
    )


def roles_of(row: ShownRow) -> list[str]:
    """The roles that a row has messages of."""
    tokens = [*row.tokens, *(row.rejected_tokens or ())]
    return sorted({token.role for token in tokens if token.role != TEMPLATE[0]})


def _begin(row: ShownRow) -> str:
    """The begin of a row's first message of the user, or of what there is instead, without the name of its role."""
    for wanted in ("user", "", TEMPLATE[0]):
        for role, group in groupby(row.tokens, key=lambda token: token.role):
            if role == wanted or (not wanted and role != TEMPLATE[0]):
                text = "".join(token.text for token in islice(group, 200) if not token.control)
                if text := " ".join(text.removeprefix(f"{role}\n").split()):
                    return visible(cut(text, 140))
    return ""
