"""The laws of the losses, and their agreement with formulas written from the papers and with TRL's trainers."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor, nn

from schemas import schema
from schemas.errors import UsageError
from tests.support.tiny import Row, lora, packed, padded, qwen2, row, strong_prefix, weights_of
from trainer.config.config import TrainConfig
from trainer.objectives import OBJECTIVES, default
from trainer.objectives import log_probs as log_probs_module
from trainer.objectives.kto import kl_estimate, mismatch
from trainer.objectives.objective import Parts

RNG = random.Random(7)


def ids(length: int) -> list[int]:
    return [RNG.randrange(1, 97) for _ in range(length)]


ROWS = [
    row(ids(9), 3, [0, 0, 0, 1, 2, 1, 0, 2, 1]),
    row(ids(5), 2),
    row(ids(12), 7),
    row(ids(7), 1, [0, 0.5, 1, 1, 0, 0, 3]),
]
for _row in ROWS:  # a token of weight 0 has no label
    _row["labels"] = [label if w else -100 for label, w in zip(_row["labels"], weights_of(_row), strict=True)]
GOOD, BAD = ROWS[:2], [row([*ROWS[0]["input_ids"][:3], *ids(4)], 3), row([*ROWS[1]["input_ids"][:2], *ids(6)], 2)]
DESIRABLE = [True, False, False, True]


def compute(model: nn.Module, batch: dict[str, Tensor], kind: str, **settings: Any) -> Parts:
    """The loss of a batch by the objective for this kind of set; its weights need no forward pass."""
    parts = default(kind).loss(model, batch, **settings)
    assert torch.equal(parts.weights, default(kind).weights(batch))
    return parts


def mismatched(rows: Sequence[Row]) -> list[Row]:
    """The mismatched pairs of a step's rows, as rows."""
    pairs = [mismatch(row, rows[(i + 1) % len(rows)]) for i, row in enumerate(rows)]
    columns = ("input_ids", "labels", "loss_weights")
    return [{name: None if (v := pair[f"kl_{name}"]) is None else v.tolist() for name in columns} for pair in pairs]


def preference(chosen: Sequence[Row] = GOOD, rejected: Sequence[Row] = BAD) -> dict[str, Tensor]:
    return padded(chosen) | padded(rejected, "rejected_")


def kto(rows: Sequence[Row] = ROWS, desirable: Sequence[bool] = DESIRABLE, pairs: Any = None) -> dict[str, Tensor]:
    pairs = pairs or mismatched(rows)
    return padded(rows) | padded(pairs, "kl_") | {"desirable": torch.tensor(desirable)}


def loss(*parts: Parts) -> Tensor:
    """What the trainer makes of a step's parts."""
    return sum(p.loss_sum for p in parts) / sum(p.weight_sum for p in parts)


def gradients(model: nn.Module, value: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(value, [p for p in model.parameters() if p.requires_grad], allow_unused=True))


def assert_same(model: nn.Module, one: Tensor, other: Tensor) -> None:
    """Value and gradients agree."""
    torch.testing.assert_close(one, other, rtol=2e-6, atol=2e-6)
    for a, b in zip(gradients(model, one), gradients(model, other), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-6)


