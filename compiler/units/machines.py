"""What must be the same on every machine of a cluster, checked there before anything is compiled.

Sources, tokenizer and cache are reached by path, so every machine must see them at the same place. An object must be
made by the code and libraries that its name was worked out with.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

from compiler.cache import halves, objects, records
from compiler.tokenizer.encoders import REFERENCE, version_of
from compiler.units.task import Task, recipe_of
from schemas.errors import InputError, IntegrityError
from schemas.stores import path_of


@dataclass(frozen=True)
class Terms:
    """What a run needs of a machine. Picklable, of plain values: another version of this code can read it."""

    code: str
    """The digest of the source that decides bytes."""
    libraries: tuple[tuple[str, str], ...]
    """(name, version) of each library that decides bytes, and of the encoder."""
    cache: str
    mark: str
    """A file in the cache. A machine on which it is there has the same folder."""
    paths: tuple[str, ...] = ()
    """Other paths that must exist."""


def terms_of(cache: str, mark: str, encoder: str, paths: tuple[str, ...] = ()) -> Terms:
    """The terms of a run that is started on this machine."""
    libraries = dict(records.library_versions())
    if encoder != REFERENCE:
        libraries[encoder] = version_of(encoder)
    return Terms(records.code_digest(), tuple(sorted(libraries.items())), cache, mark, paths)


@contextmanager
def marked(cache: Path) -> Iterator[str]:
    """Put a mark into the cache for the time of a run. If the run is killed, the next one removes it."""
    mark = halves.begin_half(cache, f"{records.key_of('mark', uuid.uuid4().hex)}.json")
    try:
        yield str(mark.relative_to(cache))
    finally:
        mark.unlink(missing_ok=True)


@lru_cache(maxsize=1)
def check(terms: Terms) -> None:
    """Raise unless this machine is as the run needs it. Each process checks once."""
    _check_code(socket.gethostname(), terms.code, dict(terms.libraries))
    for path in terms.paths:
        if not path_of(path).exists():
            raise InputError(
                f"{path} (on {socket.gethostname()})",
                "it is not there on this machine",
                "Sources and tokenizer must be at the same path on every machine: put them on a shared file system.",
            )
    _check_cache(terms.cache, terms.mark)


def _check_code(where: str, code: str, libraries: dict[str, str]) -> None:
    """Raise unless code and libraries are those of the run; others could make other objects of the same name."""
    theirs = {"the compiler's source": code[:12]} | libraries
    ours = {"the compiler's source": records.code_digest()[:12]} | {name: _version(name) for name in libraries}
    differ = [name for name, version in theirs.items() if ours[name] != version]
    if differ:
        wanted = ", ".join(f"{name} {theirs[name]}" for name in differ)
        found = ", ".join(ours[name] for name in differ)
        raise IntegrityError(
            where,
            f"expected {wanted}, found {found}",
            "Install the same version of everything on every machine.",
        )


def _check_cache(cache: str, mark: str) -> None:
    """Raise unless the cache is the folder that the run was started with, and can be written to."""
    where = f"{cache} (on {socket.gethostname()})"
    if not Path(cache).is_dir():
        found = "there is no such folder"
    elif not (Path(cache) / mark).exists():
        found = "this folder is another one"
    else:
        probe = records.key_of("probe", socket.gethostname(), os.getpid())
        records.store_record(Path(cache), probe, {})
        objects.remove(Path(cache), probe)
        return
    raise InputError(
        where,
        f"expected the cache of the run, {found}",
        "Every machine must see the cache at the same path: --cache DIR on a shared file system.",
    )


def check_recipe(task: Task) -> None:
    """Raise unless this machine gives the dataset's objects the same names."""
    if not _is_same(task.recipe, task):
        raise IntegrityError(
            socket.gethostname(),
            "a unit's object has another name here: the weights policies or other data of the package differ",
            "Install the same version of everything on every machine.",
        )


def _is_same(recipe: str, task: Task) -> bool:
    """Whether the recipe is the same here; worked out once for each in each process."""
    if recipe not in _SAME:
        _SAME[recipe] = recipe_of(task.read_as, task.setup) == recipe
    return _SAME[recipe]


_SAME: dict[str, bool] = {}


def portable(task: Task) -> Task:
    """The task with absolute paths."""
    source = path_of(task.unit.path)
    unit = replace(task.unit, path=str(source.absolute() if isinstance(source, Path) else source))
    return replace(task, unit=unit, cache=str(Path(task.cache).absolute()))


def _version(name: str) -> str:
    try:
        return version_of(name)
    except PackageNotFoundError:
        return "none"
