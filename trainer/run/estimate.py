"""The memory of a run on each device, estimated from numbers alone: nothing is made or loaded.

Counted are the tensors of PyTorch and DeepSpeed: what is always there, and what there is beside it at four moments of a
step. The largest moment decides. Not counted: what the driver and the libraries of collectives take for themselves,
what the allocator loses between tensors, work space inside of kernels, and the tower of a model that sees.
docs/machines.md says how far the estimate was from what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHUNK = 1024
"""Positions whose logits are float32 at the same time (trainer/objectives/log_probs.py)."""
BITS = {4: 4.5, 8: 8.0}
"""Bits of a quantized weight with its share of the scales: one float32 for 64 weights of 4 bits."""
BITS_TWICE = 4 + 8 / 64 + 32 / (64 * 256)
"""The same with `bnb_4bit_use_double_quant`: scales of 8 bits, and a float32 for 256 of them."""
BUCKET = 500_000_000
"""DeepSpeed's reduce_bucket_size and allreduce buckets, in weights, where nothing sets another."""
LIVE = 1_000_000_000
"""DeepSpeed's stage3_max_live_parameters and sub_group_size where nothing sets others."""
FLOAT = 4


@dataclass(frozen=True)
class ModelShape:
    """What of a model's configuration decides the memory of a pass."""

    layers: int
    hidden: int
    intermediate: int
    """Width of the feed-forward part; in a mixture of experts, of all experts that see a token."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    head_norms: bool = False
    """Whether queries and keys are normalised, as in Qwen3."""

    @classmethod
    def of(cls, config: Any, *, head_norms: bool = False) -> ModelShape:
        """The shape of a Transformers configuration of a language model; 0 for what it does not say."""

        def number(*names: str) -> int:
            given = next((value for name in names if (value := getattr(config, name, None))), 0)
            return int(max(given) if isinstance(given, list | tuple) else given)  # some have one for each layer

        hidden, heads = number("hidden_size"), number("num_attention_heads")
        wide = number("intermediate_size", "ffn_dim", "n_inner") or 4 * hidden
        if (used := number("num_experts_per_tok")) and (expert := number("moe_intermediate_size", "intermediate_size")):
            wide = used * expert + number("shared_expert_intermediate_size")
        return cls(
            layers=number("num_hidden_layers"), hidden=hidden, intermediate=wide, heads=heads,
            kv_heads=number("num_key_value_heads") or heads,
            head_dim=number("head_dim") or (hidden // heads if heads else 0),
            vocabulary=number("vocab_size"), head_norms=head_norms,
        )  # fmt: skip

    @property
    def queries(self) -> int:
        """Values of a token's queries."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Values of a token's keys, and of its values."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Use:
    """What else decides the memory of a run: its settings, and its largest micro batch."""

    parameters: int
    trained: int
    tokens: int
    """Positions of the largest micro batch, with padding, of both sides of pairs."""
    longest: int
    """Positions of a row of it: each row with a mask has one of longest x longest. Of FlashAttention's packs, all."""
    trained_tokens: int | None = None
    """Those that are trained; None = all."""
    weight_bytes: int = 2
    """2 in bf16 and fp16, 4 in fp32."""
    tuning: str = "lora"
    dropout: bool = False
    """Whether adapters have dropout: then each keeps an input of its own."""
    quantized: int = 0
    """Parameters that are held in `bits`."""
    bits: float = 16
    processes: int = 1
    zero_stage: int = 2
    bucket: int = BUCKET
    live: int = LIVE
    state_bytes: int = 8
    """Bytes of the optimizer's state for a trained weight, without the fp32 copy: AdamW 8, with 8-bit states 2."""
    accumulates: bool = True
    """Whether a step has several passes: then gradients of earlier passes are there from the start."""
    recomputed: int = 0
    """With gradient_checkpointing: every so many layers one is recomputed; 0 = none, 1 = all."""
    masked: bool = False
    """Whether attention gets a mask: with sdpa or eager, for packs and for several rows of different lengths."""
    eager: bool = False
    """Whether the scores of attention are written out: attn_implementation eager."""
    whole_logits: bool = True
    """Whether the logits of all trained positions are there at once."""
    activations_on_host: bool = False
    optimizer_on_host: bool = False
    weights_on_host: bool = False
    update_bytes: int = FLOAT
    """Bytes for a trained weight that AdamW computes on the way: 4 where it updates all tensors together, as torch does
    on accelerators, 8 one by one, as on the CPU, 0 if it is one kernel."""

    @property
    def is_half(self) -> bool:
        """Whether weights are bf16 or fp16."""
        return self.weight_bytes < FLOAT

    @property
    def share(self) -> float:
        """Trained weights whose state a process holds."""
        return self.trained / (self.processes if self.zero_stage >= 1 else 1)


