"""predict_with_generate: the model's replies to the rows of a split, next to the replies that the rows have.

Every stretch of trained tokens is a reference, and everything before it in its sequence is the prompt: what the model
would see and have to continue. A conversation with three replies gives three prompts; a ReAct reply whose observations
are not trained gives one for each step of the agent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from schemas import disk
from schemas.errors import UsageError
from schemas.manifest import Manifest
from trainer.models.prefix import generate, takes_padding
from trainer.models.wrappers import evaluating
from trainer.predict.metrics import score


def predict_with_generate(
    model: Any,
    tokenizer: Any,
    rows: Iterable[Mapping[str, Any]],
    manifest: Manifest,
    path: Path,
    **settings: Any,
) -> dict[str, float]:
    """Write predictions for the rows of a split to `path`; return their scores (`metrics.score`).

    `settings` are those of `predict`. All processes call it and get the scores; the first one writes the file.
    """
    wanted = [prompt for row in rows for prompt in prompts(row, sees=settings.get("eyes") is not None)]
    found = predict(model, tokenizer, wanted, stops=stop_ids(manifest), words=stop_words(manifest), **settings)
    if not (torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank()):
        write_predictions(found, path)
    return score([one.prediction for one in found], [one.reference for one in found])


@dataclass(frozen=True)
class ReplyPrompt:
    """Token ids before a stretch of trained ones, those ones, and where they are: row, part, number of the reply."""

    prompt_ids: list[int]
    reference_ids: list[int]
    dataset: str
    file: str
    row: int
    part: int
    reply: int
    source: Mapping[str, Any] | None = None
    """The row, where it has pictures or videos."""


class Shows(Protocol):
    """Shows a model the pictures and videos of prompts."""

    def see(self, prompts: Sequence[ReplyPrompt]) -> tuple[list[list[int]], list[list[int]], dict[str, torch.Tensor]]:
        """(masked ids before each prompt, ids of each with all placeholders, what the model takes of the pictures)."""

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the model takes beside ids [B, T]."""


@dataclass(frozen=True)
class Prediction:
    """One line of predictions.jsonl: texts without their stop token; `row`, `part` as in the shard.

    `stopped`: the model stopped by itself; otherwise it was cut at `max_new_tokens`.
    """

    prompt: str
    prediction: str
    reference: str
    stopped: bool
    dataset: str
    file: str
    row: int
    part: int
    reply: int


def prompts(row: Mapping[str, Any], *, sees: bool = False) -> Iterator[ReplyPrompt]:
    """Yield the prompts of a row of a shard, a pack included; `sees` says that the model can be shown pictures."""
    has_media = len(row.get("images") or ()) + len(row.get("videos") or ()) > 0
    if has_media and not sees:
        raise UsageError(
            "predict_with_generate", "replies to rows with images or videos need the model's eyes, and none are given",
            "Leave predict_with_generate out; the evaluation loss is still computed.",
        )  # fmt: skip
    ids, labels = np.asarray(row["input_ids"]), np.asarray(row["labels"])
    ends = np.cumsum(row["seq_lens"])
    for sequence, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
        at: dict[str, Any] = {name: row[name] for name in ("dataset", "file", "row", "part")}
        at = {name: value[sequence] if np.ndim(value) else value for name, value in at.items()}  # lists in packs
        at |= {"row": int(at["row"]), "part": int(at["part"])}
        trained = np.concatenate([[False], labels[start:end] != -100, [False]])
        first, after = np.flatnonzero(np.diff(trained.astype(np.int8))).reshape(-1, 2).T + start
        for reply, (a, b) in enumerate(zip(first, after, strict=True)):
            if a > start:  # otherwise there is no prompt
                yield ReplyPrompt(
                    ids[start:a].tolist(), ids[a:b].tolist(), reply=reply, **at, source=row if has_media else None
                )


def stop_words(manifest: Manifest) -> list[str]:
    """Words after which the environment writes: trained keywords whose content is untrained (`Observation:`)."""
    found = set()
    for dataset in manifest["datasets"]:
        policies = [dataset["policy"], *dataset["policy"].get("then", ())]
        keywords = (item for policy in policies for item in policy.get("keywords", {}).items())
        found |= {word for word, weights in keywords if weights["keyword"] and not weights["content"]}
    return sorted(found)


def stop_ids(manifest: Manifest) -> list[int]:
    """The tokens that end a reply in this set's template."""
    controls = manifest["tokenizer"]["controls"]
    return [controls[stop] for stop in manifest["template"]["certificate"]["stops"] if stop in controls]


