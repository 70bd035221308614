"""The command that installs an extra, for the way in which the project itself was installed.

The project is on no package index, so its name alone finds nothing: the command names a clone, wheel or repository.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from importlib.metadata import Distribution

NAME = "finetune-data-compiler"
_ROOT = Path(__file__).resolve().parents[1]


def extra(name: str) -> str:
    """The command that adds an extra, such as `pip install -e '/home/me/clone[train]'`."""
    if (_ROOT / "pyproject.toml").is_file() and (_ROOT / "cli.py").is_file():  # code that runs from a clone
        return f"pip install -e {shlex.quote(f'{_ROOT}[{name}]')}"
    from importlib.metadata import PackageNotFoundError, distribution  # 10 ms that `cli --help` must not pay

    try:
        installed = distribution(NAME)
    except PackageNotFoundError:
        return f"pip install '.[{name}]' in a clone"
    return f"{_installer(installed)} {shlex.quote(_source(installed, name))}"


def _source(installed: Distribution, name: str) -> str:
    """What pip is given: where the project was installed from, with the extra."""
    origin = json.loads(installed.read_text("direct_url.json") or "{}")
    address = origin.get("url", "")
    if "vcs_info" in origin:
        return f"{NAME}[{name}] @ {origin['vcs_info']['vcs']}+{address}"
    if address.startswith("file:"):
        path = Path(unquote(urlsplit(address).path))
        return f"{path if path.exists() else path.name if path.suffix == '.whl' else '.'}[{name}]"
    if address:
        return f"{NAME}[{name}] @ {address}"
    return f"{NAME.replace('-', '_')}-{installed.version}-py3-none-any.whl[{name}]"


def _installer(installed: Distribution) -> str:
    """The installer of this environment. pipx and uv tool replace theirs as a whole."""
    if Path(sys.prefix, "pipx_metadata.json").exists():
        return "pipx install --force"
    if Path(sys.prefix, "uv-receipt.toml").exists():
        return "uv tool install --force"
    return "uv pip install" if (installed.read_text("INSTALLER") or "").strip() == "uv" else "pip install"