Parts = dict[str, float]


def estimate(shape: ModelShape, use: Use) -> dict[str, int]:
    """Bytes on each device by part, as they are at the moment that takes most, and their sum, `all`.

    weights, gathered (ZeRO-3: weights of other processes that are at hand), optimizer (with the fp32 copy of what is
    trained), gradients (with DeepSpeed's buffers), activations (what the backward pass needs), attention (masks and
    scores of T x T), logits.
    """
    parts = {"weights": _weights(use), "gathered": _gathered(use), "optimizer": _optimizer(use)}
    empty = dict.fromkeys(("gradients", "activations", "attention", "logits"), 0.0)
    parts |= empty | max(_moments(shape, use), key=lambda moment: sum(moment.values()))
    return {name: int(value) for name, value in parts.items()} | {"all": int(sum(parts.values()))}


def _weights(use: Use) -> float:
    if use.weights_on_host:
        return 0
    held = (use.parameters - use.quantized) * use.weight_bytes + use.quantized * use.bits / 8
    return held / (use.processes if use.zero_stage == 3 else 1)


def _gathered(use: Use) -> float:
    if use.zero_stage < 3 or (use.processes == 1 and not use.weights_on_host):
        return 0
    return min(use.parameters, use.live) * use.weight_bytes


def _optimizer(use: Use) -> float:
    """The state, and the fp32 copy of trained weights, which DeepSpeed's stages 1 and 2 have in fp32 too."""
    if use.optimizer_on_host:
        return 0
    copy = FLOAT if use.is_half or use.zero_stage in (1, 2) else 0
    return use.share * (copy + use.state_bytes)


def _moments(shape: ModelShape, use: Use) -> list[Parts]:
    """What there is beside weights and optimizer: at the loss, in the last and in the first layer, at the update."""
    before, begun, whole = _gradients(shape, use)
    size, tokens = use.weight_bytes, use.tokens
    layer, boundary = _kept(shape, use) * tokens, shape.hidden * size * tokens
    ends = (FLOAT + 2 * size) * shape.hidden * tokens  # the last norm, and the head's input
    working = _working(shape, use)
    mask, scores = _attention(shape, use)
    recomputed = shape.layers // use.recomputed if use.recomputed else 0
    if use.activations_on_host:
        all_kept, all_scores, one = 0.0, 0.0, 1
    else:
        all_kept = recomputed * boundary + (shape.layers - recomputed) * layer
        all_scores, one = (shape.layers - recomputed) * scores, int(bool(recomputed))
    return [
        {
            "gradients": before, "activations": all_kept + ends, "attention": mask + all_scores,
            "logits": _logits(shape, use),
        },
        {
            "gradients": begun, "activations": all_kept + one * layer + working,
            "attention": mask + all_scores + one * scores,
        },
        {"gradients": whole, "activations": layer + working, "attention": mask + scores},
        {"gradients": _update(shape, use)},
    ]  # fmt: skip


def _gradients(shape: ModelShape, use: Use) -> tuple[float, float, float]:
    """Gradients before a backward pass, after its first layer, and after the last one; with DeepSpeed's buffers.

    Buckets in which gradients are summed over processes; a process's share of them, once for this pass and once for
    the passes before. Stage 3 has a bucket and its share all the time. With the optimizer on the host the share is
    there too; stages 1 and 2 then keep a buffer for the largest gradient, and bring each to fp32 on its way.
    """
    size, share = use.weight_bytes, use.trained / use.processes
    bucket = min(use.bucket, use.trained)
    moved = share if use.trained > use.bucket else 0  # else only after the pass, when its activations are gone
    if use.zero_stage == 3:
        always = (use.bucket + (0 if use.optimizer_on_host else share)) * size
        return always, always, always
    if use.optimizer_on_host:
        largest = _largest(shape, use)
        moving = largest * (size + FLOAT) + bucket * size
        return largest * size, moving, moving
    if use.zero_stage == 2:
        before = share * size if use.accumulates else 0
        whole = before + (bucket + moved) * size
        return before, whole, whole
    before = use.trained * size if use.accumulates else 0
    if use.zero_stage == 1:
        return before, before + bucket * size, (use.trained + bucket + moved) * size
    return before, before, (use.trained + (min(BUCKET, use.trained) if use.processes > 1 else 0)) * size


