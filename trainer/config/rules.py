"""Settings that contradict each other, and those that have no effect beside others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import registry
from schemas.errors import UsageError
from trainer.config.config import TrainConfig


def is_here(model: object) -> bool:
    """Whether a model is a folder, or the embedded one; what is no text is neither, and the schema says so later."""
    return isinstance(model, str) and (model == registry.DEMO_MODEL.name or Path(model).is_dir())


_CONSTANT = "the rate of lr_scheduler_type: constant never changes; constant_with_warmup has a warm-up"
_PLAIN = ("constant", "constant_with_warmup")


Idle = tuple[str, Callable[[TrainConfig], bool], str]
IDLE: Sequence[Idle] = (
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
    ("model_revision", lambda c: is_here(c.model_name_or_path), "the model is not from a hub"),
    ("hub", lambda c: is_here(c.model_name_or_path), "the model is not from a hub"),
)
"""(key, when it has no effect, why): such a key is an error in our own file and a remark in another tool's."""


def check_together(c: TrainConfig, where: str) -> None:
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
