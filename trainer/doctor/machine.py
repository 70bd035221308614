"""The report on this machine: all that is found, in the order in which it is shown."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from schemas import install
from schemas.printed import json_line
from trainer.doctor import ascend
from trainer.doctor.finding import MachineFinding, ask, size
from trainer.progress import Heartbeat

_SHM = 1 << 30
"""Bytes of shared memory below which data loaders and collectives are known to crash (Docker gives 64 MiB)."""
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


def examine() -> Iterator[MachineFinding]:
    """Yield everything that is found, always in the same order, as soon as it is known."""
    yield from _machine()
    checks = [_torch, ascend.examine, *((lambda name=name: [_package(name)]) for name in PACKAGES)]
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
    yield MachineFinding("disk", "note", f"{size(here.free)} free here, in {Path.cwd()}")
    shared = Path("/dev/shm")
    if shared.is_dir() and (total := shutil.disk_usage(shared).total) < _SHM:
        hint = "Too little for several processes; in a container: docker run --shm-size=8g"
        yield MachineFinding("shared memory", "note", f"{size(total)} in /dev/shm", hint)


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return "unknown"
    limit = _cgroup_limit()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    inside = f", of which this container may use {size(limit)}" if limit and limit < total else ""
    return f"{size(total)}{inside}; {cores} cores"


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
    facts, error = ask(_TORCH, facts=True)
    if facts is None:
        status = "missing" if "No module named 'torch'" in error else "broken"
        hint = f"{_TRAIN} (on a machine without CUDA: pip install torch from its CPU index first)"
        yield MachineFinding("torch", status, error, hint if status == "missing" else "Install it again.", needed=True)
        return
    yield MachineFinding("torch", "ok", facts["version"], needed=True)
    for name, memory in facts["devices"]:
        yield MachineFinding("cuda", "ok", f"{name}, {size(memory)}")
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


# -- packages --


def _package(name: str) -> MachineFinding:
    statement, needed, hint = PACKAGES[name]
    version, error = ask(f"{statement}\nprint(m.__version__)")
    if version is not None:
        return MachineFinding(name, "ok", version, needed=needed)
    if f"No module named '{name}'" in error or (name == "pyarrow S3" and "cannot import name" in error):
        return MachineFinding(name, "missing", "not installed", hint, needed=needed)
    return MachineFinding(name, "broken" if needed else "note", f"cannot be imported: {error}", needed=needed)
