"""Folders that a command makes and removes: a mark is written first and removed last, so that nothing of others goes.

The mark is a JSON file that says which command made the folder. A folder without it is removed only if it is empty.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from schemas.disk import flush

_LARGEST = 2**24
"""Bytes that a mark may have: it can be the run.json of a checkpoint."""


def make(folder: Path, mark: str, content: dict[str, Any]) -> None:
    """Make a folder, the mark first in it. `content` has the key made_by."""
    folder.mkdir(parents=True)
    path = folder / mark
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    flush(path)


def is_ours(folder: Path, mark: str, made_by: str) -> bool:
    """Whether a folder, not a link to one, has the mark of a command."""
    path = folder / mark
    if folder.is_symlink() or path.is_symlink() or not path.is_file():
        return False
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size <= _LARGEST else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("made_by") == made_by


def clear(folder: Path, mark: str, made_by: str) -> bool:
    """Remove a folder if it has the mark of a command, or is empty; whether nothing is there now."""
    if not folder.exists() and not folder.is_symlink():
        return True
    if folder.is_symlink() or not folder.is_dir():
        return False
    if any(folder.iterdir()) and not is_ours(folder, mark, made_by):
        return False
    remove(folder, mark)
    return True


def remove(folder: Path, mark: str) -> None:
    """Remove a folder with all that is in it, its mark last."""
    for path in folder.iterdir():
        if path.name == mark:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    (folder / mark).unlink(missing_ok=True)
    folder.rmdir()
