"""The process group `hccl`: Gloo over the memory of `npu:0`. As with HCCL, tensors of the CPU have no place in it."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._pytree import tree_map

from torch_npu import kernels

_RANGES = {"HCCL_CONNECT_TIMEOUT": range(120, 7201), "HCCL_EXEC_TIMEOUT": range(2**31)}
"""CANN 8.5, "HCCL_CONNECT_TIMEOUT" (envref_07_0077) and "HCCL_EXEC_TIMEOUT" (envref_07_0078) for Atlas A2."""


class ProcessGroupHCCL(dist.ProcessGroup):
    def __init__(self, store: Any, rank: int, size: int, timeout: timedelta) -> None:
        super().__init__(rank, size)
        for name, allowed in _RANGES.items():
            if name in os.environ and int(os.environ[name]) not in allowed:
                raise RuntimeError(f"EI0001: {name}={os.environ[name]} is invalid")
        self.timeout = timeout  # what a test reads
        kind = dist.ProcessGroup.BackendType.GLOO
        self._gloo = dist.ProcessGroup(store, rank, size)
        self._gloo._set_default_backend(kind)
        gloo = dist.ProcessGroupGloo(store, rank, size, timeout=timeout)
        self._gloo._register_backend(torch.device("cpu"), kind, gloo)

    def getBackendName(self) -> str:  # noqa: N802  # the name in torch
        return "hccl"

    @property
    def _device_types(self) -> list[torch.device]:
        return [torch.device("npu")]

    def _run(self, name: str, *args: Any) -> Any:
        def down(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if value.device.type != "npu":
                raise RuntimeError(f"No backend type associated with device type {value.device.type}")
            return kernels.mirror(value)

        return getattr(self._gloo, name)(*tree_map(down, args))

    def barrier(self, opts: Any = None) -> Any:
        given = dist.BarrierOptions()
        given.device = torch.device("cpu")
        return self._gloo.barrier(given)


def _delegated(name: str) -> Any:
    return lambda self, *args: self._run(name, *args)


for _name in (
    "allreduce", "allreduce_coalesced", "broadcast", "reduce", "allgather", "all_gather_single", "gather", "scatter",
    "reduce_scatter", "reduce_scatter_single", "alltoall", "all_to_all_single", "send", "recv",
    "all_gather_single_coalesced", "reduce_scatter_single_coalesced",
):  # fmt: skip
    setattr(ProcessGroupHCCL, _name, _delegated(_name))