def predict(
    model: Any,
    tokenizer: Any,
    wanted: Sequence[ReplyPrompt],
    *,
    stops: Sequence[int],
    words: Sequence[str] = (),
    max_new_tokens: int = 512,
    batch_size: int = 8,
    synced_gpus: bool = False,
    eyes: Shows | None = None,
    progress: Callable[[int, int], object] = lambda *_: None,
) -> list[Prediction]:
    """Greedy predictions, in the order of `wanted`.

    `model`: a Transformers or PEFT model (for a wrapped one, its `module`). `tokenizer`: the set's Transformers
    tokenizer, for decoding and for `words`: a reply ends after the first of these, as the references do. With several
    processes, each computes a share and all return everything; `synced_gpus` as in `generate`, needed with ZeRO-3.
    `eyes` shows the model the pictures of prompts. `progress` gets (prompts done, prompts) of this process.
    """
    group = torch.distributed if torch.distributed.is_available() and torch.distributed.is_initialized() else None
    rank, world = (group.get_rank(), group.get_world_size()) if group else (0, 1)
    longest_first = sorted(range(len(wanted)), key=lambda i: -len(wanted[i].prompt_ids))
    mine = longest_first[rank::world]
    if len(longest_first) % world and rank >= len(longest_first) % world:
        mine = [*mine, longest_first[-1]]  # as many as the others: ZeRO-3 generates in step; kept only once
    said: dict[int, tuple[list[int], bool]] = {}
    batch_size = batch_size if takes_padding(model) else 1
    for start in range(0, len(mine), batch_size):
        chosen = mine[start : start + batch_size]
        written = _generate(
            model, tokenizer, [wanted[i] for i in chosen], eyes, stops, words, max_new_tokens, synced_gpus
        )
        said |= dict(zip(chosen, written, strict=True))
        progress(len(said), len(mine))
    if group:
        parts: list[Any] = [None] * world
        group.all_gather_object(parts, said)
        said = {i: written for part in parts for i, written in part.items()}

    def text(ids: list[int]) -> str:
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    return [
        Prediction(
            prompt=text(prompt.prompt_ids),
            prediction=text(said[i][0]),
            reference=text(_until(prompt.reference_ids, stops)[0]),
            stopped=said[i][1],
            **{name: getattr(prompt, name) for name in ("dataset", "file", "row", "part", "reply")},
        )
        for i, prompt in enumerate(wanted)
    ]


def _generate(
    model: Any,
    tokenizer: Any,
    chosen: list[ReplyPrompt],
    eyes: Shows | None,
    stops: Sequence[int],
    words: Sequence[str],
    max_new_tokens: int,
    synced_gpus: bool,
) -> list[tuple[list[int], bool]]:
    """The model's reply to each prompt, and whether it stopped; prompts are padded on the left."""
    batch, before, pictures = (
        [one.prompt_ids for one in chosen],
        [list[int]() for _ in chosen],
        dict[str, torch.Tensor](),
    )
    if eyes is not None:
        before, batch, pictures = eyes.see(chosen)
    width = max(len(hidden) + len(ids) for hidden, ids in zip(before, batch, strict=True))
    padded = [
        [stops[0]] * (width - len(hidden) - len(ids)) + hidden + ids for hidden, ids in zip(before, batch, strict=True)
    ]
    input_ids = torch.tensor(padded, device=model.device)
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch], device=model.device)
    if eyes is not None:
        pictures |= eyes.types(input_ids)
    with evaluating(model):
        written = generate(
            model, input_ids, mask, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1,
            temperature=None, top_p=None, top_k=None, repetition_penalty=1.0,
            eos_token_id=list(stops), pad_token_id=stops[0], synced_gpus=synced_gpus,
            **{name: value.to(model.device) for name, value in pictures.items()},
            **({"stop_strings": list(words), "tokenizer": tokenizer} if words else {}),
        )  # fmt: skip
    return [_until(ids, stops, words, tokenizer) for ids in written[:, width:].tolist()]


def _until(
    ids: list[int], stops: Sequence[int], words: Sequence[str] = (), tokenizer: Any = None
) -> tuple[list[int], bool]:
    """The ids before the first stop token, and whether there is one; a stop word also ends them, and is kept."""
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    kept = ids[:end]
    ended = bool(words) and tokenizer.decode(kept).rstrip().endswith(tuple(words))
    return kept, end is not None or ended


def write_predictions(predictions: Iterable[Prediction], path: Path) -> None:
    """Write predictions.jsonl, completely or not at all."""
    write_lines(map(asdict, predictions), path)


def write_lines(lines: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write JSON lines, completely or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    with disk.open_to_write(partial) as file:
        file.truncate(0)
        for line in lines:
            file.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)
