"""The folder of a conversion: written under another name, marked first, and put in its place when it is whole."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas import own
from schemas.disk import flush
from schemas.errors import InputError, UsageError

MARK = "conversion.json"
MADE_BY = "finetune-data-compiler convert"


@contextlib.contextmanager
def written(out: Path, content: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder to write into, which takes the place of `out`; `content` is what its mark says at the end.

    An earlier conversion is replaced. UsageError where `out` is anything else that is not empty.
    """
    out = out.resolve()  # "." has no name to write beside
    partial, old = (out.with_name(f".{out.name}.{kind}") for kind in ("partial", "old"))
    if not out.exists() and own.is_ours(old, MARK, MADE_BY):  # a run was killed as it replaced this one
        old.rename(out)
    refuse_foreign(out)
    for path in (partial, old):  # what a killed run left
        if not own.clear(path, MARK, MADE_BY):
            raise UsageError(str(path), "it is in the way, and no conversion made it", "Move it somewhere else.")
    try:
        own.make(partial, MARK, {"made_by": MADE_BY})
        yield partial
        _seal(partial, content)
        if out.exists():
            out.rename(old)
        partial.rename(out)
        own.clear(old, MARK, MADE_BY)
        flush(out.parent)
    except OSError as error:
        what = f"cannot be written: {error.strerror or error}"
        raise InputError(str(error.filename or out), what, "Nothing was published.") from error
    finally:
        with contextlib.suppress(OSError):
            own.clear(partial, MARK, MADE_BY)


def _seal(folder: Path, content: dict[str, Any]) -> None:
    """Write the mark with what is in the folder, and put everything on disk."""
    files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    del files[MARK]
    text = json.dumps(
        {"made_by": MADE_BY, **content, "files": dict(sorted(files.items()))}, ensure_ascii=False, indent=1
    )
    (folder / MARK).write_text(text + "\n", encoding="utf-8")
    for path in (*folder.rglob("*"), folder):
        flush(path)


def refuse_foreign(out: Path) -> None:
    """UsageError where something is in the way that no conversion made."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"-o {out}", "expected a folder, found a file")
    inside = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir())
    if not inside:
        return
    hint = "Choose a new folder; nothing in this one was changed."
    if not own.is_ours(out, MARK, MADE_BY):
        raise UsageError(f"-o {out}", f"the folder is not empty and holds no conversion (found {inside[0]!r})", hint)
    known = {MARK, *json.loads((out / MARK).read_bytes()).get("files", ())}
    if others := [name for name in inside if name not in known]:
        raise UsageError(f"-o {out}", f"{others[0]!r} is in it, which is not of the conversion", f"Move it. {hint}")
