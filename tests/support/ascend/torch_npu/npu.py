"""torch.npu. There is one device for each process, `npu:0`, as if ASCEND_RT_VISIBLE_DEVICES named one."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from torch_npu import kernels

_index = 0
_COUNT = int(os.environ.get("FAKE_NPU_COUNT", "1"))


@dataclass(frozen=True)
class Properties:
    name: str
    total_memory: int


# -- devices --


def is_available() -> bool:
    return device_count() > 0


def is_initialized() -> bool:
    return True


def _is_in_bad_fork() -> bool:
    return False


def _lazy_init() -> None: ...


def _lazy_call(call: Any) -> None:
    call()


def device_count() -> int:
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    return _COUNT if visible is None else len([one for one in visible.split(",") if one])


def set_device(device: Any) -> None:
    global _index
    _index = device if isinstance(device, int) else torch.device(device).index
    if not 0 <= _index < device_count():
        raise RuntimeError(f"Invalid device id {_index}")


def current_device() -> int:
    return _index


def get_device_name(device_name: Any = None) -> str:
    return "Ascend910B3"


def get_device_properties(device_name: Any = None) -> Properties:
    return Properties("Ascend910B3", kernels.MEMORY.total)


def get_device_capability(device: Any = None) -> None: ...


def synchronize(device: Any = None) -> None: ...


def is_bf16_supported() -> bool:
    """Without a parameter, unlike torch.cuda's."""
    return os.environ.get("FAKE_NPU_BF16", "1") == "1"


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.float16, torch.bfloat16, torch.float32]


class device:  # noqa: N801  # the name in torch.npu
    def __init__(self, device: Any) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


# -- seeds: a generator of the device's own, so that a seed for the CPU alone does nothing here --


def manual_seed(seed: int) -> None:
    kernels.GENERATOR.manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    kernels.GENERATOR.manual_seed(seed)


def initial_seed() -> int:
    return kernels.GENERATOR.initial_seed()


def get_rng_state(device: Any = "npu") -> torch.Tensor:
    return kernels.GENERATOR.get_state()


def set_rng_state(new_state: torch.Tensor, device: Any = "npu") -> None:
    kernels.GENERATOR.set_state(new_state)


default_generators = (kernels.GENERATOR,)


# -- memory --


def memory_allocated(device: Any = None) -> int:
    return kernels.MEMORY.now


def max_memory_allocated(device: Any = None) -> int:
    return kernels.MEMORY.peak


def reset_peak_memory_stats(device: Any = None) -> None:
    kernels.MEMORY.peak = kernels.MEMORY.now


def mem_get_info(device: Any = None) -> tuple[int, int]:
    return kernels.MEMORY.total - kernels.MEMORY.now, kernels.MEMORY.total


def memory_stats(device: Any = None) -> dict[str, int]:
    return {"allocated_bytes.all.current": kernels.MEMORY.now, "allocated_bytes.all.peak": kernels.MEMORY.peak}


def empty_cache() -> None: ...


memory_reserved = memory_cached = memory_allocated
max_memory_reserved = max_memory_cached = max_memory_allocated
reset_max_memory_allocated = reset_max_memory_cached = reset_peak_memory_stats


# -- streams: every operation is done when its call returns --


class Event:
    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None: ...

    def record(self, stream: Any = None) -> None: ...

    def wait(self, stream: Any = None) -> None: ...

    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True


class Stream(torch.Stream):
    def __new__(cls, device: Any = None, priority: int = 0) -> Stream:
        kind = torch._C._autograd.DeviceType.PrivateUse1.value
        return super().__new__(cls, stream_id=0, device_index=0, device_type=kind)

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Any) -> None: ...

    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> Event:
        return event or Event()

    def query(self) -> bool:
        return True


_default = Stream()


def stream(stream: Any) -> Any:
    return contextlib.nullcontext(stream)


def current_stream(device: Any = None) -> Stream:
    return _default


def default_stream(device: Any = None) -> Stream:
    return _default


BFloat16Tensor = partial(torch.tensor, dtype=torch.bfloat16, device="npu:0")
ByteTensor = partial(torch.tensor, dtype=torch.uint8, device="npu:0")
DoubleTensor = partial(torch.tensor, dtype=torch.float64, device="npu:0")
FloatTensor = partial(torch.tensor, dtype=torch.float32, device="npu:0")
HalfTensor = partial(torch.tensor, dtype=torch.float16, device="npu:0")
IntTensor = partial(torch.tensor, dtype=torch.int32, device="npu:0")
LongTensor = partial(torch.tensor, dtype=torch.int64, device="npu:0")
