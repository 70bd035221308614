"""Fixtures: the command line in this process, a tiny trained model, and a real object store."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from click.testing import Result
from hypothesis import HealthCheck, settings

from tests.support.command import runner

if TYPE_CHECKING:
    from tests.support.agent import Agent
    from tests.support.store import Store

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Result]:
    """A function that runs the command line in this process, with a cache of the test's own."""
    from cli import main

    def invoke(*arguments: object, code: int = 0) -> Result:
        given = [str(argument) for argument in arguments]
        if given[0] == "compile":
            given += (
                ["--cache", str(tmp_path / "cache"), "--workers", "1"]
                if "--workers" not in given
                else ["--cache", str(tmp_path / "cache")]
            )
        result = runner().invoke(main, given, catch_exceptions=False)
        assert result.exit_code == code, f"exit {result.exit_code}\n{result.stdout}\n{result.stderr}"
        return result

    return invoke


@pytest.fixture(scope="session")
def one_process() -> Iterator[None]:
    """A process group of one for all runs of the trainer in this process. DeepSpeed can join a group only once."""
    from trainer import device

    with device.process_group(device.find(use_cpu=True), 60):
        yield


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """A tiny model that knows a few conversations by heart, with its set."""
    from tests.support.agent import make  # torch, which most tests do without

    return make(tmp_path_factory.mktemp("agent"))


_stores: list[Store] = []
"""The store that is running, if any."""


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A real object store, started once. The environment of this process makes it the owner."""
    from tests.support.store import credentials, running_store  # boto3, which most tests do without

    with running_store(tmp_path_factory.mktemp("store")) as found, pytest.MonkeyPatch.context() as patch:
        for name, value in credentials("owner").items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://{found.address}")
        patch.setenv("AWS_REGION", "us-east-1")
        _stores.append(found)
        yield found
        _stores.clear()


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name a test after its parameter's name where the value is bytes: packed bytes can hold the time of packing.

    Workers that run tests side by side must find the same names.
    """
    return argname if isinstance(val, bytes) else None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail a test before which the store died."""
    _check_store(item, "before")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fail a test in which the store died."""
    try:
        yield
    finally:
        _check_store(item, "during")


def _check_store(item: pytest.Item, when: str) -> None:
    """If the store has died, start it again for the other tests, and fail this test with the reason."""
    for running in _stores if "store" in getattr(item, "fixturenames", ()) else []:
        if died := running.restart_if_dead():
            pytest.fail(f"the object store died {when} this test: {died}", pytrace=False)
