"""The configuration of a run, as what trains takes it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any


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
