"""Recipes: what `cli compile` is asked, as a YAML file, or as the manifest of a set remembers it.

Keys are the options of the command line. `datasets` has, by name, what is asked of each, with its own format, columns,
weights or condition. Paths start from the folder of the recipe, as if the command were typed there.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
from click.core import ParameterSource

from compiler.commands.compile_options import SECTIONS
from compiler.options import OWN, quoted
from registry import weights
from schemas import check_config, disk
from schemas.errors import UsageError
from schemas.manifest import read_manifest
from schemas.stores import SCHEME, AnyPath, StorePath

_NOT_IN_IT = ("as_json", "only", "save_recipe", "made_from", "dry_run", "sample")
"""Options about one run of a command, by the names of their parameters."""
_NOT_REMEMBERED = ("out", "cache", "workers", "engine", "ray_address")
"""Options that decide nothing about the set."""
_PATHS = ("registries", "media_dir", "self_cognition_file", "decontaminate", "tokenizer", "weights", "cache", "out")
"""Parameters that are paths, or may be."""
_SPLITS = ("val", "test")
_QUERY = re.compile(rf"(\b{SCHEME}[^?]+)\?.*")


class Recipe(NamedTuple):
    """A recipe: what is asked, by the keys of its schema; where paths start; and how messages call it."""

    asked: dict[str, Any]
    base: Path
    where: str


def options() -> dict[str, click.Option]:
    """The options that a recipe can have, by their keys: --max-length is max_length."""
    found = (option for section in SECTIONS.values() for option in section if option.name not in _NOT_IN_IT)
    return {max(option.opts, key=len).lstrip("-").replace("-", "_"): option for option in found}


def is_recipe(files: tuple[str, ...]) -> bool:
    """Whether the files of a command line are one recipe."""
    return len(files) == 1 and files[0].endswith((".yaml", ".yml"))


def read(path: Path) -> Recipe:
    """The recipe in a file; UsageError or InputError where it is none."""
    from schemas import yaml  # most compiles have no recipe

    return _checked(yaml.read(path), path.parent, str(path))


def remembered(out: AnyPath) -> Recipe:
    """The recipe that the manifest of a set remembers; UsageError where it has none."""
    asked = dict(read_manifest(out).get("run", {}).get("recipe", {}))
    where = f"{out}/manifest.json#/run/recipe"
    if not asked or not isinstance(out, Path):
        what = "its manifest has no recipe: it is of an earlier version, or in an object store"
        raise UsageError(f"--from {out}", what, "Give the options of its compile again.")
    if wrong := asked.keys() & set(_NOT_REMEMBERED):
        what = f"it says {min(wrong)}, which no compile leaves there"
        raise UsageError(where, what, "Give the options of its compile again.")
    return _checked(asked, out, where)


def _checked(asked: dict[str, Any], folder: Path, where: str) -> Recipe:
    check_config(asked, "recipe", where)
    base = folder / asked.pop("base", ".")
    if not base.is_dir():
        raise UsageError(f"{where}#/base", f"paths start from {base}, and there is no such folder", "Say where it is.")
    return Recipe(asked, base, where)


def apply(recipe: Recipe, given: dict[str, Any], context: click.Context) -> tuple[dict[str, Any], dict[str, Any]]:
    """(The parameters of a command with a recipe, the recipe with what the command line says otherwise)."""
    known, typed = options(), dict(given)
    keys = {option.name: key for key, option in known.items()}
    said = [name for name in keys if context.get_parameter_source(str(name)) is ParameterSource.COMMANDLINE]
    asked = dict(recipe.asked)
    for name in map(str, said):
        if name in ("mix", *_SPLITS):
            raise UsageError(f"--{name}", f"{recipe.where} says which datasets are compiled", "Change it there.")
        typed[name] = _from_base(typed[name], recipe.base) if name in _PATHS else typed[name]
        asked[keys[name]] = _plain(typed[name])
    if "out" not in asked:
        typed["out"] = _from_base(typed["out"], recipe.base)
    typed["files"] = tuple(asked.get("files", ()))
    with contextlib.chdir(recipe.base):
        for key, value in asked.items():
            if key in known and str(known[key].name) not in said:
                typed[str(known[key].name)] = _parsed(known[key], value, f"{recipe.where}#/{key}", context)
        return _with_datasets(typed, asked.get("datasets", {}), recipe.where), asked


def asked_by(given: Mapping[str, Any], context: click.Context) -> dict[str, Any]:
    """The recipe of a command line: every option that it names."""
    found: dict[str, Any] = {"files": list(given["files"])} if given["files"] else {}
    for key, option in options().items():
        if context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
            found[key] = _plain(given[str(option.name)])
    return found


def to_remember(asked: Mapping[str, Any], source: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest keeps of a recipe; `source` says which commit a downloaded tokenizer is of.

    {} where a file's name is no text: neither JSON nor YAML can hold it. Where an object store is reached is left out.
    """
    if not _is_text(asked):
        return {}
    kept = {key: _without_query(value) for key, value in asked.items() if key not in _NOT_REMEMBERED}
    if source:
        kept["tokenizer"] = f"{kept['tokenizer'].partition('@')[0]}@{source['revision']}"
    return kept


