"""What an Ascend NPU needs, from the driver up, with the next command for each thing that lacks.

Facts are Huawei's (hiascend.com/document): CANN 8.5 and 9.0, "Environment Variables", envref_07_0003 (set_env.sh),
_0074 (HCCL_IF_BASE_PORT) and _0143 (HCCL_HOST_SOCKET_PORT_RANGE); MindSDK 7.3, "Installing the NPU Driver, Firmware,
and CANN"; MindCluster 7.3, "Default Content Mounted by Ascend Docker Runtime"; Ascend Deployer, "Configuring the NIC
IP Address of a Device". What torch_npu checks itself, and which torch it belongs to: Ascend/pytorch, torch_npu/_init
and COMPATIBILITY.md. /etc/hccn.conf: MindSpore, "Distributed Parallel Training (Ascend)".
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from schemas import install
from trainer.doctor.finding import MachineFinding, ask, size

_NPU = """
import json, torch, torch_npu
from trainer.device import computes_bf16
facts = {"version": torch_npu.__version__, "devices": []}
for i in range(torch.npu.device_count() if torch.npu.is_available() else 0):
    facts["devices"].append([torch.npu.get_device_name(i), torch.npu.get_device_properties(i).total_memory])
    facts["bf16"] = computes_bf16("npu")
