"""Objectives: what is minimised, one file each. A new one is a file, its settings, and its name in `OBJECTIVES`.

A batch is a dict of tensors, B rows of T tokens, padded on the right:

    input_ids       int64[B, T]
    labels          int64[B, T]     the target of each position itself (unshifted); -100 = untrained
    loss_weights    float32[B, T]
    position_ids    int64[B, T]     0 at the first token of every sequence, so several times in a pack
    attention_mask  int64[B, T]     absent in packs
    desirable       bool[B]         kto
    reference_log_probs  float32[B]  log p of each row by the reference, where it was computed before the first step

and anything else the model takes (pixel_values, image_grid_thw, ...), which is passed on to it. Batches of pairs hold
the other side under the same names with a prefix: `rejected_` (preference), `kl_` (the mismatched pairs of KTO). What a
side lacks (the pixels, which belong to the prompt) is taken from the row itself.

    objective.py      what an objective declares
    cross_entropy.py  sft, pretrain
    pairs.py          what those for preference have in common
    dpo.py            preference: dpo, hinge
    ipo.py, orpo.py, simpo.py, cpo.py       preference
    kto.py            kto
    head.py           the head a chunk of positions at a time
    log_probs.py      log-probabilities of tokens and rows, by the model and by its reference

An objective returns sums. Loss = sum of `loss_sum` / sum of `weight_sum` over all ranks and accumulated batches of a
step, so it does not depend on how many of either there are.
"""

from trainer.objectives.cpo import CPO
from trainer.objectives.cross_entropy import PRETRAIN, SFT
from trainer.objectives.dpo import DPO, HINGE
from trainer.objectives.ipo import IPO
from trainer.objectives.kto import KTO
from trainer.objectives.objective import Objective
from trainer.objectives.orpo import ORPO
from trainer.objectives.simpo import SIMPO

_ALL = (SFT, PRETRAIN, DPO, IPO, HINGE, ORPO, SIMPO, CPO, KTO)
OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in _ALL}


def default(kind: str) -> Objective:
    """The objective for sets of this kind where the configuration names none: the first one in `OBJECTIVES`."""
    return next(objective for objective in OBJECTIVES.values() if objective.kind == kind)