def _without_query(value: Any) -> Any:
    """The value, in which URIs of object stores have no query."""
    if isinstance(value, dict):
        return {key: _without_query(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_query(one) for one in value]
    return _QUERY.sub(r"\1", value) if isinstance(value, str) else value


def save(asked: Mapping[str, Any], path: Path) -> None:
    """Write a recipe; UsageError where a file is in its place. Paths in it start from this process's folder."""
    if path.exists():
        raise UsageError(f"--save-recipe {path}", "a file of this name is there", "Remove it, or give another name.")
    if not _is_text(asked):
        raise UsageError(f"--save-recipe {path}", "a file's name is not UTF-8, which YAML cannot hold", "Rename it.")
    base = Path(os.path.relpath(Path.cwd(), path.resolve().parent)).as_posix()
    from schemas import yaml

    disk.write(path, yaml.dump(({} if base == "." else {"base": base}) | dict(asked)).encode())


def _is_text(asked: Mapping[str, Any]) -> bool:
    try:
        json.dumps(asked, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(option: click.Option, value: Any, where: str, context: click.Context) -> Any:
    """The value of an option, as the command line would read it."""
    if value is None:
        return option.get_default(context)
    if isinstance(value, dict):
        value = [f"{name}={quoted(key)}" for name, key in value.items()]
    if option.multiple and isinstance(value, str):
        value = [value]
    try:
        return option.type_cast_value(context, value)
    except click.UsageError as error:
        raise UsageError(where, error.format_message()) from error


def _with_datasets(given: dict[str, Any], datasets: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The parameters with the datasets of a recipe as files, shares of the mix, and options of their own."""
    asked: dict[str, dict[str, Any]] = {
        name: {"share": one} if isinstance(one, int | float) else one or {} for name, one in datasets.items()
    }
    for name, one in asked.items():
        if "path" in one:
            into = one.get("split", "files").replace("train", "files")
            given[into] = (*given[into], f"{name}={one['path']}")
    if any("share" in one or "rows" in one or "path" not in one for one in asked.values()):
        trained = {name: one for name, one in asked.items() if one.get("split", "train") == "train"}
        given["mix"] = (*given["mix"], *(f"{quoted(name)}{_amount(one)}" for name, one in trained.items()))
    own = {name: dict(_own(one, f"{where}#/datasets/{name}")) for name, one in asked.items()}
    return given | {"own": {name: one for name, one in own.items() if one}}


def _amount(one: Mapping[str, Any]) -> str:
    return f":{one['share']}" if "share" in one else f"#{one['rows']}" if "rows" in one else ""


def _own(one: Mapping[str, Any], where: str) -> Iterator[tuple[str, Any]]:
    """Yield the options of a dataset's own."""
    for key in (key for key in OWN if key in one):
        value = one[key]
        if key in ("columns", "tags"):
            yield key, tuple(value.items())
        elif key == "media_dir":
            if not Path(value).is_dir():
                raise UsageError(f"{where}/media_dir", f"no such folder: {value}")
            yield key, Path(value)
        else:
            if key == "weights" and value != "auto":
                weights(value)
            yield key, value


def _from_base(value: Any, base: Path) -> Any:
    """A path of the command line as it is called from the folder of the recipe; what is no path stays."""
    if isinstance(value, tuple):
        return tuple(_from_base(one, base) for one in value)
    if isinstance(value, StorePath) or (isinstance(value, str) and not Path(value).exists()):
        return value
    return type(value)(os.path.relpath(Path(value).resolve(), base.resolve()))


def _plain(value: Any) -> Any:
    """A value as YAML has it."""
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, StorePath):
        return value.uri
    return str(value) if isinstance(value, Path) else value