print(json.dumps(facts))
"""
_DRIVER = (
    "Install, as root: ./Ascend-hdk-CHIP-npu-driver_VERSION_linux-$(uname -m).run --full --install-for-all && "
    "./Ascend-hdk-CHIP-npu-firmware_VERSION.run --full; then npu-smi info lists the devices."
)
_CONTAINER = (
    "In a container: docker run --device /dev/davinci0 --device /dev/davinci_manager --device /dev/devmm_svm "
    "--device /dev/hisi_hdc -v /usr/local/Ascend/driver:/usr/local/Ascend/driver:ro "
    "-v /usr/local/bin/npu-smi:/usr/local/bin/npu-smi:ro ..."
)
_CANN = (
    "Install the CANN that belongs to torch_npu (Ascend/pytorch, COMPATIBILITY.md): "
    "./Ascend-cann-toolkit_VERSION_linux-$(uname -m).run --install, and the operators of the chip, "
    "./Ascend-cann-CHIP-ops_VERSION_linux-$(uname -m).run --install (before CANN 8.5: Ascend-cann-kernels-CHIP)."
)
_HOMES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")
_PORTS = 32
"""Ports that HCCL takes from its first one on; before CANN 9.0 it takes 16."""
_BASES = range(1024, 65521)
"""What HCCL_IF_BASE_PORT may be."""


def examine(root: Path = Path("/"), environ: Mapping[str, str] = os.environ) -> Iterator[MachineFinding]:
    """Yield what is found of Ascend; nothing on a machine that has nothing of it."""
    devices = list(root.glob("dev/davinci[0-9]*"))
    driver = shutil.which("npu-smi", path=environ.get("PATH", "")) or (root / "usr/local/Ascend/driver").is_dir()
    script = set_env(root, environ)
    needed = importlib.util.find_spec("torch_npu") is not None  # then cli train takes the NPU
    if not (devices or driver or script or needed):
        return
    before = [_driver(len(devices), bool(driver), needed), _cann(script, environ, needed), _package(needed)]
    yield from before
    if needed:
        yield from _devices(all(finding.status == "ok" for finding in before))
    if devices:
        yield _ports(root, environ)
        yield _addresses(root)


def set_env(root: Path, environ: Mapping[str, str]) -> Path | None:
    """The script that makes CANN known to a shell, wherever it usually lies."""
    homes = [Path(environ[name]) for name in _HOMES if environ.get(name)]
    bases = [root / "usr/local/Ascend", *(Path(home) / "Ascend" for home in [environ.get("HOME")] if home)]
    places = [*homes, *(home.parent for home in homes)]
    for base in bases:
        releases = sorted(base.glob("cann-*"), key=lambda path: _numbers(path.name), reverse=True)
        places += [base / "cann", base / "ascend-toolkit", *releases]
    return next((place / "set_env.sh" for place in places if (place / "set_env.sh").is_file()), None)


def _driver(devices: int, driver: bool, needed: bool) -> MachineFinding:
    name = "npu driver"
    if devices and driver:
        return MachineFinding(name, "ok", f"{devices} in /dev, and the driver", needed=needed)
    if driver:
        hint = f"npu-smi info says why. {_CONTAINER}"
        return MachineFinding(name, "missing", "the driver, and no /dev/davinci*", hint, needed)
    if devices:
        found = f"{devices} in /dev, and no driver (npu-smi, /usr/local/Ascend/driver)"
        return MachineFinding(name, "missing", found, f"{_CONTAINER} Else: {_DRIVER}", needed)
    return MachineFinding(name, "missing", "no /dev/davinci*, no npu-smi", f"{_DRIVER} {_CONTAINER}", needed)


def _cann(script: Path | None, environ: Mapping[str, str], needed: bool) -> MachineFinding:
    home, operators = (environ.get(name, "") for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH"))
    if home and operators and Path(home).is_dir() and Path(operators).is_dir():
        return MachineFinding("cann", "ok", " ".join(["in", home, *_release(Path(home))]), needed=needed)
    if script is None:
        found = f"ASCEND_HOME_PATH={home}, where there is none" if home else "not found"
        return MachineFinding("cann", "missing", found, _CANN, needed)
    return MachineFinding("cann", "broken", "installed, and unknown to this shell", f"source {script}", needed)


def _release(home: Path) -> list[str]:
    """The version in ascend_*_install.info, where DeepSpeed reads it too."""
    for path in (*home.glob("ascend_*_install.info"), *home.glob("*/ascend_*_install.info")):
        found = re.search(r"^version=(\S+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if found:
            return [found[1]]
    return []


def _package(installed: bool) -> MachineFinding:
    name, torch = "torch_npu", _base("torch")
    pip = f"pip install 'torch-npu=={torch}.*'" if torch else install.extra("npu")
    if not installed:
        return MachineFinding(name, "missing", "not installed, so that cli train takes the CPU", pip)
    own, wanted = _base(name), _wanted()
    if torch and wanted and _numbers(torch) != _numbers(wanted):
        hint = f"pip install torch=={wanted}; or, to keep this torch: {pip}"
        return MachineFinding(name, "broken", f"{own} is made for torch {wanted}, and there is {torch}", hint, True)
    return MachineFinding(name, "ok", f"{own or 'of unknown version'}, for torch {wanted or 'of unknown version'}")


def _wanted() -> str:
    """The torch that torch_npu asks for, or else that of the same version."""
    try:
        lines = metadata.requires("torch_npu") or []
    except metadata.PackageNotFoundError:
        return ""
    found = [match[1] for line in lines if (match := re.match(r"torch\s*\(?==\s*(\d+(?:\.\d+)*)", line))]
    return found[0] if found else _base("torch_npu")


def _base(name: str) -> str:
    """An installed version without what follows its numbers (+cpu, .post1); "" if there is none."""
    try:
        return re.match(r"[\d.]*\d|", metadata.version(name))[0]  # type: ignore[index]  # it matches anything
    except metadata.PackageNotFoundError:
        return ""


def _devices(sound: bool) -> Iterator[MachineFinding]:
    facts, error = ask(_NPU, facts=True)
    if facts is None:
        first = "Compare the versions of CANN and torch_npu: Ascend/pytorch, COMPATIBILITY.md." if sound else (
            "Begin with what is missing above."
        )  # fmt: skip
        yield MachineFinding(
            "npu", "broken", f"torch_npu is installed and cannot be imported: {error}",
            f"{first} Without CANN, torch itself imports only with TORCH_DEVICE_BACKEND_AUTOLOAD=0 set; to train on "
            "the CPU, uninstall torch_npu.",
            needed=True,
        )  # fmt: skip
        return
    if not facts["devices"]:
        hint = "Look at npu-smi info and at ASCEND_RT_VISIBLE_DEVICES."
        yield MachineFinding("npu", "broken", f"torch_npu {facts['version']} sees no device", hint, needed=True)
        return
    for name, memory in facts["devices"]:
        yield MachineFinding("npu", "ok", f"{name}, {size(memory)}, torch_npu {facts['version']}")
    found = "supported" if facts["bf16"] else "not supported: use fp16"
    yield MachineFinding("bf16", "ok" if facts["bf16"] else "note", found)


# -- several processes, several nodes --


def _ports(root: Path, environ: Mapping[str, str]) -> MachineFinding:
    name, chosen = "hccl ports", environ.get("HCCL_HOST_SOCKET_PORT_RANGE")
    if chosen:
        return MachineFinding(name, "ok", f"HCCL_HOST_SOCKET_PORT_RANGE={chosen}")
    given = environ.get("HCCL_IF_BASE_PORT") or "60000"
    kernel = root / "proc/sys/net/ipv4"
    low, high = (*_numbers(_text(kernel / "ip_local_port_range")), 0, 0)[:2]
    export = f"export HCCL_IF_BASE_PORT={_free(low, high)}"
    if not given.isdigit() or int(given) not in _BASES:
        found = f"HCCL_IF_BASE_PORT={given}, expected {_BASES.start} to {_BASES[-1]}"
        return MachineFinding(name, "broken", found, export)
    ports = range(int(given), min(int(given) + _PORTS, 1 << 16))
    span = f"{ports.start}-{ports[-1]}"
    taken = [port for port in ports if not _is_free(port)]
    if taken:
        found = f"of {span}, {taken[0]} is in use: several processes may not start"
        return MachineFinding(name, "note", found, export)
    reserved = _text(kernel / "ip_local_reserved_ports")
    if not low or ports.start > high or ports[-1] < low or set(ports) <= _listed(reserved):
        return MachineFinding(name, "ok", f"{span} are free")
    found = f"{span} are free, but the system may give them to any program (ip_local_port_range {low}-{high})"
    keep = ",".join(filter(None, [reserved, span]))
    return MachineFinding(name, "note", found, f"{export}; or: sysctl -w net.ipv4.ip_local_reserved_ports={keep}")


def _free(low: int, high: int) -> int:
    """The first of free ports that the system gives to nobody."""
    starts = [start for start in range(_BASES[-1] + 1 - _PORTS, _BASES.start, -_PORTS) if start + _PORTS <= low]
    above = [high + 1] if high + _PORTS < 1 << 16 else []
    for start in [*above, *starts]:
        if all(map(_is_free, range(start, start + _PORTS))):
            return start
    return 60000


def _is_free(port: int) -> bool:
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind(("", port))
        except OSError:
            return False
    return True


def _listed(text: str) -> set[int]:
    """The ports of a list such as 8080,9000-9100."""
    ends = [_numbers(part) for part in text.split(",") if part]
    return {port for some in ends for port in range(some[0], some[-1] + 1)}


def _addresses(root: Path) -> MachineFinding:
    count = len(re.findall(r"^address_\d+=", _text(root / "etc/hccn.conf"), re.MULTILINE))
    if count:
        return MachineFinding("hccn.conf", "ok", f"{count} devices have an address for other nodes")
    hint = (
        "Only for several nodes, as root, for each device: hccn_tool -i 0 -ip -s address ADDRESS netmask 255.255.255.0"
    )
    return MachineFinding("hccn.conf", "note", "no address of a device in /etc/hccn.conf", hint)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", text)))
