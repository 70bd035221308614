"""A compile whose files are cut into shorter stretches, and which notes what workers are asked to cut."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from unittest.mock import patch

from compiler.read import lines
from compiler.units.local import Workers


def shorter() -> None:
    """Set the length of a stretch to $STRETCH, and add a line to the file $CUT for each that a worker cuts."""
    if "STRETCH" not in os.environ:
        return
    lines.STRETCH = int(os.environ["STRETCH"])
    ask = Workers.ask.fget
    assert ask is not None

    def noted(workers: Workers) -> Any:
        def asked(*given: Any) -> Any:
            with Path(os.environ["CUT"]).open("a", encoding="utf-8") as file:
                file.write(f"{given[0].__name__}\n")
            return ask(workers)(*given)

        return asked

    patch.object(Workers, "ask", property(noted)).start()