def _largest(shape: ModelShape, use: Use) -> int:
    """Weights of the largest trained tensor, which is the embeddings'; adapters are small."""
    return shape.vocabulary * shape.hidden if use.tuning == "full" else 0


def _update(shape: ModelShape, use: Use) -> float:
    """What the update of the weights needs: gradients in fp32, and what AdamW computes on the way."""
    size = use.weight_bytes
    if use.zero_stage == 0:
        together = use.update_bytes == FLOAT
        most = use.trained if together else _largest(shape, use)
        return use.trained * (size + (FLOAT if use.is_half else 0)) + most * use.update_bytes
    if use.zero_stage == 3:
        group = 0 if use.optimizer_on_host else min(use.share, LIVE) * (FLOAT + use.update_bytes)
        return _gradients(shape, use)[0] + group
    if use.optimizer_on_host:
        return _gradients(shape, use)[0]
    copies = 2 * size + (FLOAT if use.is_half else 0)
    others = size if use.tuning == "full" else 0  # gradients of norms and biases, which share a tensor with all others
    return use.share * max(copies, others + FLOAT + use.update_bytes)


def _kept(shape: ModelShape, use: Use) -> float:
    """Bytes of a token that autograd keeps of one layer: two norms, attention, and a feed-forward part with a gate.

    A norm keeps its input in fp32, in half precision as a copy. Linear layers keep their inputs if they or their
    adapters are trained; layers of the same input share it, unless dropout makes it another one for each.
    """
    h, i, q, k, size = shape.hidden, shape.intermediate, shape.queries, shape.keys, use.weight_bytes
    kept = 2 * FLOAT * h  # inputs of the norms
    kept += size * (2 * q + 2 * (q if use.masked or use.eager else k)) + FLOAT * shape.heads  # q, k, v, output
    kept += size * 3 * i  # what the gate and the product need
    if shape.head_norms:
        kept += (FLOAT if use.is_half else size) * (q + k)
    if use.tuning == "full":
        kept += size * 2 * h  # what the weights of the norms are multiplied with
    if use.tuning == "lora" and use.dropout:
        kept += (size + 1) * (5 * h + q + i)  # each adapter's own input, and which values were dropped
    elif use.tuning != "prefix":
        kept += size * (2 * h + i)  # outputs of the norms and of the product; attention's output is kept anyway
    return kept


def _working(shape: ModelShape, use: Use) -> float:
    """Bytes of what there is for a moment while the gradient of a layer is computed."""
    size = use.weight_bytes
    working = use.tokens * size * (2 * shape.intermediate + 2 * shape.hidden)
    if use.quantized:
        working += shape.hidden * shape.intermediate * size  # a weight, as it is multiplied
    return working


def _attention(shape: ModelShape, use: Use) -> tuple[float, float]:
    """The mask, once for a pass, and what a layer keeps of T x T: the mask as numbers, or the scores."""
    if not (use.masked or use.eager):
        return 0, 0
    squares = use.tokens * use.longest
    if use.eager:
        return squares * use.weight_bytes, squares * shape.heads * (FLOAT + (use.weight_bytes if use.is_half else 0))
    return squares, squares * use.weight_bytes


def _logits(shape: ModelShape, use: Use) -> float:
    """Logits and their gradient, and three times those of a chunk in fp32.

    Of several rows there are first the logits of all positions that some row needs, then a copy of those that count;
    and the same with the gradients.
    """
    size, positions = use.weight_bytes, use.tokens if use.trained_tokens is None else use.trained_tokens
    chunk = min(positions, CHUNK)
    if not use.whole_logits:
        return shape.vocabulary * chunk * 3 * FLOAT
    found = 2 * positions * size + chunk * (3 * FLOAT - size)
    if use.tokens > use.longest:
        found = max(found, (use.tokens + positions) * size)
    return shape.vocabulary * found
