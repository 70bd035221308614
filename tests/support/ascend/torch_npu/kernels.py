"""Memory of `npu:0`, and the operations on it: those of the CPU.

A tensor on the device owns memory of this process, and says that it lies on the device: the CPU's kernels refuse it.
An operation looks at the same memory through tensors of the CPU, computes there, and what comes out is handed to
the device without a copy. So views, operations in place and `tensor.data = other` are what they are on a device.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map

DEVICE = torch.device("npu", 0)
GENERATOR = torch.Generator()
_CPU = torch.device("cpu")
_AS_ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
_aten = torch.ops.aten
_libraries: list[torch.library.Library] = []


class Memory:
    """The bytes of the device: how many there are, are taken, and were taken at most."""

    total = int(os.environ.get("FAKE_NPU_MEMORY", 64 << 30))
    now = peak = 0

    def take(self, size: int) -> None:
        if self.now + size > self.total:
            tried, total = size / 2**20, self.total / 2**30
            raise RuntimeError(
                f"NPU out of memory. Tried to allocate {tried:.2f} MiB (NPU 0; {total:.2f} GiB total capacity)"
            )
        self.now += size
        self.peak = max(self.peak, self.now)

    def give(self, size: int) -> None:
        self.now -= size


MEMORY = Memory()


def register() -> None:
    """Make torch call `_compute` for every operation on the device that it does not make of others."""
    library = torch.library.Library("_", "IMPL")
    library.fallback(_compute, "PrivateUse1")
    aten = torch.library.Library("aten", "IMPL")
    # As torch_npu does: `model.to("npu")` moves parameters, and optimizers over them stay right.
    aten.impl("_has_compatible_shallow_copy_type", lambda *_: True, "PrivateUse1")
    aten.impl("_pin_memory", lambda tensor, device=None: tensor.clone(), "CPU")  # no memory is locked
    _libraries.extend([library, aten])


def mirror(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the CPU over the memory of one on the device."""
    storage = tensor.untyped_storage()
    if not tensor.numel():
        return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=_CPU)
    memory = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), _CPU, storage.nbytes())
    seen = torch.empty(0, dtype=tensor.dtype, device=_CPU)  # by name: DeepSpeed changes the default
    return seen.set_(memory, tensor.storage_offset(), tensor.size(), tensor.stride())


def _owned(memory: torch.UntypedStorage) -> torch.UntypedStorage:
    """Memory of the CPU as memory of the device; it lives as long as the device's storage does."""
    size = memory.nbytes()
    MEMORY.take(size)
    storage: Any = torch._C._construct_storage_from_data_pointer(memory.data_ptr(), DEVICE, size)
    storage.memory = memory
    weakref.finalize(storage, MEMORY.give, size).atexit = False
    return storage


def _on_device(storage: torch.UntypedStorage, like: torch.Tensor) -> torch.Tensor:
    made = torch._C._acc.create_empty_tensor((0,), like.dtype)
    return _place(made, storage, like)


def _place(tensor: torch.Tensor, storage: torch.UntypedStorage, like: torch.Tensor) -> torch.Tensor:
    given = storage, like.storage_offset(), like.size(), like.stride()
    return _aten.set_.source_Storage_storage_offset.redispatch(_AS_ON_CPU, tensor, *given)


def _compute(op: Any, *args: Any, **kwargs: Any) -> Any:
    special = _SPECIAL.get(op)
    if special:
        return special(*args, **kwargs)
    mirrors: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    storages: dict[int, torch.UntypedStorage] = {}

    def down(value: Any) -> Any:
        if isinstance(value, torch.device):
            return _CPU
        if not isinstance(value, torch.Tensor) or value.device.type != "npu":
            return value
        if id(value) not in mirrors:
            mirrors[id(value)] = value, mirror(value)
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage()
        return mirrors[id(value)][1]

    given: Any = tree_map(down, kwargs)
    if any(argument.name == "generator" for argument in op._schema.arguments) and not given.get("generator"):
        given["generator"] = GENERATOR
    with torch._C._AutoDispatchBelowAutograd():
        done = op(*tree_map(down, args), **given)
    for value, seen in mirrors.values():  # what an operation in place has given another size
        if seen.size() != value.size() or seen.stride() != value.stride():
            kept = storages.get(seen.untyped_storage().data_ptr())
            _place(value, kept or _owned(seen.untyped_storage()), seen)
    same = {id(seen): value for value, seen in mirrors.values()}

    def up(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in same:
            return same[id(value)]
        pointer = value.untyped_storage().data_ptr()
        shared = storages.get(pointer) if pointer else None
        return _on_device(shared or _owned(value.untyped_storage()), value)

    return tree_map(up, done)


def _copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    to = mirror(target) if target.device.type == "npu" else target
    to.copy_(mirror(source) if source.device.type == "npu" else source)
    return target


def _resize(tensor: torch.Tensor, size: Any, *, memory_format: Any = None) -> torch.Tensor:
    grown = torch.empty(size, dtype=tensor.dtype, device=_CPU)
    if grown.numel() * grown.element_size() <= tensor.untyped_storage().nbytes():
        return _place(tensor, tensor.untyped_storage(), grown)
    grown.flatten()[: tensor.numel()] = mirror(tensor).flatten()
    return _place(tensor, _owned(grown.untyped_storage()), grown)


def _set(op: Any) -> Callable[..., torch.Tensor]:
    return lambda *args, **kwargs: op.redispatch(_AS_ON_CPU, *args, **kwargs)


_SPECIAL: dict[Any, Callable[..., Any]] = {
    _aten._copy_from.default: _copy_from,
    _aten.resize_.default: _resize,
    _aten.record_stream.default: lambda *_: None,
    _aten._fused_sdp_choice.default: lambda *_, **__: 0,  # attention by its formula
    **{
        op: _set(op)
        for op in (
            _aten.set_.source_Storage, _aten.set_.source_Storage_storage_offset, _aten.set_.source_Tensor,
        )
    },
}  # fmt: skip
