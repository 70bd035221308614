"""The most bytes of tensors that were alive at once, counted from outside: by the storages of operations."""

from __future__ import annotations

import weakref
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """Counts storages, those of fake tensors too, from the first operation that sees them until they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._see(tensor.untyped_storage())
        self.most = max(self.most, self.now)
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        known = self._known.get(key)
        if known is None:
            weakref.finalize(storage, self._gone, key)
        self._known[key] = size  # a storage may have been resized
        self.now += size - (known or 0)

    def _gone(self, key: int) -> None:
        self.now -= self._known.pop(key)

    def begin(self) -> Self:
        """Count the peak anew from here."""
        self.most = self.now
        return self
