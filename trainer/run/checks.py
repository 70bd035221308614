"""Whether a set, a model and a configuration fit together."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from schemas.errors import UsageError
from schemas.manifest import Realized
from trainer import objectives
from trainer.config import zero
from trainer.config.config import TrainConfig
from trainer.data import stream
from trainer.data.vision.find import card_of
from trainer.models import initial
from trainer.models.folder import ModelFolder
from trainer.objectives.objective import Objective
from trainer.run import log
from trainer.run.schedule import learning_rate

COMPARED = 1024
"""Batches of a split whose lengths are compared with what is expected before a run begins."""
_NEVER_TRIED = ("gptq", "awq", "aqlm")
_SEE_AFTER_A_PREFIX = ("llava", "cogagent")
"""Cards of models whose pictures are like other tokens to positions and masks, so that PEFT's prefix fits them."""


def choose_objective(opened: stream.TrainingSet, config: TrainConfig, where: str) -> Objective:
    """The objective of a run; UsageError where it does not fit the set, or settings or tuning do not fit it."""
    fitting = objectives.default(opened.kind)
    objective = objectives.OBJECTIVES[config.objective] if config.objective else fitting
    if objective.kind != opened.kind:
        what = f"{objective.name} needs a set of kind {objective.kind}, and {opened.where} is of kind {opened.kind}"
        hint = f"Use another set, or objective: {fitting.name} (or leave it out)."
        raise UsageError(f"{where}#/objective", what, hint)
    for key in dict.fromkeys(key for one in objectives.OBJECTIVES.values() for key in one.settings):
        if key not in objective.settings and getattr(config, key) != getattr(TrainConfig, key):
            raise UsageError(f"{where}#/{key}", f"it has no effect on the objective {objective.name}", "Leave it out.")
    return objective


def check_expected(
    opened: stream.TrainingSet, splits: Sequence[stream.SplitRows], source: ModelFolder, config: TrainConfig, where: str
) -> list[str]:
    """Raise, naming every difference, unless the set is as the configuration expects; return remarks.

    Rows of `splits` that are too many to be compared now are compared when they are read.
    """
    expect, manifest = config.expect, opened.manifest
    wrong: list[tuple[str, str]] = []
    remarks = []
    held_out = {one["name"] for one in manifest["datasets"] if _held_out(one["realized"])}
    names = [one["name"] for one in manifest["datasets"] if one["name"] not in held_out]
    if expect.datasets is not None and set(expect.datasets) != {n for n in names if n != "self-cognition"}:
        wrong.append(("datasets", f"expected {', '.join(sorted(expect.datasets))}, the set has {', '.join(names)}"))
    template = manifest["template"]
    if expect.template not in (None, template["name"]):
        if template["name"] == "auto":
            remarks.append(
                f"template {expect.template} was not compared: the set uses the template of the model's own tokenizer"
            )
        else:
            wrong.append(("template", f"expected {expect.template}, the set was compiled with {template['name']}"))
    if expect.max_length is not None:
        problems = _too_long(opened, splits, source, expect.max_length, where, remarks)
        wrong.extend(("max_length", problem) for problem in problems)
    if expect.max_samples is not None:
        more = [one["name"] for one in manifest["datasets"] if one["realized"]["rows"] > expect.max_samples]
        if more:
            wrong.append(("max_samples", f"expected at most {expect.max_samples} rows a dataset, {more[0]} has more"))
    if expect.val_size is not None and expect.val_size != manifest["options"]["val_size"]:
        found = manifest["options"]["val_size"]
        wrong.append(("val_size", f"expected {expect.val_size}, the set was compiled with --val-size {found}"))
    if expect.packing is not None and expect.packing != opened.is_packed:
        wrong.append(("packing", f"expected {expect.packing}, the set is {'' if opened.is_packed else 'not '}packed"))
    if wrong:
        listed = "\n  ".join(f"{key}: {what}" for key, what in wrong)
        hint = f"Compile the set accordingly, or skip the check: --set expect.{wrong[0][0]}=null."
        raise UsageError(f"{where}", f"the set {opened.where} is not what it expects\n  {listed}", hint)
    return remarks


def _held_out(realized: Realized) -> bool:
    """Whether all rows of a dataset are of one split that is not trained."""
    return realized["rows"] in (realized["val_rows"], realized.get("test_rows")) and realized["rows"] > 0


def check_libraries(config: TrainConfig) -> None:
    """Raise for what a library would refuse later: a tracker, settings of a scheduler."""
    log.check_trackers(config.report_to)
    learning_rate(config, max(config.max_steps, 2))


