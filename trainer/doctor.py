"""What this machine has and lacks for training, for `cli doctor`.

Every package is imported in a process of its own, so that one that crashes, hangs or breaks others does no harm here.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from schemas import install
from schemas.printed import json_line
from trainer.progress import Heartbeat

TIMEOUT = 120
"""Seconds an import may take; DeepSpeed's first one on a slow disk is the longest."""
_SHM = 1 << 30
"""Bytes of shared memory below which data loaders and collectives are known to crash (Docker gives 64 MiB)."""


@dataclass(frozen=True)
class MachineFinding:
    """One line of the report. `status`: ok, missing, broken, or note (good to know); `needed` to train at all."""

    name: str
    status: str
    found: str
    hint: str = ""
    needed: bool = False


_TRAIN = install.extra("train")
PACKAGES = {
    # name: (what is imported, whether training needs it, the hint if it is missing)
    "transformers": ("from transformers import AutoModelForCausalLM; import transformers as m", True, _TRAIN),
    "peft": ("import peft as m", True, _TRAIN),
    "deepspeed": ("import deepspeed as m", True, _TRAIN),
    "sacrebleu": ("import sacrebleu, rouge_chinese, rjieba; m = sacrebleu", False, f"Scores of predictions: {_TRAIN}"),
    "bitsandbytes": ("import bitsandbytes as m", False, "Only for quantization_bit 4 or 8."),
    "flash_attn": ("import flash_attn as m", False, "Only for attn_implementation: flash_attention_2."),
    "boto3": ("import boto3 as m", False, f"Only to write into object stores: {install.extra('s3')}"),
    "pyarrow S3": (
        "import pyarrow.fs, pyarrow as m; pyarrow.fs.S3FileSystem", False,
        "Only to read from object stores; this build of pyarrow lacks it.",
    ),
    "ray": ("import ray as m", False, f"Only to compile on a cluster: {install.extra('ray')}"),
}  # fmt: skip

_TORCH = """
import json, torch
from trainer.device import computes_bf16
facts = {"version": torch.__version__, "cuda": torch.version.cuda, "devices": []}
if torch.cuda.is_available():
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        facts["devices"].append([p.name, p.total_memory])
    facts["bf16"] = computes_bf16("cuda")
print(json.dumps(facts))
"""
_NPU = """
import json, torch, torch_npu
from trainer.device import computes_bf16
facts = {"version": torch_npu.__version__, "devices": []}
for i in range(torch.npu.device_count() if torch.npu.is_available() else 0):
    facts["devices"].append([torch.npu.get_device_name(i), torch.npu.get_device_properties(i).total_memory])
    facts["bf16"] = computes_bf16("npu")
print(json.dumps(facts))
"""


def examine() -> Iterator[MachineFinding]:
    """Yield everything that is found, always in the same order, as soon as it is known."""
    yield from _machine()
    checks = [_torch, _npu, *((lambda name=name: [_package(name)]) for name in PACKAGES)]
    done = itertools.count(1)

    def check(find: Callable[[], Iterable[MachineFinding]]) -> list[MachineFinding]:
        found = list(find())
        beat.reached(next(done))
        return found

    with Heartbeat("importing packages") as beat, ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        beat.doing("importing packages", len(checks), unit="packages")
        for found in pool.map(check, checks):
            yield from found
    yield from _compilers()


def _lacks(finding: MachineFinding) -> bool:
    return finding.needed and finding.status in ("missing", "broken")


def as_json(findings: Iterable[MachineFinding]) -> str:
    """The findings as one JSON object; `ready`: all that training needs is there."""
    found = list(findings)
    ready = not any(map(_lacks, found))
    return json_line({"ready": ready, "findings": [asdict(f) for f in found]})


def lines(findings: Iterable[MachineFinding]) -> Iterator[str]:
    """Yield the findings for people, and the verdict."""
    lacking = []
    for finding in findings:
        if _lacks(finding):
            lacking.append(f"{finding.name} is {finding.status}")
        yield f"{finding.status:8} {finding.name:14} {finding.found}"
        if finding.hint:
            yield f"{'':23} {finding.hint}"
    yield f"This machine cannot train yet: {', '.join(lacking)}." if lacking else "This machine can train."


# -- the machine --


def _machine() -> Iterator[MachineFinding]:
    old = sys.version_info < (3, 11)
    yield MachineFinding(
        "python", "broken" if old else "ok", f"{platform.python_version()}, {platform.system()} {platform.machine()}",
        "Python 3.11 or newer is needed." if old else "", needed=True,
    )  # fmt: skip
    yield MachineFinding("memory", "note", _memory())
    here = shutil.disk_usage(Path.cwd())
    yield MachineFinding("disk", "note", f"{_size(here.free)} free here, in {Path.cwd()}")
    shared = Path("/dev/shm")
    if shared.is_dir() and (total := shutil.disk_usage(shared).total) < _SHM:
        hint = "Too little for several processes; in a container: docker run --shm-size=8g"
        yield MachineFinding("shared memory", "note", f"{_size(total)} in /dev/shm", hint)


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    limit = _cgroup_limit()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    inside = f", of which this container may use {_size(limit)}" if limit and limit < total else ""
    return f"{_size(total)}{inside}; {cores} cores"