def log_probs(model: nn.Module, given: Row) -> np.ndarray:
    """log p of every token but the first, float64[T - 1], from the plain logits of the row alone."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([given["input_ids"]])).logits[0].double().numpy()
    top = logits.max(-1, keepdims=True)
    normal = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return normal[np.arange(len(logits) - 1), given["input_ids"][1:]]


def reply_log_prob(model: nn.Module, given: Row) -> float:
    return float(sum(p for p, label in zip(log_probs(model, given), given["labels"][1:], strict=True) if label != -100))


# -- sft and pretrain --


def test_the_loss_is_the_weighted_mean_of_cross_entropy() -> None:
    model = qwen2()
    total = sum(float(-log_probs(model, r) @ np.array(weights_of(r)[1:])) for r in ROWS)
    weight = sum(sum(weights_of(r)[1:]) for r in ROWS)
    parts = compute(model, padded(ROWS), "sft")
    assert parts.loss_sum.item() == pytest.approx(total, rel=1e-6)
    assert parts.weight_sum.item() == weight
    assert loss(parts).item() == pytest.approx(total / weight, rel=1e-6)


def test_the_sums_are_those_of_the_losses_by_token() -> None:
    parts, batch = compute(qwen2(), padded(ROWS), "pretrain"), padded(ROWS)
    assert parts.losses.shape == parts.weights.shape == batch["labels"].shape
    assert parts.losses.sum() == parts.loss_sum.detach() and parts.weights.sum() == parts.weight_sum
    assert not parts.losses[batch["labels"] == -100].any()
    assert not parts.losses.requires_grad and not parts.weight_sum.requires_grad and parts.loss_sum.requires_grad


def test_it_agrees_with_transformers_where_every_weight_is_one() -> None:
    model, batch = qwen2(), padded([row(ids(8), 2), row(ids(6), 3)])
    theirs = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"], use_cache=False
    ).loss
    assert_same(model, loss(compute(model, batch, "sft")), theirs)


def test_packed_equals_unpacked() -> None:
    model = qwen2()
    assert_same(model, loss(compute(model, packed(ROWS), "sft")), loss(compute(model, padded(ROWS), "sft")))


def test_nothing_is_predicted_across_a_boundary_in_a_pack() -> None:
    model = qwen2()
    whole = [{**row(ids(6), 0), "loss_weights": [1.0] * 6} for _ in range(2)]  # first tokens are labelled too
    parts = compute(model, packed(whole), "sft")
    assert parts.weight_sum == 10
    assert parts.losses[0, [0, 6]].tolist() == [0, 0]
    other = [whole[0], row(ids(6), 0)]
    changed = compute(model, packed(other), "sft")
    torch.testing.assert_close(changed.losses[0, :6], parts.losses[0, :6])
    assert_same(model, loss(parts), loss(compute(model, padded(whole), "sft")))


def test_accumulated_batches_equal_one() -> None:
    model = qwen2()
    split = [compute(model, padded(ROWS[:1]), "sft"), compute(model, padded(ROWS[1:]), "sft")]
    assert_same(model, loss(*split), loss(compute(model, padded(ROWS), "sft")))


def test_scaling_all_weights_changes_nothing() -> None:
    model, batch = qwen2(), padded(ROWS)
    scaled = batch | {"loss_weights": batch["loss_weights"] * 5}
    assert_same(model, loss(compute(model, scaled, "sft")), loss(compute(model, batch, "sft")))


def test_a_row_of_weight_two_is_the_row_twice() -> None:
    model = qwen2()
    doubled = [*ROWS[:2], {**ROWS[2], "loss_weights": [2 * w for w in weights_of(ROWS[2])]}]
    twice = [*ROWS[:3], ROWS[2]]
    assert_same(model, loss(compute(model, padded(doubled), "sft")), loss(compute(model, padded(twice), "sft")))


@pytest.mark.parametrize("kind", ["sft", "preference", "kto"])
def test_a_row_of_weight_zero_changes_nothing(kind: str) -> None:
    nothing = row(ids(10), 4, [0.0] * 10)
    model, base = lora(qwen2(), trained=True), qwen2(seed=3)
    step: dict[str, Callable[[Sequence[Row]], dict[str, Tensor]]] = {
        "sft": padded,
        "preference": lambda rows: preference(rows, [*BAD, *rows[2:]]),
        "kto": lambda rows: kto(rows, [*DESIRABLE[:2], *[True] * len(rows[2:])], [*mismatched(GOOD), *rows[2:]]),
    }
    with_it, without = ([*GOOD, *more] for more in ([nothing], []))
    given = {"reference": base} if default(kind).needs_reference else {}
    parts = [compute(model, step[kind](rows), kind, **given) for rows in (with_it, without)]
    assert parts[0].weight_sum == parts[1].weight_sum
    assert_same(model, *map(loss, parts))
    for name, (total, count) in parts[0].logs.items():
        torch.testing.assert_close(parts[1].logs[name], torch.stack([total, count]), rtol=1e-5, atol=1e-6)


def test_a_batch_with_nothing_trained_gives_zero_and_zero_gradients() -> None:
    model = qwen2()
    parts = compute(model, padded([row(ids(5), 5), row(ids(3), 3)]), "sft")
    assert (parts.loss_sum.item(), parts.weight_sum.item()) == (0, 0)
    assert not any(g.any() for g in gradients(model, parts.loss_sum) if g is not None)


def test_logits_are_made_for_the_positions_that_are_trained_only() -> None:
    model, shapes = qwen2(), []
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: shapes.append(tuple(output.shape)))
    compute(model, padded([row(ids(40), 37), row(ids(12), 10)]), "sft")
    assert shapes == [(2, 5, 97)]  # columns 37 to 39 of one, 10 and 11 of the other


def test_a_model_without_logits_to_keep_gives_the_same() -> None:
    class Older(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.inner = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool = True) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    model = qwen2()
    assert_same(model, loss(compute(Older(model), padded(ROWS), "sft")), loss(compute(model, padded(ROWS), "sft")))


def test_chunks_of_positions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = qwen2()
    whole = loss(compute(model, padded(ROWS), "sft"))
    monkeypatch.setattr(log_probs_module, "_CHUNK", 4)  # tiny models have fewer positions than one chunk
    assert_same(model, loss(compute(model, padded(ROWS), "sft")), whole)


def test_a_bfloat16_model_has_a_float32_loss() -> None:
    model = qwen2().bfloat16()
    parts = compute(model, padded(ROWS), "sft")
    assert parts.loss_sum.dtype == parts.weight_sum.dtype == torch.float32
    assert loss(parts).item() == pytest.approx(loss(compute(qwen2(), padded(ROWS), "sft")).item(), rel=2e-2)


def test_pixels_reach_the_model_and_both_sides_of_a_pair() -> None:
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    torch.manual_seed(0)
    text = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    text |= {"intermediate_size": 128, "vocab_size": 97, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    vision = {"depth": 1, "embed_dim": 32, "num_heads": 2, "hidden_size": 64, "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=90, vision_start_token_id=91, vision_end_token_id=92
    )
    model = Qwen2VLForConditionalGeneration(config).eval()
    rows = [row([91, *[90] * 4, 92, *reply], 6) for reply in ([5, 6, 7], [8, 9])]
    grid = torch.tensor([[1, 4, 4]])
    picture = {"pixel_values": torch.randn(16, 3 * 2 * 14 * 14), "image_grid_thw": grid}

    def batch(given: Row, prefix: str = "") -> dict[str, Tensor]:
        made = padded([given], prefix)
        return made | {f"{prefix}mm_token_type_ids": (made[f"{prefix}input_ids"] == 90).int()}

    both = batch(rows[0]) | batch(rows[1], "rejected_") | picture
    seen = compute(model, batch(rows[0]) | picture, "sft").loss_sum
    other = compute(model, batch(rows[0]) | picture | {"pixel_values": picture["pixel_values"] + 1}, "sft").loss_sum
    assert not torch.isclose(seen, other)
    swapped = batch(rows[1]) | batch(rows[0], "rejected_") | picture
    assert loss(compute(model, both, "preference", reference=model)).item() == pytest.approx(math.log(2))
    torch.manual_seed(1)
    base = Qwen2VLForConditionalGeneration(config).eval()
    p, q = (torch.exp(-loss(compute(model, b, "preference", reference=base))) for b in (both, swapped))
    assert (p + q).item() == pytest.approx(1)  # sigmoid(x) + sigmoid(-x)


# -- preference --


def test_the_first_dpo_loss_is_the_logarithm_of_two() -> None:
    model = lora(qwen2(), dropout=0.5).train()  # an adapter that was not trained yet changes nothing
    parts = compute(model, preference(), "preference")
    assert loss(parts).item() == pytest.approx(math.log(2), abs=1e-7)
    assert parts.logs["rewards/margins"].tolist() == [0, 2]
    assert any(g is not None and g.abs().max() > 1e-3 for g in gradients(model, loss(parts)))


def test_dpo_is_the_formula_of_its_paper() -> None:
    model, base, beta = qwen2(), qwen2(seed=3), 0.3
    margins = [
        beta * (reply_log_prob(model, g) - reply_log_prob(base, g) - reply_log_prob(model, b) + reply_log_prob(base, b))
        for g, b in zip(GOOD, BAD, strict=True)
    ]
    parts = compute(model, preference(), "preference", reference=base, beta=beta)
    wanted = sum(math.log1p(math.exp(-m)) for m in margins) / len(margins)  # -log sigmoid(m)
    assert loss(parts).item() == pytest.approx(wanted, rel=1e-5)
    assert parts.logs["rewards/margins"].tolist() == pytest.approx([sum(margins), 2], rel=1e-4)
    assert parts.logs["rewards/accuracies"].tolist() == [sum(m > 0 for m in margins), 2]


@pytest.mark.parametrize("adapted", [lambda: lora(qwen2(), trained=True), lambda: strong_prefix(qwen2())])
def test_the_base_under_an_adapter_is_the_reference(adapted: Callable[[], nn.Module]) -> None:
    base, model = qwen2().eval(), adapted()
    assert abs(loss(compute(model, preference(), "preference")).item() - math.log(2)) > 1e-3
    assert_same(
        model,
        loss(compute(model, preference(), "preference")),
        loss(compute(model, preference(), "preference", reference=base)),
    )


@pytest.mark.parametrize("kind", ["preference", "kto"])
def test_asking_the_reference_leaves_the_model_as_it_was(kind: str) -> None:
    model = lora(qwen2(attention_dropout=0.5), trained=True, dropout=0.5).train()
    model.get_base_model().lm_head.eval()  # somebody's frozen part
    modes = {name: module.training for name, module in model.named_modules()}
    needs = {name: p.requires_grad for name, p in model.named_parameters()}
    before = model.eval()(input_ids=torch.tensor([[1, 2, 3]])).logits
    for name, module in model.named_modules():
        module.training = modes[name]
    compute(model, preference() if kind == "preference" else kto(), kind)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: p.requires_grad for name, p in model.named_parameters()} == needs
    torch.testing.assert_close(model.eval()(input_ids=torch.tensor([[1, 2, 3]])).logits, before)


def test_dropout_is_in_neither_the_reference_nor_the_kl() -> None:
    model = lora(qwen2(attention_dropout=0.5), trained=True, dropout=0.5)
    estimates = [kl_estimate(model.train(mode), [kto()]) for mode in (True, True, False)]
    assert estimates[0] == estimates[1] == estimates[2] > 0
    still = lora(qwen2(attention_dropout=0.5))  # an adapter that changes nothing, in training: only dropout differs
    with log_probs_module.as_reference(still.train(), None) as base:
        noiseless = base(input_ids=torch.tensor([[1, 2, 3]])).logits
    torch.testing.assert_close(noiseless, qwen2().eval()(input_ids=torch.tensor([[1, 2, 3]])).logits)


def test_accumulated_pairs_equal_one_batch() -> None:
    model = lora(qwen2(), trained=True)
    split = [compute(model, preference([g], [b]), "preference") for g, b in zip(GOOD, BAD, strict=True)]
    assert_same(model, loss(*split), loss(compute(model, preference(), "preference")))


def test_full_fine_tuning_without_a_reference_is_refused() -> None:
    with pytest.raises(UsageError, match="give a reference model"):
        compute(qwen2(), preference(), "preference")


def test_packs_of_pairs_are_refused() -> None:
    batch = {name: value for name, value in preference().items() if "attention_mask" not in name}
    with pytest.raises(UsageError, match="without packing"):
        compute(lora(qwen2()), batch, "preference")


def test_a_batch_that_is_not_of_its_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="rejected_input_ids"):
        compute(lora(qwen2()), padded(GOOD), "preference")


def test_the_configuration_knows_every_objective_and_its_settings() -> None:
    assert schema("train_config")["properties"]["objective"]["enum"] == [None, *OBJECTIVES]
    for objective in OBJECTIVES.values():
        assert all(hasattr(TrainConfig, setting) for setting in objective.settings)


# -- other objectives on pairs --


def log_probs_of_pairs(model: nn.Module, base: nn.Module) -> list[tuple[Any, ...]]:
    """Of each pair: log p of the chosen and the rejected reply, of both by the base, and their numbers of tokens."""
    return [
        (
            *(reply_log_prob(one, side) for one in (model, base) for side in (good, bad)),
            *(sum(label != -100 for label in side["labels"][1:]) for side in (good, bad)),
        )
        for good, bad in zip(GOOD, BAD, strict=True)
    ]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def cdpo_formula(c: float, r: float, bc: float, br: float, *_: int) -> float:
    margin = 0.3 * (c - bc - r + br)
    return -0.8 * log_sigmoid(margin) - 0.2 * log_sigmoid(-margin)


def orpo_formula(c: float, r: float, _bc: float, _br: float, n: int, m: int) -> float:
    odds = [math.exp(mean) / (1 - math.exp(mean)) for mean in (c / n, r / m)]
    return -c / n - 0.7 * log_sigmoid(math.log(odds[0] / odds[1]))


FORMULAS: dict[str, tuple[dict[str, float], Callable[..., float]]] = {
    "dpo": ({"beta": 0.3, "dpo_label_smoothing": 0.2}, cdpo_formula),
    "hinge": ({"beta": 0.2}, lambda c, r, bc, br, *_: max(0.0, 1 - 0.2 * (c - bc - r + br))),
    "ipo": ({"beta": 0.4}, lambda c, r, bc, br, n, m: ((c - bc) / n - (r - br) / m - 1 / (2 * 0.4)) ** 2),
    "orpo": ({"beta": 0.7}, orpo_formula),
    "simpo": (
        {"beta": 1.5, "simpo_gamma": 0.8},
        lambda c, r, _bc, _br, n, m: -log_sigmoid(1.5 / n * c - 1.5 / m * r - 0.8),
    ),
    "cpo": ({"beta": 0.2}, lambda c, r, _bc, _br, n, _m: -log_sigmoid(0.2 * (c - r)) - c / n),
}
"""By objective: settings, and the loss of a pair as in its paper (see the docstrings): log p of the chosen and the
rejected reply, the same by the base, and the numbers of tokens of both."""
PAIR_OBJECTIVES = [name for name, objective in OBJECTIVES.items() if objective.kind == "preference"]
WITH_SFT = [name for name in PAIR_OBJECTIVES if "rpo_alpha" in OBJECTIVES[name].settings]


def pair_parts(name: str, model: nn.Module, base: nn.Module, batch: dict[str, Tensor], **settings: Any) -> Parts:
    given = {"reference": base} if OBJECTIVES[name].needs_reference else {}
    return OBJECTIVES[name].loss(model, batch, **given, **settings)


@pytest.mark.parametrize("name", PAIR_OBJECTIVES)
def test_the_loss_of_a_pair_is_the_formula_of_its_paper(name: str) -> None:
    model, base = qwen2(), qwen2(seed=3)
    settings, formula = FORMULAS[name]
    wanted = [formula(*numbers) for numbers in log_probs_of_pairs(model, base)]
    parts = pair_parts(name, model, base, preference(), **settings)
    assert parts.losses.tolist() == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    assert loss(parts).item() == pytest.approx(sum(wanted) / 2, rel=1e-4)
    assert parts.weight_sum == 2


@pytest.mark.parametrize("name", WITH_SFT)
def test_the_loss_of_the_chosen_reply_by_token_is_added(name: str) -> None:
    model, base = qwen2(), qwen2(seed=3)
    without, with_it = (pair_parts(name, model, base, preference(), rpo_alpha=alpha) for alpha in (0.0, 0.4))
    by_token = [-c / n for c, *_, n, _m in log_probs_of_pairs(model, base)]
    assert (with_it.losses - without.losses).tolist() == pytest.approx([0.4 * one for one in by_token], rel=1e-4)
    assert with_it.logs["sft_loss"].tolist() == pytest.approx([sum(by_token), 2], rel=1e-4)


@pytest.mark.parametrize("name", PAIR_OBJECTIVES)
def test_the_loss_of_pairs_does_not_depend_on_how_a_step_is_split(name: str) -> None:
    model, base = lora(qwen2(), trained=True), qwen2()
    more = {"rpo_alpha": 0.3} if name in WITH_SFT else {}
    untrained = [row(ids(8), 8)]
    split = [pair_parts(name, model, base, preference([g], [b]), **more) for g, b in zip(GOOD, BAD, strict=True)]
    split.append(pair_parts(name, model, base, preference(untrained, untrained), **more))  # a process without rows
    assert split[-1].weight_sum == 0
    assert_same(model, loss(*split), loss(pair_parts(name, model, base, preference(), **more)))


def test_a_reply_that_is_certain_has_a_finite_loss_and_gradient() -> None:
    model = qwen2()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e6)
        sure = int(model(input_ids=torch.tensor([[1, 2]])).logits[0, -1].argmax())
    parts = pair_parts("orpo", model, model, preference([row([1, 2, sure], 2)], [row([1, 2, 5], 2)]))
    assert torch.isfinite(loss(parts))
    assert all(torch.isfinite(g).all() for g in gradients(model, loss(parts)) if g is not None)


@pytest.mark.parametrize("settings", [{"modules_to_save": ["lm_head"]}, {"target_modules": ["embed_tokens", "q_proj"]}])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings:UserWarning")  # PEFT, about merging
def test_the_base_is_the_reference_where_more_than_layers_is_trained(settings: dict[str, Any], tied: bool) -> None:
    base = qwen2(tie_word_embeddings=tied).eval()
    target = {"target_modules": "all-linear"} | settings
    model = peft.get_peft_model(qwen2(tie_word_embeddings=tied), peft.LoraConfig(r=4, **target)).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    assert abs(loss(compute(model, preference(), "preference")).item() - math.log(2)) > 1e-3
    alone = loss(compute(model, preference(), "preference", reference=base))
    assert_same(model, loss(compute(model, preference(), "preference")), alone)


@pytest.mark.parametrize("kind", ["preference", "kto"])
def test_log_probabilities_of_the_reference_may_be_in_the_batch(kind: str) -> None:
    model, base, batch = qwen2(), qwen2(seed=3), preference() if kind == "preference" else kto()
    known = dict(batch)
    for side in default(kind).sides:
        rows = log_probs_module.one_side(batch, side)
        known[f"{side}reference_log_probs"] = log_probs_module.row_log_probs(base, rows).detach()
    assert_same(model, loss(compute(model, known, kind)), loss(compute(model, batch, kind, reference=base)))


# -- kto --


def test_mismatched_pairs_join_each_prompt_with_the_next_completion() -> None:
    rows = [row([1, 2, 3, 4], 2), row([5, 6, 7], 1, [0, 2, 1]), row([8, 9], 1, images=["kept"])]
    rows[0]["labels"][3] = -100  # what follows the completion belongs to it
    pairs = mismatched(rows)
    assert [p["input_ids"] for p in pairs] == [[1, 2, 6, 7], [5, 9], [8, 3, 4]]
    assert [p["labels"] for p in pairs] == [[-100, -100, 6, 7], [-100, 9], [-100, 3, -100]]
    assert [p["loss_weights"] for p in pairs] == [[0, 0, 2, 1], None, None]
    assert mismatch(rows[2], rows[0])["images"] == ["kept"]
    arrays = [{name: None if value is None else np.array(value) for name, value in r.items()} for r in rows]
    assert [p["input_ids"] for p in mismatched(arrays)] == [p["input_ids"] for p in pairs]
    assert rows[0]["input_ids"] == [1, 2, 3, 4]


@pytest.mark.parametrize("better", [True, False])  # one of them has a KL above 0, the other is cut to 0
def test_kto_is_the_formula_of_its_paper(better: bool) -> None:
    pairs = mismatched(ROWS)
    models = qwen2(), qwen2(seed=3)
    model, base = models if better else models[::-1]

    def ratio(given: Row) -> float:
        return reply_log_prob(model, given) - reply_log_prob(base, given)

    kl = max(0.0, sum(map(ratio, pairs)) / len(pairs))
    parts = compute(
        model, kto(), "kto", reference=base, beta=0.2, desirable_weight=1.5, undesirable_weight=0.5
    )  # fmt: skip

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    wanted = sum(
        1.5 * (1 - sigmoid(0.2 * (ratio(r) - kl))) if good else 0.5 * (1 - sigmoid(0.2 * (kl - ratio(r))))
        for r, good in zip(ROWS, DESIRABLE, strict=True)
    )
    assert loss(parts).item() == pytest.approx(wanted / len(ROWS), rel=1e-5)
    assert parts.logs["kl"].tolist() == pytest.approx([kl * len(ROWS), len(ROWS)], rel=1e-4, abs=1e-6)
    assert parts.logs["rewards/desirable"][1] == parts.logs["rewards/undesirable"][1] == 2


def test_both_directions_of_the_kl_were_seen() -> None:
    """Guards the test before: without a positive estimate it would not see the KL at all."""
    estimates = [kl_estimate(a, [kto()], b) for a, b in ((qwen2(), qwen2(seed=3)), (qwen2(seed=3), qwen2()))]
    assert sorted(e.item() > 0 for e in estimates) == [False, True]


def test_the_first_kto_loss_is_a_half() -> None:
    assert loss(compute(lora(qwen2()), kto(), "kto")).item() == pytest.approx(0.5)


def test_accumulated_kto_batches_equal_one_given_the_kl_of_the_step() -> None:
    model, pairs = lora(qwen2(), trained=True), mismatched(ROWS)
    cut = [kto(ROWS[a:b], DESIRABLE[a:b], pairs[a:b]) for a, b in ((0, 1), (1, 4))]
    kl = kl_estimate(model, cut)
    split = [compute(model, batch, "kto", kl=kl) for batch in cut]
    assert_same(model, loss(*split), loss(compute(model, kto(), "kto")))
    assert not kl.requires_grad


# -- against TRL, which is not of our making --


TEXTS = [("Hi there", " fine, thanks", " no"), ("What", " rain", " it is the sun"), ("你好", "你好呀", "再见")]
ONE_LENGTH = [(" a", " b c d", " e"), (" b", " c d a", " d e a b"), (" c", " d a b", " a b")]
"""Prompts of one token, and chosen replies of the same number of them."""


def trl_reference_free_loss(name: str, **settings: Any) -> tuple[nn.Module, dict[str, Tensor], Tensor]:
    """Return a model, a batch that TRL's experimental trainer made of some text, and its loss of it."""
    pytest.importorskip("trl", reason="TRL is not installed")
    import importlib

    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    import registry

    module = importlib.import_module(f"trl.experimental.{name.lower()}")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(registry.DEMO_TOKENIZER)
    model = qwen2(len(tokenizer), seed=3)
    common = {
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "per_device_train_batch_size": 3,
    }
    trainer = getattr(module, f"{name}Trainer")(
        model=model,
        args=getattr(module, f"{name}Config")(output_dir="unused", remove_unused_columns=False, **common, **settings),
        train_dataset=Dataset.from_list([{"prompt": p, "chosen": c, "rejected": r} for p, c, r in ONE_LENGTH]),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    return model, batch, trainer.get_batch_loss_metrics(model, batch)[0]


def trl_loss(name: str, texts: Any = None, **settings: Any) -> tuple[nn.Module, nn.Module, dict[str, Tensor], Tensor]:
    """Return a model, a reference, a batch TRL's collator made of some text, and its trainer's loss of it."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

    import registry

    tokenizer = PreTrainedTokenizerFast.from_pretrained(registry.DEMO_TOKENIZER)
    model, base = qwen2(len(tokenizer), seed=3), qwen2(len(tokenizer))
    texts = texts or TEXTS
    rows = {
        "DPO": [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in texts],
        "KTO": [{"prompt": p, "completion": c, "label": i != 1} for i, (p, c, _) in enumerate(texts)],
    }[name]
    common = {"report_to": [], "use_cpu": True, "bf16": False, "per_device_train_batch_size": 3}
    trainer = getattr(trl, f"{name}Trainer")(
        model=model,
        ref_model=base,
        args=getattr(trl, f"{name}Config")(output_dir="unused", **common, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    return model, base, batch, trainer._compute_loss(model, batch, False)


def as_ours(batch: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    input_ids, mask = batch[f"{prefix}input_ids"], batch[f"{prefix}completion_mask"]
    return {
        "input_ids": input_ids,
        "labels": input_ids.masked_fill(mask == 0, -100),
        "loss_weights": mask.float(),
        "position_ids": torch.arange(input_ids.shape[1]).expand_as(input_ids),
        "attention_mask": batch[f"{prefix}attention_mask"],
    }


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:OMP_NUM_THREADS:UserWarning")  # accelerate, where a test before joined a group
@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("dpo", {}, {}),
        ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.4]}, {"rpo_alpha": 0.4}),
        ("ipo", {"loss_type": ["ipo"]}, {}),
        ("hinge", {"loss_type": ["hinge"]}, {}),
    ],
)
def test_what_has_a_reference_agrees_with_trl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    model, base, batch, wanted = trl_loss("DPO", beta=0.2, texts=ONE_LENGTH if ours else TEXTS, **theirs)
    both = as_ours(batch)  # chosen rows first
    pairs = {name: value[:3] for name, value in both.items()}
    pairs |= {f"rejected_{name}": value[3:] for name, value in both.items()}
    assert_same(model, loss(pair_parts(name, model, base, pairs, beta=0.2, **ours)), wanted)


@pytest.mark.filterwarnings("ignore")  # TRL's, about its experimental trainers
@pytest.mark.parametrize(
    ("name", "trainer", "theirs", "ours"),
    [
        ("orpo", "ORPO", {"beta": 0.2}, {"beta": 0.2}),
        ("simpo", "CPO", {"loss_type": "simpo", "beta": 2.0, "cpo_alpha": 0.0}, {}),
        (
            "simpo", "CPO", {"loss_type": "simpo", "beta": 1.5, "simpo_gamma": 0.9, "cpo_alpha": 0.3},
            {"beta": 1.5, "simpo_gamma": 0.9, "rpo_alpha": 0.3},
        ),
        ("cpo", "CPO", {}, {}),
    ],
)  # fmt: skip
def test_what_has_no_reference_agrees_with_trl(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    trainer: str,
    theirs: dict[str, Any],
    ours: dict[str, Any],
) -> None:
    """On prompts of one token and chosen replies of one length: TRL's loss of the chosen reply covers its prompt, and
    is a mean over the tokens of a batch, where ours is a mean of pairs."""
    monkeypatch.chdir(tmp_path)
    model, batch, wanted = trl_reference_free_loss(trainer, **theirs)
    pairs: dict[str, Tensor] = {}
    for prefix, side in (("", "chosen"), ("rejected_", "rejected")):
        ids_, labels = batch[f"{side}_input_ids"], batch[f"{side}_labels"]
        mine = {"input_ids": ids_, "labels": labels, "loss_weights": (labels != -100).float()}
        mine |= {"position_ids": torch.arange(ids_.shape[1]).expand_as(ids_)}
        mine |= {"attention_mask": batch[f"{side}_attention_mask"]}
        pairs |= {prefix + column: value for column, value in mine.items()}
    assert_same(model, loss(OBJECTIVES[name].loss(model, pairs, **ours)), wanted)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing`:FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:OMP_NUM_THREADS:UserWarning")  # accelerate, where a test before joined a group
def test_kto_agrees_with_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, base, batch, theirs = trl_loss("KTO", beta=0.2, desirable_weight=1.5)
    ours = as_ours(batch) | {f"kl_{name}": value for name, value in as_ours(batch, "KL_").items()}
    ours["desirable"] = batch["label"].bool()
    assert kl_estimate(model, [ours], base) > 0  # else the pairs would not be seen
    assert_same(model, loss(compute(model, ours, "kto", reference=base, beta=0.2, desirable_weight=1.5)), theirs)


# -- several processes --

RANK = """
import sys, torch
from tests.test_objectives import *
rank, model = int(sys.argv[1]), lora(qwen2(), trained=True)
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
mine = slice(0, 3) if rank == 0 else slice(3, 4)
batch = kto(ROWS[mine], DESIRABLE[mine], mismatched(ROWS)[mine])
parts = compute(model, batch, "kto")
sums = torch.stack([parts.loss_sum, parts.weight_sum]).detach()
torch.distributed.all_reduce(sums)
print((sums[0] / sums[1]).item(), (parts.logs["kl"][0] / parts.logs["kl"][1]).item())
torch.distributed.destroy_process_group()
"""


def test_two_processes_share_one_kl_and_give_the_loss_of_one(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meet")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    try:
        said = [process.communicate(timeout=60) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], said
    (one, one_kl), (two, two_kl) = (map(float, out.split()) for out, _ in said)
    assert (one, one_kl) == (two, two_kl)
    model = lora(qwen2(), trained=True)
    assert one == pytest.approx(loss(compute(model, kto(), "kto")).item(), rel=1e-6)
    assert one_kl == pytest.approx(kl_estimate(model, [kto()]).item(), abs=2e-6)
