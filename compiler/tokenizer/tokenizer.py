"""A tokenizer as the compiler uses it: a vocabulary with its encoders. Text never becomes a control token."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer as HFTokenizer

from compiler.cache import records
from compiler.tokenizer import ahead, encoders
from compiler.tokenizer.ahead import Begun
from compiler.tokenizer.encoders import FAST, REFERENCE, FastEncoder, Ids, ReferenceEncoder
from compiler.tokenizer.files import TokenizerFiles
from compiler.tokenizer.spec import Forms, Specs, outline_of
from compiler.tokenizer.vocabulary import Vocabulary, byte_lengths_of
from schemas.errors import InputError, Problem
from schemas.memory import trim_memory, without_collections

_LOADED: dict[str, Tokenizer] = {}
"""The last tokenizer that was loaded in this process, by the identity of its files: a large one takes a second."""

SAMPLE_LENGTH = 4096
"""Characters of the longest text that is taken as a sample."""


class Sample(NamedTuple):
    """A text that the fast encoder encoded, to be compared with the reference."""

    fresh: bool
    text: str
    ids: list[int]


class Tokenizer(Vocabulary):
    """A vocabulary with the encoders of its texts, each loaded when it is first used."""

    def __init__(
        self,
        files: TokenizerFiles,
        spec: dict[str, Any] | None = None,
        outline: dict[str, Any] | None = None,
        *,
        begun: Begun | None = None,
        encodes: bool = False,
    ) -> None:
        """Without a parsed `tokenizer.json` its outline is given, and the file is parsed when an encoder is used.

        `begun`: the fast encoder is being built. `encodes`: the reference is built at once, of what was parsed.
        """
        super().__init__(files, outline_of(files.spec() if spec is None else spec) if outline is None else outline)
        self.files = files
        self._begun = begun
        self._samples: list[Sample] = []
        if begun is not None:
            self.__dict__["_specs"] = begun.specs
        if spec is not None:
            self._take(spec, model=begun is None and not encodes)
            if encodes:
                self._build_reference(spec)

    def _build_reference(self, spec: dict[str, Any]) -> None:
        """Build the reference encoder of what was parsed. What is wrong is said where it is used, and built again."""
        try:
            reference = ReferenceEncoder(Forms.of(spec, self.text_tokens), encoders.official_of(spec))
        except BaseException as error:  # tokenizers raises bare Exception, and panics of Rust are not even that
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
        else:
            self.__dict__["reference"] = reference

    def _take(self, spec: dict[str, Any], *, model: bool = True) -> None:
        """Keep what encoding needs of a parsed `tokenizer.json`, which is large and is not kept itself."""
        self.__dict__["byte_lengths"] = byte_lengths_of(spec, len(self.is_control))
        if model:
            self.__dict__["_specs"] = Specs.of(spec, self.text_tokens)

    @cached_property
    def _specs(self) -> Specs:
        self._take(self.files.spec())
        found: Specs = self.__dict__["_specs"]
        return found

    @cached_property
    def byte_lengths(self) -> npt.NDArray[np.int32] | None:
        """int32[V]: how many bytes of text each entry of the vocabulary stands for; None where that is not known."""
        self._take(self.files.spec())
        found: npt.NDArray[np.int32] | None = self.__dict__["byte_lengths"]
        return found

    @classmethod
    def load(
        cls, folder: Path, cache: Path | None = None, *, encodes: bool = False, others_encode: bool = False
    ) -> Tokenizer:
        """Load the tokenizer of a folder. Its encoders are loaded when they are used.

        The outline of a tokenizer is kept in the cache, so that its file need not be parsed where nothing is encoded.
        `encodes`: this process will use the reference if the cache does not know the tokenizer, so that it was never
        used with this cache. `others_encode`: other processes will encode, and what encoding needs is not made here;
        the outline is kept later (`keep`), since these ask for it too. Nothing but the time depends on these.
        """
        files = TokenizerFiles.find(folder)
        if files.identity not in _LOADED:
            begun, spec = ahead.taken(files)
            kept = None if cache is None else records.load_record(cache, ahead.outline_key(files))
            try:
                with without_collections():
                    if begun is not None:
                        tokenizer = cls(files, spec, begun=begun, encodes=True)
                    elif kept is not None:
                        tokenizer = cls(files, outline=kept["outline"])
                    elif others_encode:
                        tokenizer = cls(files, outline=outline_of(files.spec()))
                    else:
                        tokenizer = cls(files, files.spec(), encodes=encodes)
            except Problem:
                raise
            except Exception as error:  # the file may hold anything
                raise _broken(files, error) from error
            if kept is None and not others_encode:
                tokenizer.keep(cache)
            del spec  # tens of megabytes, which are gone before the next modules are imported
            trim_memory()
            _LOADED.clear()  # one is enough, and each holds tens of megabytes
            _LOADED[files.identity] = tokenizer
        return _LOADED[files.identity]

    def keep(self, cache: Path | None) -> None:
        """Keep the outline in the cache, unless it is there."""
        if cache is not None:
            ahead.keep_outline(cache, self.files, self.outline)

    def wait(self) -> None:
        """Wait for what another thread loads.

        Templates run under a limit of memory, at which Rust ends the process, and a process with two threads is not
        copied.
        """
        begun, self._begun = self._begun, None
        tables = None if begun is None else begun.result()
        if tables is not None:
            self.__dict__["fast"] = tables if isinstance(tables, str) else FastEncoder(tables)

    @cached_property
    def reference(self) -> ReferenceEncoder:
        """The reference encoder."""
        try:
            found = ReferenceEncoder.of(self._specs)
        except BaseException as error:  # tokenizers raises bare Exception, and panics of Rust are not even that
            if isinstance(error, KeyboardInterrupt | SystemExit | Problem):
                raise
            raise _broken(self.files, error) from error
        trim_memory()
        return found

    @cached_property
    def fast(self) -> FastEncoder | str:
        """The fast encoder, or why there is none. Whether it is right is not asked here."""
        self.wait()
        found: FastEncoder | str | None = self.__dict__.get("fast")
        found = found or encoders.load_fast(self._specs)
        trim_memory()
        return found

    def load_fast(self) -> str:
        """Load the fast encoder, and let go of the reference; return why there is no fast one, or ""."""
        if isinstance(self.fast, str):
            return self.fast
        if self.__dict__.pop("reference", None) is not None:
            trim_memory()
        return ""

    def drop_encoders(self) -> None:
        """Let go of the encoders, since other processes encode."""
        for name in ("fast", "reference"):
            self.__dict__.pop(name, None)
        trim_memory()

    # -- encoding --

    def encode(self, texts: Sequence[str], *, fresh: bool, encoder: str = REFERENCE) -> Ids:
        """(ids int32[T], lengths int64[len(texts)]) of the texts, one after the other.

        Ids do not depend on the encoder. That no control token comes out of a text, whatever it spells, is checked.
        """
        chosen = self.fast if encoder == FAST else self.reference
        assert not isinstance(chosen, str), chosen
        ids, lengths = chosen.encode(texts, fresh=fresh)
        self._check_plain(ids)
        return ids, lengths

    def encode_with_offsets(self, text: str, *, fresh: bool) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """(ids int32[T], offsets int64[T, 2] in characters of `text`), by the reference."""
        ids, offsets = self.reference.encode_with_offsets(text, fresh=fresh)
        self._check_plain(ids)
        return ids, offsets

    def _check_plain(self, ids: npt.NDArray[np.int32]) -> None:
        low, high = self._without_controls
        if len(ids) and not (low <= ids.min() and ids.max() < high) and self.is_control[ids].any():
            found = int(ids[self.is_control[ids]][0])
            # Some vocabularies can spell <unk> or a control token from ordinary pieces. Refusing the text is better
            # than a control token that the template did not write.
            raise InputError(
                str(self.files.folder),
                f"ordinary text was encoded to the control token {self.token(found)!r} ({found})",
            )

    @cached_property
    def _without_controls(self) -> tuple[int, int]:
        """The longest range of ids without a control token, [low, high): most texts have no id beside it."""
        edges = [-1, *np.flatnonzero(self.is_control).tolist(), len(self.is_control)]
        low, high = max(pairwise(edges), key=lambda pair: pair[1] - pair[0])
        return low + 1, high

    def take_sample(self, fresh: bool, text: str, ids: npt.NDArray[np.int32]) -> None:
        """Keep a text that the fast encoder encoded, unless it is long."""
        if len(text) <= SAMPLE_LENGTH:
            self._samples.append(Sample(fresh, text, ids.tolist()))

    def pop_samples(self) -> list[Sample]:
        """Return the samples that were taken since the last call, and forget them."""
        found, self._samples = self._samples, []
        return found

    # -- decoding --

    @property
    def official(self) -> HFTokenizer:
        """The tokenizer as it was published, control tokens and all."""
        return self.reference.official

    @cached_property
    def document_start(self) -> list[int]:
        """The control tokens that the official tokenizer puts before any text, such as `<s>`; most have none."""
        ids = self.official.encode("", add_special_tokens=True).ids
        with_text = self.official.encode("a", add_special_tokens=True).ids
        return [token for token, same in zip(ids, with_text, strict=False) if token == same and self.is_control[token]]

    def token(self, token_id: int) -> str:
        """The vocabulary entry of an id, as the tokenizer spells it."""
        return self.official.id_to_token(token_id) or f"<id {token_id}>"

    def normalize(self, text: str) -> str:
        """A text as it is normalized before it is encoded (NFC for Qwen)."""
        return self.reference.normalize(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, control tokens included."""
        return self.official.decode(list(ids), skip_special_tokens=False)


def load_early(folder: str, cache: str) -> None:
    """Load a tokenizer ("" = none) whose fast encoder was begun. What is wrong with it is for others to say."""
    with suppress(Problem, OSError):
        if folder:
            Tokenizer.load(Path(folder), Path(cache))


def _broken(files: TokenizerFiles, error: BaseException) -> InputError:
    said = str(error)[:200] if isinstance(error, ValueError) else f"{type(error).__name__}: {str(error)[:200]}"
    return InputError(str(files.folder / "tokenizer.json"), f"not a tokenizer: {said}")
