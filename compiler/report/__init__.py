"""The report of a compiled set: one HTML file that shows what the set is and which tokens of its rows are trained.

    from compiler.report import make_report, row_html, write_report
    report = make_report(CompiledSet.open("shards"), remarks=[], shown=100, seed=0)
    write_report(report.html, Path("report.html"))
    row_html(row)                 a row that compiler.inspect decoded, as HTML for a page or a notebook

1. All numbers come from the manifest and from one pass over the rows. Memory does not grow with the set.
2. Rows to show are drawn by number with a seed, from each dataset in turn, until the file would be too large.
3. Everything from the data is escaped by the template engine. The page's Content-Security-Policy allows no script but
   its own, by its hash, and no request.

    module          what it knows
    measure.py      the pass over all rows: lengths and trained shares by dataset, and the rows to show
    turns.py        a decoded row as messages, and these as runs of tokens of one weight
    packs.py        the pack that an example is in
    boxes.py        boxes that replies name, over their image
    thumbs.py       small versions of images that can be found
    rejects.py      rejected rows by reason, the first of each
    charts.py       bars of a histogram
    sections.py     what the page says of the set as a whole
    rows.py         rows as HTML: the component of reports, of `cli browse` and of notebooks
    assets.py       the template engine, styles, scripts, and the policy that allows them
    page.py         the whole page of a report
    file.py         the file: never in the place of one that is not a report, and whole or not there
    *.jinja, *.css, *.js  the templates, styles and scripts of pages
    browse/         `cli browse`: the rows of a set of any size, from a server on this machine
"""

from compiler.report.file import check_place, write_report
from compiler.report.page import Report, make_report
from compiler.report.rows import row_html

__all__ = ["Report", "check_place", "make_report", "row_html", "write_report"]
