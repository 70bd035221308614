"""Which device a run takes, tried with devices that are not there: no accelerator is needed, and none was used."""

from __future__ import annotations

import importlib.machinery
import json
import os
import socket
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from schemas.errors import UsageError
from tests.support import npu as fake
from tests.support.command import GROUP
from trainer import device

Give = Callable[..., types.ModuleType]


def driver(count: int, *, bf16: bool = True, emulates: bool = False) -> types.ModuleType:
    """Return what torch.cuda and torch.npu have in common."""
    module = types.ModuleType("driver")
    chosen: list[int] = []
    functions: dict[str, Any] = {
        "is_available": lambda: count > 0, "device_count": lambda: count, "set_device": chosen.append,
        "get_device_name": lambda number: f"card {number}",
        "is_bf16_supported": lambda including_emulation=True: bf16 or (emulates and including_emulation),
        "chosen": chosen,
    }  # fmt: skip
    vars(module).update(functions)
    return module


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*GROUP, "DS_ACCELERATOR", "TORCH_DEVICE_BACKEND_AUTOLOAD"):
        monkeypatch.setenv(name, "")  # so that what a test sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch, "cuda", driver(0))


@pytest.fixture
def npu(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], types.ModuleType]:
    """Pretend that torch_npu is installed and sees so many devices."""

    def install(count: int) -> types.ModuleType:
        found = driver(count)
        package = types.ModuleType("torch_npu")
        package.__spec__ = importlib.machinery.ModuleSpec("torch_npu", None)
        monkeypatch.setitem(sys.modules, "torch_npu", package)
        monkeypatch.setattr(torch, "npu", found, raising=False)
        monkeypatch.setenv("ASCEND_HOME_PATH", "/cann")
        return found

    return install


def test_without_an_accelerator_it_is_the_cpu() -> None:
    found = device.find(use_cpu=False)
    assert (found.kind, found.backend, found.world, found.has_bf16) == ("cpu", "gloo", 1, False)
    assert found.memory() is None


def test_a_process_takes_the_card_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = driver(4, bf16=False, emulates=True)  # as a T4 does
    monkeypatch.setattr(torch, "cuda", cards)
    group = {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in group.items():
        monkeypatch.setenv(name, value)
    found = device.find(use_cpu=False)
    assert (found.kind, found.name, found.backend) == ("cuda", "card 2", "nccl")
    assert (found.rank, found.world, found.local_rank) == (6, 8, 2)
    assert (found.has_bf16, found.torch, cards.chosen) == (False, torch.device("cuda:2"), [2])


def test_more_processes_than_cards_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "cuda", driver(2))
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match=r"CUDA_VISIBLE_DEVICES: process 2 .* has no cuda device: 2 are visible"):
        device.find(use_cpu=False)


def test_an_npu_is_used_where_torch_npu_is_installed(npu: Give) -> None:
    npu(8)
    found = device.find(use_cpu=False)
    assert (found.kind, found.backend, found.has_bf16) == ("npu", "hccl", True)
    assert device.find(use_cpu=True).kind == "cpu"


def test_no_visible_npu_names_the_variable(npu: Give) -> None:
    npu(0)
    with pytest.raises(UsageError, match=r"ASCEND_RT_VISIBLE_DEVICES: .*has no npu device: 0 are visible"):
        device.find(use_cpu=False)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ImportError("libhccl.so: cannot open shared object file"), r"libhccl\.so"),  # tried with the wheel of 2.13
        (Exception("ASCEND_HOME_PATH : /a does not exist."), "does not exist"),  # its check of CANN
        (SystemExit(), "SystemExit"),  # earlier versions print their message, and end with exit code 0
    ],
    ids=("import", "check", "exit"),
)
def test_a_torch_npu_without_cann_is_one_message(
    npu: Give, monkeypatch: pytest.MonkeyPatch, error: BaseException, said: str
) -> None:
    """What `import torch_npu` says there."""
    npu(1)

    def fail(_name: str) -> types.ModuleType:
        raise error

    monkeypatch.setattr(device.importlib, "import_module", fail)
    for use_cpu in (False, True):  # Transformers imports it on the CPU too
        with pytest.raises(UsageError, match=rf"{said}(.|\n)*Source CANN's set_env\.sh: cli doctor finds it"):
            device.find(use_cpu=use_cpu)


