"""What `cli doctor` says of an Ascend NPU: for each thing that lacks, the next command. No NPU and no CANN is here."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import npu
from trainer.doctor import ascend
from trainer.doctor.finding import MachineFinding

Look = Callable[..., dict[str, MachineFinding]]


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def look(tmp_path: Path) -> Look:
    """Examine the machine in tmp_path, with an environment of its own."""

    def examine(**environ: str) -> dict[str, MachineFinding]:
        given = {"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path / "home"), **environ}
        return {finding.name: finding for finding in ascend.examine(tmp_path, given)}

    return examine


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A machine with an NPU and its driver."""
    touch(tmp_path / "dev" / "davinci0")
    touch(tmp_path / "dev" / "davinci_manager")
    touch(tmp_path / "bin" / "npu-smi").chmod(0o755)
    return tmp_path


def test_a_machine_without_anything_of_ascend_gets_no_line(look: Look) -> None:
    assert look() == {}


def test_no_device_and_no_driver_names_the_packages_to_install(look: Look, tmp_path: Path) -> None:
    touch(tmp_path / "usr/local/Ascend/cann/set_env.sh")
    found = look()["npu driver"]
    assert (found.status, found.found) == ("missing", "no /dev/davinci*, no npu-smi")
    assert "npu-driver_VERSION_linux-$(uname -m).run --full --install-for-all" in found.hint
    assert "docker run --device /dev/davinci0" in found.hint


def test_a_driver_without_devices_is_a_container_that_was_not_given_them(look: Look, tmp_path: Path) -> None:
    touch(tmp_path / "bin/npu-smi").chmod(0o755)
    found = look()["npu driver"]
    assert found.found == "the driver, and no /dev/davinci*"
    assert "npu-smi info says why" in found.hint and "--device /dev/hisi_hdc" in found.hint


def test_a_device_without_a_driver_is_a_container_that_lacks_it(look: Look, tmp_path: Path) -> None:
    touch(tmp_path / "dev/davinci0")
    found = look()["npu driver"]
    assert "no driver" in found.found
    assert "-v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro" in found.hint


def test_cann_that_is_nowhere_names_its_packages(look: Look, device: Path) -> None:
    found = look()
    assert found["npu driver"].status == "ok"
    assert (found["cann"].status, found["cann"].found) == ("missing", "not found")
    assert "Ascend-cann-toolkit_VERSION_linux-$(uname -m).run --install" in found["cann"].hint
    lost = look(ASCEND_HOME_PATH=str(device / "gone"), ASCEND_OPP_PATH=str(device / "gone/opp"))["cann"]
    assert (lost.status, lost.found) == ("missing", f"ASCEND_HOME_PATH={device}/gone, where there is none")


@pytest.mark.parametrize(
    ("files", "variable", "script"),
    [
        (["usr/local/Ascend/ascend-toolkit"], "", "usr/local/Ascend/ascend-toolkit"),
        (["usr/local/Ascend/ascend-toolkit", "usr/local/Ascend/cann"], "", "usr/local/Ascend/cann"),
        (["usr/local/Ascend/cann-8.5.0", "usr/local/Ascend/cann-8.10.1"], "", "usr/local/Ascend/cann-8.10.1"),
        (["home/Ascend/cann"], "", "home/Ascend/cann"),
        (["home/Ascend/ascend-toolkit"], "", "home/Ascend/ascend-toolkit"),
        (["opt/toolkit"], "opt/toolkit/latest", "opt/toolkit"),
    ],
)
def test_cann_whose_script_did_not_run_is_the_command_that_runs_it(
    look: Look, device: Path, files: list[str], variable: str, script: str
) -> None:
    for folder in files:
        touch(device / folder / "set_env.sh")
    found = look(**({"ASCEND_TOOLKIT_HOME": str(device / variable)} if variable else {}))["cann"]
    assert (found.status, found.hint) == ("broken", f"source {device / script}/set_env.sh")


def test_cann_that_is_ready_is_shown_with_its_version(look: Look, device: Path) -> None:
    home = device / "cann"
    touch(home / "aarch64-linux/ascend_toolkit_install.info", "package_name=Ascend-cann-toolkit\nversion=8.5.0\n")
    (home / "opp").mkdir()
    found = look(ASCEND_HOME_PATH=str(home), ASCEND_OPP_PATH=str(home / "opp"))["cann"]
    assert (found.status, found.found) == ("ok", f"in {home} 8.5.0")


