"""The torch_npu of tests/support/ascend, as an installed package beside a CANN that is only folders."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from tests.support.trained import outside

ROOT = Path(__file__).resolve().parents[2]
TORCH = torch.__version__.split("+")[0]
_PACKAGE = Path(__file__).parent / "ascend" / "torch_npu"


def environment(folder: Path, wanted: str = TORCH, **more: str) -> dict[str, str]:
    """The environment of a process that finds torch_npu, made for the torch `wanted`, and a CANN whose script ran."""
    site, cann = folder / "site", folder / "Ascend" / "cann"
    metadata = site / f"torch_npu-{wanted}.dist-info"
    for made in (metadata, cann / "opp"):
        made.mkdir(parents=True, exist_ok=True)
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch-npu\nVersion: {wanted}\nRequires-Dist: torch=={wanted}\n", encoding="utf-8"
    )
    (cann / "set_env.sh").write_text("", encoding="utf-8")
    if not (site / "torch_npu").exists():
        (site / "torch_npu").symlink_to(_PACKAGE, target_is_directory=True)
    given = {
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "ASCEND_HOME_PATH": str(cann), "ASCEND_OPP_PATH": str(cann / "opp"), "FAKE_NPU_COUNT": "1",
    }  # fmt: skip
    return outside() | given | more
