"""One size for all pictures, and one number of tokens: LLaVA and Gemma 3, CogAgent and GLM-4V."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

import registry
from trainer.data.vision.eyes import Eyes, Seen


@dataclass(frozen=True)
class OneSizeEyes(Eyes):
    """Pictures are pixel_values float32[pictures, 3, height, width], each of `tokens` tokens (LLaVA)."""

    tokens: int

    def pictures(self, opened: Sequence[Any]) -> Seen:
        """pixel_values."""
        pixels = self.processor(images=list(opened), return_tensors="pt")["pixel_values"]
        return Seen({"pixel_values": pixels}, [self.tokens] * len(opened))


@dataclass(frozen=True)
class GemmaEyes(OneSizeEyes):
    """Those of Gemma 3: tokens of a picture see each other, so the model is told which they are."""

    def types(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        """token_type_ids int64[B, T]: 1 for tokens of pictures, else 0."""
        return {"token_type_ids": (ids == self.token).long()}

    def written(self, text: str) -> str:
        """The text with one of each token of a picture where the template wrote the first, and the lines around."""
        layout = registry.vision(self.card)["image"]
        whole = "".join(layout[part] for part in ("open", "pad", "close"))
        return text.replace(layout["written"], f"{layout['around']}{whole}{layout['around']}")


@dataclass(frozen=True)
class GlmEyesInputs(OneSizeEyes):
    """Those of CogAgent and GLM-4V, whose placeholder is also the pad token: it counts after the token `begin`.

    A set has one placeholder for each picture. A batch without pictures has pixels of none.
    """

    begin: int
    side: int
    """The width and height of pictures in pixels."""

    def blank(self, kind: str) -> tuple[dict[str, torch.Tensor], list[int]]:  # noqa: ARG002
        """Pixels of no picture, which the tower takes."""
        return {"pixel_values": torch.zeros(0, 3, self.side, self.side)}, []

    def places(self, ids: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Where placeholders of pictures are, bool[T]."""
        return np.asarray((ids == self.token) & (np.concatenate(([-1], ids[:-1])) == self.begin))
