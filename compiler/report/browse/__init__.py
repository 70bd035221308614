"""`cli browse`: the rows of a set in the browser, from a server on this machine alone.

    with Server(Site(CompiledSet.open("shards"), run=None), port=0) as server:
        print(server.address)      http://127.0.0.1:PORT/TOKEN/
        server.serve_forever()

1. It listens on 127.0.0.1. A request needs the Host of the printed address, and the token, which is part of its path:
   cookies of 127.0.0.1 go to every port, and so to every other server there.
2. Nothing is served but pages made of the set. No path of a request is ever one of a file. Images are in the page, and
   are those that a row names, by digest (compiler/report/thumbs.py).
3. Pages are plain HTML, forms and links. The style sheets, the script and the row are those of `cli report`.
4. What needs a pass over the set (an order, a filter, a text) is read when it is first asked for.

    module          what it knows
    server.py       what is refused, and the headers of what is not
    site.py         addresses and their pages
    query.py        what an address asks for, and links to further pages
    find.py         rows by dataset, text, source and step, and their order
    run.py          a run's log, and the rows of its steps
    browse.jinja    the page
"""

from compiler.report.browse.server import Server
from compiler.report.browse.site import Site

__all__ = ["Server", "Site"]
