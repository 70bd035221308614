"""The configuration of a run: our own YAML or another tool's file, then command-line overrides, checked together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yaml import YAMLError

import registry
from schemas import check_config, hub, schema, yaml
from schemas.errors import UsageError, nearest
from trainer.config import derived, dialects, forms, shell


@dataclass(frozen=True)
class Lora:
    """LoRA, in PEFT's names."""

    r: int = 8
    lora_alpha: float | None = None
    lora_dropout: float = 0.0
    target_modules: str | list[str] = "all"
    modules_to_save: list[str] = field(default_factory=list)
    use_rslora: bool = False
    use_dora: bool = False
    init_lora_weights: bool | str = True
    loraplus_lr_ratio: float | None = None
    loraplus_lr_embedding: float = 1e-6


@dataclass(frozen=True)
class Prefix:
    """P-Tuning v2, in PEFT's names."""

    num_virtual_tokens: int = 128
    prefix_projection: bool = False


@dataclass(frozen=True)
class Expect:
    """What the set is expected to be; None = anything."""

    datasets: list[str] | None = None
    template: str | None = None
    max_length: int | None = None
    max_samples: int | None = None
    val_size: float | None = None
    packing: bool | None = None


@dataclass(frozen=True)
class TrainConfig:
    """A run's configuration; schemas/train_config.schema.json explains each key and has the same defaults."""

    model_name_or_path: str
    output_dir: str
    model_revision: str | None = None
    hub: str | None = None
    trust_remote_code: bool = False
    attn_implementation: str = "auto"
    quantization_bit: int | None = None
    bnb_4bit_quant_type: str = "nf4"
    bnb_4bit_use_double_quant: bool = False
    overwrite_output_dir: bool = False
    media_dir: str | None = None
    objective: str | None = None
    beta: float | None = None
    dpo_label_smoothing: float = 0.0
    simpo_gamma: float = 0.5
    rpo_alpha: float | None = None
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    tuning: str = "lora"
    lora: Lora = field(default_factory=Lora)
    prefix: Prefix = field(default_factory=Prefix)
    freeze_vision: bool | str = False
    freeze_projector: bool | str | None = None
    freeze_language_model: bool = False
    freeze: list[str] = field(default_factory=list)
    trainable: list[str] = field(default_factory=list)
    num_train_epochs: float = 3.0
    max_steps: int = -1
    per_device_train_batch_size: int = 1
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    lr_scheduler_type: str = "linear"
    lr_scheduler_kwargs: dict[str, Any] = field(default_factory=dict)
    warmup_ratio: float = 0.0
    warmup_steps: int = 0
    optim: str = "auto"
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    label_smoothing_factor: float = 0.0
    neftune_noise_alpha: float | None = None
    router_aux_loss_coef: float = 0.0
    bf16: bool | str = "auto"
    fp16: bool = False
    gradient_checkpointing: bool = False
    gradient_checkpointing_kwargs: dict[str, Any] = field(default_factory=dict)
    logits_in_chunks: bool | str = "auto"
    use_liger_kernel: bool | str = "auto"
    torch_compile: bool = False
    torch_compile_backend: str = "inductor"
    torch_compile_mode: str | None = None
    zero_stage: int = 2
    deepspeed: str | dict[str, Any] | None = None
    use_cpu: bool = False
    ddp_timeout: int = 1800
    seed: int = 42
    group_by_length: bool = True
    shuffle_shards: str | int = "auto"
    store_cache_gib: float = 32
    dataloader_num_workers: int = 2
    logging_steps: float = 10
    peak_tflops: float | None = None
    report_to: list[str] = field(default_factory=list)
    run_name: str | None = None
    plot_loss: bool = True
    save_strategy: str = "steps"
    save_steps: float = 500
    save_total_limit: int | None = None
    eval_strategy: str = "no"
    eval_steps: float | None = None
    per_device_eval_batch_size: int | None = None
    predict_with_generate: bool = False
    generation_max_new_tokens: int = 512
    load_best_model_at_end: bool = False
    metric_for_best_model: str | None = None
    greater_is_better: bool | None = None
    early_stopping_patience: int | None = None
    early_stopping_threshold: float = 0.0
    expect: Expect = field(default_factory=Expect)

    @property
    def compares(self) -> bool:
        """Whether evaluations are compared with each other."""
        return self.load_best_model_at_end or self.early_stopping_patience is not None

    def as_dict(self) -> dict[str, Any]:
        """The configuration as JSON values, with all defaults."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Loaded:
    """A configuration, where it comes from, and remarks about it."""

    config: TrainConfig
    where: str
    dialect: str
    remarks: tuple[str, ...]
    """One line for each key that has no effect here, with the reason."""


_CONSTANT = "the rate of lr_scheduler_type: constant never changes; constant_with_warmup has a warm-up"
_PLAIN = ("constant", "constant_with_warmup")


def _is_here(model: object) -> bool:
    """Whether a model is a folder, or the embedded one; what is no text is neither, and the schema says so later."""
    return isinstance(model, str) and (model == registry.DEMO_MODEL.name or Path(model).is_dir())


Idle = tuple[str, Callable[[TrainConfig], bool], str]
_IDLE: Sequence[Idle] = (
    ("bnb_4bit_quant_type", lambda c: c.quantization_bit != 4, "quantization_bit is not 4"),
    ("bnb_4bit_use_double_quant", lambda c: c.quantization_bit != 4, "quantization_bit is not 4"),
    (
        "gradient_checkpointing_kwargs",
        lambda c: not c.gradient_checkpointing and c.tuning != "prefix",
        "gradient_checkpointing is false",
    ),
    ("torch_compile_backend", lambda c: not c.torch_compile, "torch_compile is false"),
    ("torch_compile_mode", lambda c: not c.torch_compile, "torch_compile is false"),
    ("lora", lambda c: c.tuning != "lora", "tuning is not lora"),
    ("prefix", lambda c: c.tuning != "prefix", "tuning is not prefix"),
    ("freeze", lambda c: c.tuning != "full", "the whole base model is frozen unless tuning is full"),
    ("trainable", lambda c: c.tuning != "full", "the whole base model is frozen unless tuning is full"),
    ("zero_stage", lambda c: c.deepspeed is not None, "the deepspeed configuration sets the stage"),
    ("save_steps", lambda c: c.save_strategy != "steps", "save_strategy is not steps"),
    ("eval_steps", lambda c: c.eval_strategy != "steps", "eval_strategy is not steps"),
    ("per_device_eval_batch_size", lambda c: c.eval_strategy == "no", "nothing is evaluated: eval_strategy is no"),
    ("predict_with_generate", lambda c: c.eval_strategy == "no", "nothing is evaluated: eval_strategy is no"),
    ("generation_max_new_tokens", lambda c: not c.predict_with_generate, "predict_with_generate is false"),
    ("metric_for_best_model", lambda c: not c.compares, "evaluations are not compared"),
    ("greater_is_better", lambda c: not c.compares, "evaluations are not compared"),
    ("early_stopping_threshold", lambda c: c.early_stopping_patience is None, "early_stopping_patience is not set"),
    ("run_name", lambda c: not {"wandb", "swanlab"} & set(c.report_to), "report_to has neither wandb nor swanlab"),
    ("warmup_ratio", lambda c: c.warmup_steps > 0, "warmup_steps is set"),
    ("warmup_ratio", lambda c: c.lr_scheduler_type == "constant", _CONSTANT),
    ("warmup_steps", lambda c: c.lr_scheduler_type == "constant", _CONSTANT),
    ("lr_scheduler_kwargs", lambda c: c.lr_scheduler_type in _PLAIN, "the lr_scheduler_type takes no arguments"),
    ("num_train_epochs", lambda c: c.max_steps > 0, "max_steps is set"),
    ("model_revision", lambda c: _is_here(c.model_name_or_path), "the model is not from a hub"),
    ("hub", lambda c: _is_here(c.model_name_or_path), "the model is not from a hub"),
)
"""(key, when it has no effect, why): such a key is an error in our own file and a remark in another tool's."""