def _too_long(
    opened: stream.TrainingSet, splits: Sequence[stream.SplitRows], source: ModelFolder, most: int, where: str,
    remarks: list[str],
) -> Iterator[str]:  # fmt: skip
    """Yield what is wrong if examples have more tokens than expected; the document's lengths are those of text."""
    limit, picture = opened.manifest["options"].get("max_length"), source.tokens_of_a_picture if opened.has_media else 0
    if limit is not None and limit <= most + picture:
        return
    beside = f" beside {picture} for each picture" if picture else ""
    said = f"expected at most {most} tokens{beside}, the set has rows of "
    found = [opened.split(name) for name in opened.manifest["splits"] if opened.shards(name)]
    if (longest := max(split.longest_example(COMPARED) for split in found)) > most:
        yield f"{said}{longest}"
    for split in splits:
        if len(split.entries) > COMPARED:
            split.expect = functools.partial(_check_length, split, most, said, where)
            first, rest = split.starts[COMPARED], len(split) - split.starts[COMPARED]
            compared = f"of {split.name} the first {first:,} rows were compared"
            remarks.append(f"expect.max_length: {compared}, and the other {rest:,} are when they are read")


def _check_length(split: stream.SplitRows, most: int, said: str, where: str, batch: pa.RecordBatch) -> None:
    if (longest := split.longest_of(batch)) > most:
        hint = "Compile the set accordingly, or skip the check: --set expect.max_length=null."
        raise UsageError(f"{where}#/expect/max_length", f"{split.opened.where}: {said}{longest}", hint)


def check_model(
    opened: stream.TrainingSet, source: ModelFolder, config: TrainConfig, deepspeed: dict[str, Any], where: str
) -> None:
    """Raise for combinations that would be silently wrong."""
    vocabulary = getattr(source.text_config, "vocab_size", None)
    largest = max(opened.manifest["tokenizer"]["controls"].values(), default=0)
    if vocabulary is not None and largest >= vocabulary:
        what = f"the set has the token id {largest}, the model has {vocabulary} embeddings"
        raise UsageError(str(source.folder), what, "Use the model that the set was compiled for.")
    if opened.is_packed and config.tuning == "prefix":
        what = "with a prefix, models do not see where sequences of a pack begin, and each would see those before it"
        raise UsageError(f"{where}#/tuning", what, "Use tuning: lora, or compile the set without --pack.")
    if opened.is_packed and opened.has_media:
        what = "packs with images are not supported: the positions of image tokens do not restart"
        raise UsageError(opened.where, what, "Compile the set without --pack.")
    if config.predict_with_generate and opened.kind == "pretrain":
        raise UsageError(
            f"{where}#/predict_with_generate", "documents have no replies",
            "Set it to false; the evaluation loss is still computed.",
        )  # fmt: skip
    media = opened.manifest.get("media")
    if media and opened.has_media:
        card = card_of(source.config)
        if card != media["name"]:
            what = f"its pictures are laid out for models of the class {media['name']}, and this one is a {card}"
            raise UsageError(opened.where, what, "Compile the set with this model's folder as --tokenizer.")
        if config.tuning == "prefix" and card not in _SEE_AFTER_A_PREFIX:
            what = f"a {card} model places or masks its pictures as if there were no prefix"
            hint = f"Use tuning: lora, or a model of the class {' or '.join(_SEE_AFTER_A_PREFIX)}."
            raise UsageError(f"{where}#/tuning", what, hint)
    objective = objectives.OBJECTIVES[config.objective] if config.objective else objectives.default(opened.kind)
    initial.check(config, zero.stage(deepspeed), objective.needs_reference, where)
    stored = (getattr(source.config, "quantization_config", None) or {}).get("quant_method")
    if stored in _NEVER_TRIED:
        what = f"its weights are stored by {stored}, and adapters of such layers were never tried"
        hint = "Use the model whose weights are not quantized, with quantization_bit: 4 if memory is short."
        raise UsageError(f"{source.folder / 'config.json'}#/quantization_config", what, hint)
    if config.logits_in_chunks is True and zero.stage(deepspeed) == 3:
        what = "ZeRO-3 takes the head's weights away before they are computed with again"
        raise UsageError(f"{where}#/logits_in_chunks", what, "Use zero_stage: 2, or leave it out.")
    if config.quantization_bit and zero.stage(deepspeed) == 3:
        what = "weights of 4 or 8 bits cannot be split between processes"
        raise UsageError(f"{where}#/quantization_bit", what, "Use zero_stage: 2, or leave quantization_bit out.")
