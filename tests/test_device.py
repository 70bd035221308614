"""Which device a run takes, tried with devices that are not there: no accelerator is needed, and none was used."""

from __future__ import annotations

import importlib.machinery
import os
import socket
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch

from schemas.errors import UsageError
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


def test_a_torch_npu_without_cann_is_one_message(npu: Give, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `import torch_npu` says there: tried with its wheel on a machine without CANN."""
    npu(1)

    def fail(_name: str) -> types.ModuleType:
        raise ImportError("libhccl.so: cannot open shared object file: No such file or directory")

    monkeypatch.setattr(device.importlib, "import_module", fail)
    with pytest.raises(UsageError, match=r"libhccl\.so.*\n.*source .*set_env\.sh"):
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
