"""The fast encoder, which is begun before the rest of the program is imported: this module imports little.

`fastokens` takes most of a second to build its tables. It does so without Python's lock, so the imports, and the
reference encoder, are there by the time it is.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from compiler.cache import records
from compiler.tokenizer.files import TokenizerFiles
from compiler.tokenizer.spec import Specs, outline_of, split_added
from schemas.errors import InputError
from schemas.memory import without_collections

REFUSALS = (ValueError, RuntimeError, NotImplementedError)
"""What `fastokens` raises for a tokenizer that it cannot do."""


class Tables(NamedTuple):
    """What `fastokens` builds, for texts of their own and for texts that go on."""

    fresh: Any
    continued: Any


def tables_of(specs: Specs) -> Tables | str:
    """Build the tables; return why there are none where it is not installed or does not take the tokenizer."""
    os.environ["FASTOKENS_BPE_THREADS"] = "1"
    try:
        import fastokens  # only here: not every platform has it

        fresh = fastokens.Tokenizer.from_json_str(specs.json(specs.forms.fresh))
        continued = specs.forms.continued
        return Tables(fresh, fastokens.Tokenizer.from_json_str(specs.json(continued)) if continued else fresh)
    except ImportError:
        return "it is not installed"
    except REFUSALS as error:
        return f"it does not take this tokenizer: {str(error)[:200]}"


class Begun:
    """Tables that a thread builds."""

    def __init__(self, specs: Specs) -> None:
        self.specs = specs
        self._found: Tables | str | None = None
        self._thread = Thread(target=self._build)
        self._thread.start()

    def _build(self) -> None:
        with suppress(BaseException):  # a panic of Rust is no Exception; they are built again where they are used
            self._found = tables_of(self.specs)

    def result(self) -> Tables | str | None:
        """Wait for the thread; None where it failed."""
        self._thread.join()
        return self._found


_BEGUN: dict[str, tuple[Begun, dict[str, Any]]] = {}
"""What was begun and not taken yet, by the identity of the tokenizer's files, and the parsed `tokenizer.json`."""


def begin_fast(folder: str, cache: str) -> None:
    """Begin to build the tables of a tokenizer ("" = none), unless the cache knows it, so that others may have encoded.

    What is wrong with the tokenizer is for others to say.
    """
    if not folder:
        return
    with suppress(Exception):
        files = TokenizerFiles.find(Path(folder))
        if not records.has(Path(cache), outline_key(files)):
            with without_collections():
                spec = files.spec()
                outline = outline_of(spec)
                text_tokens, _ = split_added(outline, files.chat_templates().values())
                specs = Specs.of(spec, text_tokens)
                _BEGUN[files.identity] = Begun(specs), spec
                keep_outline(Path(cache), files, outline)


def taken(files: TokenizerFiles) -> tuple[Begun | None, dict[str, Any] | None]:
    """What was begun for these files, for the one who takes it, and the parsed `tokenizer.json`.

    Waits for what was begun for others, which were there a moment ago: a process with two threads is not copied.
    """
    found = _BEGUN.pop(files.identity, (None, None))
    while _BEGUN:
        _BEGUN.popitem()[1][0].result()
    return found


def outline_key(files: TokenizerFiles) -> str:
    """Under which name the cache keeps the outline of a tokenizer."""
    return records.key_of("tokenizer", files.digest)


def keep_outline(cache: Path, files: TokenizerFiles, outline: dict[str, Any]) -> None:
    """Keep the outline of a tokenizer in the cache, unless it is there."""
    if records.load_record(cache, outline_key(files)) is None:
        with suppress(InputError):  # a cache that cannot be written: whoever must write there says so
            records.store_record(cache, outline_key(files), {"outline": outline})
