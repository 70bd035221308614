"""Running out of memory, as one message that says what to lower."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import torch

from schemas.errors import UsageError
from trainer.config import zero
from trainer.progress import Heartbeat
from trainer.run.plan import RunPlan

_SAID = re.compile(
    r"out of memory|can't allocate memory|failed to allocate memory|EL0004|error code is 2070(01|18)\b", re.IGNORECASE
)
"""What CUDA, torch_npu and the CPU's allocator say, and CANN below torch_npu: for its operators and for HCCL, by EL0004
(CANN 9.0, "Troubleshooting", atlaserrorcode_15_0267) or by the numbers of two aclErrors.
"""


@contextlib.contextmanager
def explained(plan: RunPlan, beat: Heartbeat) -> Iterator[None]:
    """Raise a UsageError for an allocation that fails in the block; it names what was being done."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        is_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or _SAID.search(str(error))
        if not is_memory:
            raise
        size = plan.device.memory()
        of = f" ({size / 2**30:.0f} GiB)" if size else ""
        what = f"out of memory while {beat.what} on {plan.device.name}{of}"
        said = (str(error).strip().splitlines() or ["no message"])[0]
        raise UsageError(plan.where, f"{what}: {said}", f"{'; '.join(ways(plan, beat.what))}.") from error


def ways(plan: RunPlan, doing: str = "training") -> Iterator[str]:
    """Yield what would need less, the least harmful first."""
    c = plan.config
    if doing.startswith(("evaluating", "generating")):
        if (c.per_device_eval_batch_size or plan.micro) > 1:
            yield "Lower per_device_eval_batch_size"
    elif plan.micro > 1:
        yield "Lower per_device_train_batch_size and raise gradient_accumulation_steps as much, which changes no loss"
    if not c.gradient_checkpointing and c.tuning != "prefix":
        yield "Set gradient_checkpointing: true"
    if zero.stage(plan.deepspeed) < 3 and plan.device.world > 1:
        yield "Use zero_stage: 3"
    if c.tuning == "full":
        yield "Use tuning: lora"
    elif c.tuning == "lora" and not c.quantization_bit:
        yield "Use quantization_bit: 4"
    yield "Compile shorter rows (cli compile --max-length)"
