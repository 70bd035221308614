"""The balancing loss of mixture-of-experts models: every expert is to get its share of the tokens.

The Switch Transformer's (arXiv 2101.03961, equation 4), as Transformers computes it from the outputs of the routers.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from schemas.errors import UsageError


class _Beside(torch.autograd.Function):
    """The logits, unchanged; in the backward pass another loss gets a gradient too.

    DeepSpeed adds the gradients of all passes and takes their mean over processes.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, share: float) -> Tensor:
        ctx.share, ctx.kind = share, loss
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        return gradients[0], torch.full_like(ctx.kind, ctx.share), None


def balance(model: nn.Module, share: float, where: str) -> None:
    """Add `share` of the balancing loss of each pass to what is trained; UsageError if the model has none."""
    if "output_router_logits" not in inspect.signature(model.forward).parameters:
        what = f"{type(model).__name__} has no balancing loss"
        raise UsageError(f"{where}#/router_aux_loss_coef", what, "Leave it out.")
    config: Any = model.config
    config.output_router_logits = config.get_text_config().output_router_logits = True

    def add(_: nn.Module, __: Any, output: Any) -> Any:
        if torch.is_grad_enabled() and output.logits.requires_grad:
            beside: Any = _Beside.apply  # untyped
            output.logits = beside(output.logits, output.aux_loss, share)
        return output

    model.register_forward_hook(add)
