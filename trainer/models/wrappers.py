"""The model inside the wrappers of DeepSpeed, DDP and PEFT."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def unwrapped(model: nn.Module) -> Any:
    """The model inside DeepSpeed's or DDP's wrapper."""
    while isinstance(inner := getattr(model, "module", None), nn.Module):
        model = inner
    return model


def transformers_model(model: nn.Module) -> Any:
    """The Transformers model itself, inside PEFT's wrapper too."""
    inner = unwrapped(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout and gradients off; afterwards put every module back into its mode."""
    inner = unwrapped(model)
    training = [module for module in inner.modules() if module.training]
    inner.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
