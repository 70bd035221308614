"""How many cores this process may use: those of its affinity, and at most the share that its control groups allow."""

from __future__ import annotations

import os
from contextlib import suppress
from math import ceil
from pathlib import Path


def cores(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The number of cores, at least 1. Containers are often limited by their group alone, which affinity does not show.

    `proc` and `groups` are where the kernel says it.
    """
    found = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    with suppress(OSError, ValueError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "" or "cpu" in controllers.split(","):
                top = groups / controllers if controllers else groups
                inside = [*(Path("/", path.lstrip("/")).parents), Path("/", path.lstrip("/"))]
                limits = [_limit(top / place.relative_to("/"), is_first_version=bool(controllers)) for place in inside]
                found = min([found, *(limit for limit in limits if limit is not None)])
    return max(1, ceil(found))


def _limit(group: Path, *, is_first_version: bool) -> float | None:
    """The cores that a group allows; None where it sets no limit, or is not seen from here."""
    try:
        if is_first_version:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text().strip() for name in ("quota", "period"))
        else:
            quota, period = (group / "cpu.max").read_text().split()
    except OSError:
        return None
    return None if quota in ("max", "-1") else int(quota) / int(period)