def _cgroup_limit() -> int | None:
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            return int(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _compilers() -> Iterator[MachineFinding]:
    for name in ("ninja", "g++"):
        found = shutil.which(name)
        yield MachineFinding(
            name, "note", found or "not found", "Not needed: nothing is compiled when training starts."
        )


# -- torch and its devices --


def _torch() -> Iterator[MachineFinding]:
    facts, error = _python(_TORCH, facts=True)
    if facts is None:
        status = "missing" if "No module named 'torch'" in error else "broken"
        hint = f"{_TRAIN} (on a machine without CUDA: pip install torch from its CPU index first)"
        yield MachineFinding("torch", status, error, hint if status == "missing" else "Install it again.", needed=True)
        return
    yield MachineFinding("torch", "ok", facts["version"], needed=True)
    for name, memory in facts["devices"]:
        yield MachineFinding("cuda", "ok", f"{name}, {_size(memory)}")
    if facts["devices"]:
        found = "supported" if facts["bf16"] else "not supported: use fp16"
        yield MachineFinding("bf16", "ok" if facts["bf16"] else "note", found)
        return
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        what = f"built for CUDA {facts['cuda']}" if facts["cuda"] else "a build without CUDA"
        hint = "Install a build of torch for the driver that nvidia-smi shows."
        yield MachineFinding("cuda", "broken", f"there is an NVIDIA device, but torch ({what}) does not see it", hint)
    yield MachineFinding("cpu", "ok", f"{platform.processor() or platform.machine()}, bf16 {_cpu_bf16()}")


def _cpu_bf16() -> str:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return "unknown"
    return "in hardware" if {"avx512_bf16", "amx_bf16", "bf16"} & set(flags) else "emulated, slower than fp32"


def _npu() -> Iterator[MachineFinding]:
    facts, error = _python(_NPU, facts=True)
    device = any(Path("/dev").glob("davinci[0-9]*"))
    if facts is None:
        if "No module named 'torch_npu'" in error or "No module named 'torch'" in error:
            if device:
                hint = f"{install.extra('npu')}, with CANN installed and its set_env.sh sourced."
                yield MachineFinding(
                    "npu", "missing", "there is an Ascend device, but torch_npu is not installed", hint
                )
            return
        yield MachineFinding(
            "npu", "broken", f"torch_npu is installed and cannot be imported: {error}",
            "Install the CANN toolkit that this torch_npu names and source its set_env.sh (as in source "
            "/usr/local/Ascend/ascend-toolkit/set_env.sh). Without it, torch itself imports only with "
            "TORCH_DEVICE_BACKEND_AUTOLOAD=0 set; to train on the CPU, uninstall torch_npu.",
            needed=True,
        )  # fmt: skip
        return
    if not facts["devices"]:
        hint = "Look at npu-smi info and at ASCEND_RT_VISIBLE_DEVICES."
        yield MachineFinding("npu", "broken", f"torch_npu {facts['version']} sees no device", hint, needed=True)
    for name, memory in facts["devices"]:
        yield MachineFinding("npu", "ok", f"{name}, {_size(memory)}, torch_npu {facts['version']}")
    if facts["devices"]:
        yield MachineFinding(
            "bf16", "ok" if facts["bf16"] else "note", "supported" if facts["bf16"] else "not supported: use fp16"
        )


# -- packages --


def _package(name: str) -> MachineFinding:
    statement, needed, hint = PACKAGES[name]
    version, error = _python(f"{statement}\nprint(m.__version__)")
    if version is not None:
        return MachineFinding(name, "ok", version, needed=needed)
    if f"No module named '{name}'" in error or (name == "pyarrow S3" and "cannot import name" in error):
        return MachineFinding(name, "missing", "not installed", hint, needed=needed)
    return MachineFinding(name, "broken" if needed else "note", f"cannot be imported: {error}", needed=needed)


def _python(code: str, *, facts: bool = False) -> tuple[Any, str]:
    """Run code in a Python of its own; return the last printed line and "", or None and the last line of the error.

    `facts`: parse that line as JSON.
    """
    # Otherwise torch imports torch_npu by itself, and fails if CANN is missing.
    environment = os.environ | {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "PYTHONWARNINGS": "ignore"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True, text=True, errors="replace", timeout=TIMEOUT, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, f"importing it took more than {TIMEOUT} seconds"
    printed, failed = done.stdout.strip().splitlines(), done.stderr.strip().splitlines()
    if done.returncode or not printed:
        return None, failed[-1] if failed else f"importing it ended the process with {done.returncode}"
    return (json.loads(printed[-1]) if facts else printed[-1]), ""


def _size(count: float) -> str:
    return f"{count / (1 << 30):,.1f} GiB"
