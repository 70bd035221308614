"""The device of a process: cuda, npu or cpu, alone or one of several. All code for a kind of device is here."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from schemas.errors import UsageError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Device:
    """A process among the others, and its accelerator."""

    kind: str
    """cuda, npu or cpu."""
    name: str
    rank: int
    world: int
    local_rank: int
    backend: str

    @property
    def torch(self) -> torch.device:
        """The device for tensors."""
        import torch

        return torch.device("cpu" if self.kind == "cpu" else f"{self.kind}:{self.local_rank}")

    @property
    def has_bf16(self) -> bool:
        """Whether the accelerator computes in bf16. False on cpu, where most machines emulate it."""
        return computes_bf16(self.kind)

    def memory(self) -> int | None:
        """The accelerator's memory in bytes; None on cpu."""
        module = _module(self.kind)
        return int(module.get_device_properties(self.local_rank).total_memory) if module else None

    def memory_peak(self) -> int:
        """The most bytes that this process has had in tensors on the accelerator; on cpu, in memory."""
        module = _module(self.kind)
        return int(module.max_memory_allocated(self.local_rank)) if module else _peak_of_process()

    @property
    def device_map(self) -> dict[str, Any]:
        """The setting with which Transformers reads weights straight to the accelerator; none on cpu."""
        return {} if self.kind == "cpu" else {"device_map": {"": self.torch}}

    def pinned(self, values: dict[str, Any]) -> dict[str, Any]:
        """Tensors in locked memory, from which the accelerator copies them while it works; on cpu as they are.

        A thread begins with device 0, and must be told its own.
        """
        module = _module(self.kind)
        if module is None:
            return values
        import torch

        module.set_device(self.local_rank)
        return {name: one.pin_memory() if isinstance(one, torch.Tensor) else one for name, one in values.items()}


def profiler(kind: str) -> Any:
    """A profiler of this process and its accelerator, not yet started."""
    import torch.profiler

    library = importlib.import_module("torch_npu.profiler") if kind == "npu" else torch.profiler
    seen = library.ProfilerActivity
    return library.profile(activities=[seen.CPU, *([] if kind == "cpu" else [getattr(seen, kind.upper())])])


def _peak_of_process() -> int:
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def computes_bf16(kind: str) -> bool:
    """Whether accelerators of a kind compute in bf16; False on cpu. A T4 or V100 only emulates it, slowly."""
    module = _module(kind)
    if module is None:
        return False
    return bool(module.is_bf16_supported(**({"including_emulation": False} if kind == "cuda" else {})))


def launched() -> tuple[int, int, int]:
    """(rank, world size, local rank) as a launcher set them; (0, 1, 0) if none did.

    Some clusters start one process on each machine and set no local rank: it is 0. UsageError if the processes could
    not find each other.
    """
    found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    for name, value in found.items():
        if value is not None and not value.isdigit():
            raise UsageError(f"{name}={value}", "expected a number", "Unset it, or start with torchrun.")
    rank, world, local = (int(found[name] or default) for name, default in zip(found, (0, 1, 0), strict=True))
    if rank >= world:
        what = f"expected a number below WORLD_SIZE={world}"
        raise UsageError(f"RANK={rank}", what, "Unset both for one process, or start with torchrun.")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if world > 1 and (missing or found["RANK"] is None):
        what = f"{world} processes cannot find each other without {' and '.join(missing or ['RANK'])}"
        raise UsageError(f"WORLD_SIZE={world}", what, "Start with torchrun, or set them, or unset WORLD_SIZE.")
    return rank, world, local


_GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_BACKENDS = {"cuda": "nccl", "npu": "hccl", "cpu": "gloo"}
_VISIBLE = {"cuda": "CUDA_VISIBLE_DEVICES", "npu": "ASCEND_RT_VISIBLE_DEVICES"}
_HCCL = {"HCCL_CONNECT_TIMEOUT": (120, 7200), "HCCL_EXEC_TIMEOUT": (68, 17340)}
"""Seconds, at least and at most, that all Ascend devices take; HCCL refuses others. Huawei, CANN 9.0, "Environment
Variables", envref_07_0077 and envref_07_0078: devices after the first generation take more for HCCL_EXEC_TIMEOUT.
"""
_LATER = 60
"""Seconds by which the group waits longer than HCCL, which says more. torch_npu (csrc/distributed/ProcessGroupHCCL.cpp)
does not tell HCCL the group's limit, warns of one that is not longer, and waits 30 seconds longer on the device.
"""