@pytest.mark.usefixtures("device")
def test_a_missing_torch_npu_is_the_command_for_the_torch_that_is_here(look: Look) -> None:
    found = look()["torch_npu"]
    assert (found.status, found.hint) == ("missing", f"pip install 'torch-npu=={npu.TORCH}.*'")
    assert not found.needed  # cli train takes the CPU


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, str]]:
    """Install the torch_npu of tests for a torch, in this process and those that it starts."""

    def install(wanted: str = npu.TORCH, **more: str) -> dict[str, str]:
        given = npu.environment(tmp_path / "installed", wanted, **more)
        for name in given.keys() - os.environ.keys() | {"PYTHONPATH"}:
            monkeypatch.setenv(name, given[name])
        monkeypatch.syspath_prepend(str(tmp_path / "installed/site"))
        return {name: given[name] for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH")}

    return install


@pytest.mark.usefixtures("device")
def test_a_torch_npu_of_another_torch_is_the_pair_that_works(
    look: Look, installed: Callable[..., dict[str, str]]
) -> None:
    found = look(**installed("2.1.0", FAKE_NPU_ERROR="undefined symbol: _ZN2at4_ops"))
    pair = found["torch_npu"]
    assert (pair.status, pair.found) == ("broken", f"2.1.0 is made for torch 2.1.0, and there is {npu.TORCH}")
    assert pair.hint == f"pip install torch==2.1.0; or, to keep this torch: pip install 'torch-npu=={npu.TORCH}.*'"
    assert found["npu"].status == "broken" and "undefined symbol" in found["npu"].found
    assert found["npu"].hint.startswith("Begin with what is missing above.")


@pytest.mark.slow
@pytest.mark.usefixtures("device")
def test_a_machine_that_is_ready_shows_its_devices(look: Look, installed: Callable[..., dict[str, str]]) -> None:
    found = look(**installed(FAKE_NPU_COUNT="2"))
    assert {name: one.status for name, one in found.items() if name not in ("hccl ports", "hccn.conf")} == {
        "npu driver": "ok", "cann": "ok", "torch_npu": "ok", "npu": "ok", "bf16": "ok",
    }  # fmt: skip
    assert found["npu"].found == f"Ascend910B3, 64.0 GiB, torch_npu {npu.TORCH}"
    none = look(**installed(ASCEND_RT_VISIBLE_DEVICES=""))["npu"]
    assert "sees no device" in none.found and "ASCEND_RT_VISIBLE_DEVICES" in none.hint


@pytest.mark.slow
def test_the_command_itself_says_what_lacks(tmp_path: Path) -> None:
    environment = npu.environment(tmp_path, FAKE_NPU_ERROR="libhccl.so: cannot open shared object file")
    del environment["ASCEND_OPP_PATH"]
    done = subprocess.run(
        [sys.executable, str(npu.ROOT / "cli.py"), "doctor"],
        capture_output=True, text=True, env=environment, check=True, timeout=300,
    )  # fmt: skip
    assert f"source {environment['ASCEND_HOME_PATH']}/set_env.sh\n" in done.stdout
    assert "npu is broken" in done.stdout.splitlines()[-1]


# -- ports of HCCL, addresses of devices --


@pytest.fixture
def kernel(device: Path) -> Iterator[Callable[[str, str], None]]:
    """Write what the kernel says of ports, for a base port of which 32 are free."""

    def write(ports: str, reserved: str) -> None:
        touch(device / "proc/sys/net/ipv4/ip_local_port_range", f"{ports}\n")
        touch(device / "proc/sys/net/ipv4/ip_local_reserved_ports", f"{reserved}\n")

    yield write


def free_base(above: int = 20000) -> int:
    return next(base for base in range(above, 60000, 50) if all(map(ascend._is_free, range(base, base + 32))))


def test_ports_that_the_system_may_give_away_are_moved_or_reserved(
    look: Look, kernel: Callable[[str, str], None]
) -> None:
    base = free_base()
    kernel(f"{base - 10}\t{base + 999}", "8080,9000-9100")
    found = look(HCCL_IF_BASE_PORT=str(base))["hccl ports"]
    assert found.status == "note" and f"ip_local_port_range {base - 10}-{base + 999}" in found.found
    moved, reserve = found.hint.split("; or: ")
    assert reserve == f"sysctl -w net.ipv4.ip_local_reserved_ports=8080,9000-9100,{base}-{base + 31}"
    other = int(moved.removeprefix("export HCCL_IF_BASE_PORT="))
    assert look(HCCL_IF_BASE_PORT=str(other))["hccl ports"].status == "ok"
    kernel(f"{base - 10}\t{base + 999}", f"8080,{base}-{base + 40}")
    assert look(HCCL_IF_BASE_PORT=str(base))["hccl ports"].status == "ok"


def test_a_port_that_is_in_use_is_named_with_others_that_are_free(
    look: Look, kernel: Callable[[str, str], None]
) -> None:
    base = free_base()
    kernel("32768\t60999", "")
    with socket.create_server(("127.0.0.1", base + 3)):
        found = look(HCCL_IF_BASE_PORT=str(base))["hccl ports"]
    assert f"of {base}-{base + 31}, {base + 3} is in use" in found.found
    assert found.hint.startswith("export HCCL_IF_BASE_PORT=") and found.hint != f"export HCCL_IF_BASE_PORT={base}"


@pytest.mark.usefixtures("device")
def test_ports_that_the_user_chose_are_not_judged_and_nonsense_is(look: Look) -> None:
    assert look(HCCL_HOST_SOCKET_PORT_RANGE="auto")["hccl ports"].status == "ok"
    found = look(HCCL_IF_BASE_PORT="70000")["hccl ports"]
    assert (found.status, found.found) == ("broken", "HCCL_IF_BASE_PORT=70000, expected 1024 to 65520")


def test_addresses_for_several_nodes_are_a_note(look: Look, device: Path) -> None:
    assert "hccn_tool -i 0 -ip -s address" in look()["hccn.conf"].hint
    touch(device / "etc/hccn.conf", "address_0=192.168.100.101\nnetmask_0=255.255.255.0\naddress_1=192.168.101.101\n")
    assert look()["hccn.conf"].found == "2 devices have an address for other nodes"