def load(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Load a YAML or shell file and apply `KEY=VALUE` overrides (our names, YAML values; null unsets a key)."""
    asked = shell.read(path) if shell.is_shell(path) else shell.Asked(yaml.read(path), (), {}, [])
    return of(asked, str(path), overrides)


def of(call: shell.Asked, path: str, overrides: Sequence[str] = ()) -> Loaded:
    """The configuration that a file or a call asks for; `path` is its name in messages."""
    _check_sizes(call.raw, path)
    file = dialects.translate(call.raw, path, call.tables)
    if file.dialect == dialects.OWN and call.raw and not set(call.raw) & set(schema("train_config")["properties"]):
        what = f"none of its keys is one of a training configuration; the first is {next(iter(call.raw))!r}"
        raise UsageError(path, what, "docs/train.md has examples.")
    values = {key: dict(value) if isinstance(value, dict) else value for key, value in file.values.items()}
    overridden = {_override(values, override) for override in overrides}
    values = forms.normal(values)
    given = set(values)
    defaults = file.defaults | call.defaults
    if "hub" in defaults and (_is_here(values.get("model_name_or_path", "")) or hub.of_environment() is not None):
        del defaults["hub"]  # a tool's own default: what the user says in the environment takes precedence
    _fill(values, defaults, overridden)
    made, remarks = derived.defaults(file.rule, values, file.found)
    _fill(values, made, overridden)
    if "model_name_or_path" not in values:
        raise UsageError(path, "it names no model", "Add --model DIR, or model_name_or_path: DIR to the file.")
    check_config(values, "train_config", path)
    config = _build(values)
    _check_together(config, path)
    if config.tuning == "prefix" and config.gradient_checkpointing:
        config = dataclasses.replace(config, gradient_checkpointing=False)
        why = "recomputed layers would see the keys and values of the prefix twice, and PEFT refuses both together"
        remarks = [*remarks, f"gradient_checkpointing is off, as tuning is prefix: {why}"]
    idle = [(k, why) for k, when, why in _IDLE if k in given and _is_set(config, k) and when(config)]
    for key, why in idle:  # a key that an override made idle is no mistake
        if key in {one.partition(".")[0] for one in overridden} or (file.dialect == dialects.OWN and not overridden):
            raise UsageError(f"{path}#/{key}", f"it has no effect: {why}", "Leave it out.")
    said = (*call.remarks, *file.remarks, *remarks, *(f"{key} has no effect: {why}" for key, why in idle))
    return Loaded(config, path, file.dialect, said)


_MOST_KEYS = 1_000


def _check_sizes(values: Mapping[str, Any], where: str) -> None:
    """Raise a UsageError for more keys than any tool has, and for a number that is none."""
    found, count = [("", values)], 0
    while found:
        name, inside = found.pop()
        for key, value in inside.items():
            count += 1
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{where}#{name}/{key}", f"expected a number, found {value}")
            if isinstance(value, dict):
                found.append((f"{name}/{key}", value))
    if count > _MOST_KEYS:
        raise UsageError(where, f"expected at most {_MOST_KEYS:,} keys, found {count:,}")


def _fill(values: dict[str, Any], defaults: dict[str, Any], overridden: set[str]) -> None:
    """Set defaults, by dotted key, where neither the file nor an override says anything."""
    for key, value in defaults.items():
        first, _, inner = key.partition(".")
        is_given = inner in (values.get(first) or {}) if inner else first in values
        if not is_given and key not in overridden and first not in overridden:
            dialects.put(values, key, value)


def _is_set(config: TrainConfig, key: str) -> bool:
    """Whether a key's value asks for something."""
    return getattr(config, key) not in (None, False, [], {})


def _override(values: dict[str, Any], override: str) -> str:
    """Apply `KEY=VALUE` to the values; return the dotted key."""
    key, sign, text = override.partition("=")
    if not sign:
        raise UsageError(f"--set {override}", "expected KEY=VALUE", "--set learning_rate=1e-4")
    known = schema("train_config")["properties"]
    first, _, inner = key.partition(".")
    inside = known.get(first, {}).get("properties", {})
    if first not in known or (inner and inner not in inside):
        names = [*known, *(f"{name}.{key}" for name, entry in known.items() for key in entry.get("properties", ()))]
        raise UsageError(f"--set {key}", "no such key", nearest(key, names))
    try:
        dialects.put(values, key, yaml.parse(text))
    except YAMLError as error:
        raise UsageError(f"--set {override}", f"not a YAML value: {error}", "--set learning_rate=1e-4") from error
    return key


def _build(given: dict[str, Any]) -> TrainConfig:
    values = {**given}
    for name, kind in (("lora", Lora), ("prefix", Prefix), ("expect", Expect)):
        values[name] = kind(**values.get(name, {}))
    if values["lora"].lora_alpha is None:
        values["lora"] = dataclasses.replace(values["lora"], lora_alpha=2 * values["lora"].r)
    return TrainConfig(**values)


def _check_together(c: TrainConfig, where: str) -> None:
    """Raise for settings that contradict each other; checks that need the model or the set come later."""
    refused: list[tuple[bool, str, str, str]] = [
        (c.bf16 is True and c.fp16, "bf16", "bf16 and fp16 cannot both be true", "Choose one."),
        (
            c.quantization_bit is not None and c.tuning == "full", "quantization_bit",
            f"weights of {c.quantization_bit} bits cannot be trained, as tuning: full would",
            "Use tuning: lora or prefix.",
        ),
        (bool(c.freeze and c.trainable), "trainable", "freeze and trainable exclude each other", "Use one."),
        (
            bool(c.router_aux_loss_coef) and c.fp16, "router_aux_loss_coef",
            "the balancing loss is not scaled as fp16 needs it", "Use bf16.",
        ),
        (c.max_steps == 0, "max_steps", "0 steps would train nothing", "Leave it out, or give a number above 0."),
        (
            c.tuning == "prefix" and c.freeze_vision is True, "freeze_vision",
            "prefix tuning leaves the model itself frozen", "Leave it out.",
        ),
        (
            c.compares and c.eval_strategy == "no",
            "load_best_model_at_end" if c.load_best_model_at_end else "early_stopping_patience",
            "nothing is evaluated: eval_strategy is no", "Set eval_strategy: epoch or steps.",
        ),
        (
            c.load_best_model_at_end and c.save_strategy != c.eval_strategy, "load_best_model_at_end",
            f"save_strategy is {c.save_strategy} and eval_strategy is {c.eval_strategy}: the best may not be saved",
            "Make them equal.",
        ),
        (
            c.load_best_model_at_end and c.eval_strategy == "steps"
            and round(c.save_steps * 1e6) % round((c.eval_steps or c.logging_steps) * 1e6) != 0,
            "load_best_model_at_end",
            f"save_steps {c.save_steps} is not a multiple of eval_steps {c.eval_steps or c.logging_steps}",
            "Save only what is evaluated: set save_steps to a multiple of eval_steps.",
        ),
    ]  # fmt: skip
    for wrong, key, what, hint in refused:
        if wrong:
            raise UsageError(f"{where}#/{key}", what, hint)