def find(*, use_cpu: bool) -> Device:
    """Find the device of this process; only the driver is opened. UsageError says what is missing.

    An NPU is used if torch_npu is installed. It must be imported first, here: otherwise the process fails later,
    somewhere else.
    """
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")  # else `import torch` itself fails without CANN
    npu = importlib.util.find_spec("torch_npu") is not None
    if npu:  # on the CPU too: Transformers imports it as it finds it
        _import_npu(use_cpu=use_cpu)
    import torch

    kind = "cpu" if use_cpu else "npu" if npu else "cuda" if torch.cuda.is_available() else "cpu"
    os.environ["DS_ACCELERATOR"] = kind  # otherwise DeepSpeed guesses, and warns if it finds none
    rank, world, local = launched()
    module = _module(kind)
    if module is not None:
        count = module.device_count()
        if local >= count:
            what = f"process {local} of this machine has no {kind} device: {count} are visible"
            raise UsageError(_VISIBLE[kind], what, f"Start {count or 'no'} processes here, or set {_VISIBLE[kind]}.")
        module.set_device(local)
    name = module.get_device_name(local) if module else "cpu"
    return Device(kind, name, rank, world, local, _BACKENDS[kind])


def _import_npu(*, use_cpu: bool) -> None:
    hint = "Source CANN's set_env.sh: cli doctor finds it, and says what else is missing. Or uninstall torch_npu."
    try:
        importlib.import_module("torch_npu")
    except (Exception, SystemExit) as error:  # torch_npu 2.13 raises Exception, earlier ones exit
        what = f"is installed but cannot be loaded: {str(error) or type(error).__name__}"
        raise UsageError("torch_npu", what, hint) from error
    if not use_cpu and not os.environ.get("ASCEND_HOME_PATH"):  # torch_npu only warns, DeepSpeed raises a KeyError
        raise UsageError("ASCEND_HOME_PATH", "is not set, and DeepSpeed needs it", hint)


def _module(kind: str) -> Any:
    """torch.cuda or torch.npu; None for cpu."""
    import torch

    return None if kind == "cpu" else getattr(torch, kind)


def _hccl(timeout: int) -> dict[str, int]:
    return {name: min(max(timeout, least), most) for name, (least, most) in _HCCL.items()}


def remarks(device: Device, timeout: int) -> list[str]:
    """What a user should know of a limit that HCCL does not take as it is."""
    name = "HCCL_EXEC_TIMEOUT"
    given, most = os.environ.get(name), _HCCL[name][1]
    if device.kind != "npu" or timeout <= most or (given and given != str(most)):  # it is `most` inside process_group
        return []
    return [f"ddp_timeout: HCCL gives up after {most:,} seconds, the most that every Ascend device takes; "
            f"export {name} to wait longer"]  # fmt: skip


@contextlib.contextmanager
def process_group(device: Device, timeout: int) -> Iterator[None]:
    """Join the other processes, through DeepSpeed, while the block runs; a process alone is a group of one.

    Collectives that take longer than `timeout` seconds end the run. An existing group is used unchanged.
    NCCL and Gloo take the limit from the group; HCCL takes its own from the environment, where a user may have set it.
    """
    import torch.distributed
    from torch.distributed import HashStore  # type: ignore[attr-defined]  # exists, but is not exported

    if torch.distributed.is_initialized():
        yield
        return
    before = {name: os.environ.get(name) for name in (*_GROUP, *_HCCL)}
    os.environ |= {"RANK": str(device.rank), "WORLD_SIZE": str(device.world), "LOCAL_RANK": str(device.local_rank)}
    limit = timedelta(seconds=timeout)
    if device.kind == "npu":
        os.environ.update({name: str(value) for name, value in _hccl(timeout).items() if not before[name]})
        limit += timedelta(seconds=_LATER)
    if device.world == 1 and not (before["MASTER_ADDR"] and before["MASTER_PORT"]):
        # Alone there is nobody to find. A store on a port that was free a moment ago fails once in thousands of runs.
        torch.distributed.init_process_group(device.backend, store=HashStore(), rank=0, world_size=1, timeout=limit)
    import deepspeed

    if device.kind == "cpu":
        # Otherwise DeepSpeed compiles its shared-memory collectives at the first start: minutes, and a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=device.backend, auto_mpi_discovery=False, verbose=False, timeout=limit)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def first_to_say(message: str) -> bool:
    """Whether no other process of this run has printed this message: one for all processes is printed once."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return True  # not under torchrun: there is no store to ask
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # exists, but is not exported

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10))
    return store.add(f"said:{hashlib.sha256(message.encode()).hexdigest()}", 1) == 1