def test_a_cann_that_is_unknown_to_deepspeed_is_one_message(npu: Give, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch_npu only warns; DeepSpeed 0.19 ends its import with a KeyError."""
    npu(1)
    monkeypatch.delenv("ASCEND_HOME_PATH")
    with pytest.raises(UsageError, match=r"ASCEND_HOME_PATH: is not set, and DeepSpeed needs it"):
        device.find(use_cpu=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"WORLD_SIZE": "2"}, "2 processes cannot find each other without MASTER_ADDR and MASTER_PORT"),
        ({"WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "cannot find each other without RANK"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "expected a number below WORLD_SIZE=2"),
        ({"RANK": "one"}, "expected a number"),
    ],
)
def test_processes_that_cannot_find_each_other_are_refused(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], said: str
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=said):
        device.launched()


def test_a_cluster_may_set_no_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "head", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert device.launched() == (1, 2, 0)


def test_a_run_of_one_process_opens_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two runs that start together, one could take the port that the other had just found free."""

    def refuse(*_arguments: object) -> None:
        raise AssertionError("a port was opened")

    for name in GROUP:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "rendezvous", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    with device.process_group(device.find(use_cpu=True), 60):
        one = torch.ones(1)
        torch.distributed.all_reduce(one)
        assert (one.item(), torch.distributed.get_world_size()) == (1, 1)
    assert "RANK" not in os.environ


# -- collectives: their limit, for HCCL --


def test_hccl_gets_the_limit_of_a_collective_and_the_group_a_minute_more(tmp_path: Path) -> None:
    """A group of one on the NPU of tests/support, in a process of its own."""
    code = """
import json, os, torch
from trainer import device
found = device.find(use_cpu=False)
hccl = lambda: [os.environ.get(name) for name in ("HCCL_CONNECT_TIMEOUT", "HCCL_EXEC_TIMEOUT")]
with device.process_group(found, 18000):
    group = torch.distributed.group.WORLD
    one = torch.ones(2, device=found.torch)
    torch.distributed.all_reduce(one)
    try:
        torch.distributed.all_reduce(torch.ones(2))
    except RuntimeError as error:
        refused = str(error)
    print(json.dumps([found.kind, found.name, found.memory(), found.has_bf16, one.tolist(), hccl(),
                      group.timeout.total_seconds(), refused, device.remarks(found, 18000)]))
print(json.dumps(hccl()))
"""
    given = fake.environment(tmp_path, FAKE_NPU_MEMORY=str(32 << 30), HCCL_CONNECT_TIMEOUT="600")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given, timeout=300)
    assert done.returncode == 0, done.stderr
    kind, name, memory, bf16, one, hccl, limit, refused, remarks = json.loads(done.stdout.splitlines()[-2])
    assert (kind, name, memory, bf16, one) == ("npu", "Ascend910B3", 32 << 30, True, [1, 1])
    assert hccl == ["600", "17340"]  # the user's own, and the most that every device takes
    assert limit == 18060
    assert refused == "No backend type associated with device type cpu"
    assert remarks[0].startswith("ddp_timeout: HCCL gives up after 17,340 seconds")
    assert json.loads(done.stdout.splitlines()[-1]) == ["600", None]


@pytest.mark.parametrize(
    ("timeout", "limits"), [(1, ("120", "68")), (1800, ("1800", "1800")), (180000000, ("7200", "17340"))]
)
def test_limits_of_hccl_are_in_its_ranges(timeout: int, limits: tuple[str, str]) -> None:
    """CANN 9.0: HCCL_CONNECT_TIMEOUT 120 to 7200, HCCL_EXEC_TIMEOUT to 17340 on the first devices, in steps of 68."""
    assert tuple(map(str, device._hccl(timeout).values())) == limits


def test_a_remark_says_where_hccl_waits_less(monkeypatch: pytest.MonkeyPatch) -> None:
    one = device.Device("npu", "card", 0, 1, 0, "hccl")
    assert device.remarks(one, 17340) == []
    assert len(device.remarks(one, 17341)) == 1
    monkeypatch.setenv("HCCL_EXEC_TIMEOUT", "0")
    assert device.remarks(one, 17341) == []
    assert device.remarks(device.Device("cuda", "card", 0, 1, 0, "nccl"), 17341) == []


def test_a_seed_and_memory_are_the_devices_own(tmp_path: Path) -> None:
    """The trainer seeds with torch.manual_seed alone; the device of tests/support has a generator of its own."""
    code = """
import json, torch
from trainer import device
found = device.find(use_cpu=False)
def dropped():
    return torch.nn.functional.dropout(torch.ones(64, device=found.torch)).tolist()
torch.manual_seed(5)
one, other = dropped(), dropped()
torch.manual_seed(5)
held = torch.empty(1 << 20, dtype=torch.uint8, device=found.torch)
del held
print(json.dumps([one == dropped(), one == other, torch.npu.max_memory_allocated(), torch.npu.memory_allocated()]))
"""
    given = fake.environment(tmp_path)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given, timeout=300)
    assert done.returncode == 0, done.stderr
    again, other, most, now = json.loads(done.stdout)
    assert (again, other) == (True, False)
    assert 1 << 20 <= most < (1 << 20) + 4096 and now == 0
