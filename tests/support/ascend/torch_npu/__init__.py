"""A torch_npu without an NPU: its device is `npu:0`, and computes with the kernels of the CPU.

It has the names that torch_npu 2.13 has (github.com/Ascend/pytorch, torch_npu/__init__.py and torch_npu/npu) and that
DeepSpeed (accelerator/npu_accelerator.py), Transformers (utils/import_utils.py, integrations/npu_flash_attention.py),
Accelerate (utils/imports.py, utils/modeling.py) and the trainer call. It is registered as torch_npu registers itself.

npu.py        torch.npu: devices, seeds, memory, streams
kernels.py    memory of the device, and operations on it
hccl.py       the process group `hccl`
attention.py  the kernel of Transformers' FlashAttention for NPUs, by its formula

What it cannot show: kernels of Ascend and their precision, HCCL, CANN, speed.

Environment: FAKE_NPU_COUNT (devices of the machine, 1), FAKE_NPU_MEMORY (bytes of a device, 64 GiB), FAKE_NPU_BF16 (1),
FAKE_NPU_ERROR (what the import says instead, as torch_npu does without CANN).
"""

from __future__ import annotations

import os

if os.environ.get("FAKE_NPU_ERROR"):
    raise ImportError(os.environ["FAKE_NPU_ERROR"])

import torch
import torch.distributed
from torch.utils import backend_registration
from torch.utils.checkpoint import DefaultDeviceType

torch.utils.rename_privateuse1_backend("npu")

from torch_npu import hccl, kernels, npu  # noqa: E402  # `npu` must be a name of torch before tensors are made there
from torch_npu.attention import npu_fusion_attention as npu_fusion_attention  # noqa: E402

__version__ = torch.__version__.split("+")[0]

torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
torch._register_device_module("npu", npu)
torch._C._acc.register_python_privateuseone_hook(backend_registration._DummyPrivateUse1Hook())
torch._C._acc.register_python_privateuseone_device_guard(backend_registration._DummyDeviceGuard())
kernels.register()
torch.distributed.Backend.register_backend("hccl", hccl.ProcessGroupHCCL, devices=["npu"])
DefaultDeviceType.set_device_type("npu")
