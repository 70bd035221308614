"""The pages of a set by address: lists of rows, one row, the steps of a run, and the rows of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

import numpy as np

from compiler.inspect.find import sources_at
from compiler.report.assets import asset, environment, policy
from compiler.report.browse.find import SORTS, Finder, FoundRows, RowQuery
from compiler.report.browse.query import (
    Given,
    Link,
    NoSuchPage,
    check,
    count,
    number_of,
    pager,
    parsed,
    searched,
    shown,
    times,
)
from compiler.report.browse.run import TrainedRun
from compiler.report.measure import LONGEST, read_plainly
from compiler.report.rows import RowPages
from compiler.report.thumbs import Thumbs
from compiler.report.turns import visible
from schemas.arrow import TRAIN
from schemas.errors import UsageError
from schemas.manifest import has_media
from schemas.places import parse
from schemas.reader import CompiledSet

EACH, STEPS = 20, 100
"""Rows of a page, and steps of a page."""
IN_A_LIST = 20_000
"""Rows of more tokens are shown on a page of their own."""
_LARGE = 480
"""The longer side of images, in pixels."""


class Site:
    """The pages of one set, and of a run on it. One thread at a time may make a page."""

    def __init__(self, opened: CompiledSet, run: TrainedRun | None) -> None:
        self._opened, self._run = opened, run
        # Numbers are read from mapped files, a few bytes of each batch; whole batches are read, so that memory stays
        # what one batch needs.
        self._rows = RowPages(read_plainly(opened))
        self._finder = Finder(opened, self._rows)
        counts = {name: self._rows.examples(name).num_rows for name in opened.manifest["splits"]}
        self.splits = {name: rows for name, rows in counts.items() if rows}
        if not self.splits:
            raise UsageError(str(opened.folder), "the set has no rows", "Compile some.")
        self.pages = {"": self._list, "row": self._row, **({"run": self._steps, "step": self._step} if run else {})}
        self._style, self._script = asset("row.css", "page.css", "browse/browse.css"), asset("row.js")
        self.policy = policy(self._style, self._script, "form-action 'self'", "frame-ancestors 'none'")
        for name in self.splits:
            self._rows.examples(name).row(0)  # what is damaged or missing from the start is said before the address

    def page(self, name: str, query: str) -> tuple[int, str]:
        """The status and the HTML of a page; a Problem where the set is damaged."""
        try:
            return 200, self.pages[name](parsed(query))
        except NoSuchPage as error:
            return 404, self.message(str(error))

    def message(self, text: str) -> str:
        """A page with a message."""
        return self._html(RowQuery(next(iter(self.splits))), "", message=visible(text))

    # -- pages --

    def _list(self, given: Given) -> str:
        check(given, "split", "dataset", "text", "start", "sort", "page")
        split = self._split(given)
        asked = RowQuery(
            split, given.get("dataset", ""), given.get("text", ""), number_of(given, "start", 0), given.get("sort", "")
        )
        if asked.dataset and asked.dataset not in self._finder.names:
            raise NoSuchPage(f"the set has no dataset {asked.dataset!r}")
        if asked.sort not in SORTS:
            raise NoSuchPage(f"there is no order {asked.sort!r}")
        if asked.start and (not asked.text or asked.start >= self.splits[split]):
            raise NoSuchPage("start is where the search for a text goes on")
        found = self._finder.found(asked)
        said, more = searched(asked, found)
        return self._listed(asked, said, [(split, int(n)) for n in self._slice(found.rows, given)], given, found, more)

    def _row(self, given: Given) -> str:
        check(given, "split", "at", "page")
        at, split = given.get("at", "").strip(), self._split(given)
        if not at.isascii() or not at.isdigit():
            return self._of_source(at, split, given)
        number, total = int(at[:20]), self.splits[split]
        if number >= total:
            raise NoSuchPage(f"{split} has the rows 0 to {total - 1:,}")
        around = [("previous row", number - 1), ("next row", number + 1)]
        links = [(text, f"row?{urlencode({'split': split, 'at': n})}") for text, n in around if 0 <= n < total]
        return self._html(
            RowQuery(split),
            f"{split} row {number:,}",
            rows=[self._one(split, number, opened=True)],
            links_=links,
            at=at,
        )

    def _of_source(self, at: str, split: str, given: Given) -> str:
        if not parse(at):
            raise NoSuchPage(f"{at!r} is no row: 17 is one by its number, chats.jsonl:4 or data.json#/3 by its place")
        try:
            sources = sources_at(self._opened, at, at)
        except UsageError as error:
            raise NoSuchPage(f"{error.where}: {error.what}. {error.hint}") from None
        found = [one for source in sources for one in self._finder.of_source(source)]
        if not found:
            raise NoSuchPage(f"{at} is in no split. cli why {self._opened.folder} {at} says what became of it.")
        said = f"{at} is used {times(len(found))}"
        return self._listed(RowQuery(split), said, self._slice(found, given), given, found, at=at)

    def _step(self, given: Given) -> str:
        check(given, "n", "page")
        run = self._known_run()
        step = number_of(given, "n", 0)
        if not 1 <= step <= run.last:
            raise NoSuchPage(f"the run has the steps 1 to {run.last:,}")
        lengths = self._finder.columns(TRAIN).tokens if run.grouped else None
        rows = run.rows_of(step, lengths)
        numbers = self._finder.of_rows(rows)
        epoch = (step - 1) // run.steps_per_epoch + 1
        packs = f"{count(len(rows), 'pack')} of " if self._opened.is_packed else ""
        said = f"step {step:,} of {run.last:,}, in epoch {epoch:,}: {packs}{count(len(numbers), 'row')}"
        links = [
            (text, f"step?n={n}")
            for text, n in (("previous step", step - 1), ("next step", step + 1))
            if 1 <= n <= run.last
        ]
        return self._listed(
            RowQuery(TRAIN),
            said,
            [(TRAIN, int(n)) for n in self._slice(numbers, given)],
            given,
            numbers,
            links,
            step=step,
            logged=run.log.record(step) or {},
            remarks=self._about_step(step, numbers),
        )

    def _about_step(self, step: int, numbers: Any) -> list[str]:
        """What the log says of a step and does not, and whether its tokens are those of the rows."""
        run = self._known_run()
        record, before = run.log.record(step), run.log.record(step - 1)
        said = (
            "Rows are in the order of training. They are not logged: they follow from the seed and the rows of a step"
        )
        remarks = [f"{said} in run.json ({run.about['seed']} and {run.about['step_rows']:,})."]
        if record is None:
            return [*remarks, "The log has nothing on this step: its loss is not known."]
        remarks.append("The log has one loss of the step, of all its rows together. It has no loss of a row.")
        pictures = any(has_media(self._opened.manifest, kind) for kind in ("image", "video"))
        if pictures:
            return [*remarks, "Its tokens are not compared with those of the rows: of media it counts others."]
        if step > 1 and before is None:
            return remarks
        after, earlier = record.get("tokens"), before.get("tokens") if before else 0
        if not isinstance(after, int) or not isinstance(earlier, int):
            return remarks
        logged = after - earlier
        have = int(self._finder.columns(TRAIN).tokens[numbers].sum())
        if logged == have:
            return [*remarks, f"Checked: the log counts {logged:,} tokens in this step, and these rows have as many."]
        return [
            f"The log counts {logged:,} tokens in this step, and these rows have {have:,}: the log and the "
            "checkpoints are not of one run, and these may not be its rows.",
            *remarks,
        ]

    def _steps(self, given: Given) -> str:
        check(given, "sort", "page")
        run = self._known_run()
        steps, losses = run.log.losses()
        order = given.get("sort", "")
        if order not in ("", "loss"):
            raise NoSuchPage(f"there is no order {order!r}")
        if order:
            steps = steps[np.argsort(-np.nan_to_num(losses, nan=np.inf), kind="stable")]  # NaN is the worst
        shown = self._slice(steps, given, STEPS)
        records = [record for step in shown if (record := run.log.record(int(step)))]
        return self._html(
            RowQuery(TRAIN),
            f"{count(len(steps), 'step')} in {run.log.path}",
            steps=records,
            names=list(dict.fromkeys(name for record in records for name in record)),
            order=order,
            pager=pager("run", given, len(steps), STEPS),
        )

    # -- parts of pages --

    def _listed(
        self,
        asked: RowQuery,
        said: str,
        rows: Sequence[tuple[str, int]],
        given: Given,
        found: Any,
        links: Sequence[Link] = (),
        **more: Any,
    ) -> str:
        """A page with rows; `found` are all rows that are listed on its pages."""
        name = "step" if "n" in given else "row" if "at" in given else "."
        total = len(found.rows if isinstance(found, FoundRows) else found)
        thumbs = Thumbs(self._rows.opened, side=_LARGE)
        html = [self._one(split, number, thumbs) for split, number in rows]
        return self._html(asked, said, rows=html, links_=links, pager=pager(name, given, total, EACH), **more)

    def _one(self, split: str, number: int, thumbs: Thumbs | None = None, *, opened: bool = False) -> dict[str, Any]:
        """A row, and the address of its page; without HTML if it is too long."""
        length = self._rows.examples(split).length(number)
        link = "" if opened else f"row?{urlencode({'split': split, 'at': number})}"
        found = {"split": split, "number": number, "length": length, "link": link, "html": ""}
        if length <= (LONGEST if opened else IN_A_LIST):
            row = self._rows.decoded(split, number)
            thumbs = thumbs or Thumbs(self._rows.opened, side=_LARGE)
            found["html"] = self._rows.html(row, thumbs, opened=opened, link=link)
        return found

    def _html(self, asked: RowQuery, said: str, **more: Any) -> str:
        run = self._run
        context = {
            "message": "", "rows": [], "links_": [], "pager": [], "at": "", "step": "", "logged": {}, "remarks": [],
            "steps": None, "names": [], "order": "",
        } | more  # fmt: skip
        return environment().get_template("browse/browse.jinja").render(
            style=self._style, script=self._script, title=visible(str(self._opened.folder)),
            manifest=self._opened.manifest, sorts=SORTS, asked=asked,
            counts=", ".join(f"{rows:,} of {name}" for name, rows in self.splits.items()),
            splits={name: f"{name} ({rows:,})" for name, rows in self.splits.items()},
            datasets=[("", "all"), *((name, visible(name)) for name in self._finder.names)],
            said=visible(said), run=run, run_folder=visible(str(run.log.path.parent)) if run else "", longest=LONGEST,
            number=shown, **context,
        )  # fmt: skip

    def _split(self, given: Given) -> str:
        split = given.get("split", next(iter(self.splits)))
        if split not in self.splits:
            raise NoSuchPage(f"the set has no rows in the split {split!r}, but in {', '.join(self.splits)}")
        return split

    def _slice(self, rows: Any, given: Given, each: int = EACH) -> Any:
        """The rows of a page of a list."""
        page, pages = number_of(given, "page", 1), max(1, -(-len(rows) // each))
        if not 1 <= page <= pages:
            raise NoSuchPage(f"the list has the pages 1 to {pages:,}")
        return rows[(page - 1) * each : page * each]

    def _known_run(self) -> TrainedRun:
        assert self._run is not None  # only then are there pages that ask
        self._run.log.refresh()
        return self._run
