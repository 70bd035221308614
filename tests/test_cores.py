"""The number of workers without --workers: what the kernel lets this process use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from compiler.commands.cores import cores

ALL = len(os.sched_getaffinity(0))


def kernel(folder: Path, belongs: str, **files: str) -> tuple[Path, Path]:
    """Write what the kernel says: the groups of a process, and their limits."""
    (folder / "proc" / "self").mkdir(parents=True)
    (folder / "proc" / "self" / "cgroup").write_text(belongs)
    for name, text in files.items():
        path = folder / "groups" / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return folder / "proc", folder / "groups"


def test_without_groups_these_are_the_cores_of_the_affinity(tmp_path: Path) -> None:
    assert cores(tmp_path, tmp_path) == ALL
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert cores(tmp_path, tmp_path) == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(("quota", "found"), [("max 100000", ALL), ("100000 100000", 1), ("50000 100000", 1)])
def test_a_container_with_a_share_of_the_cores_has_no_more_workers_than_that(
    tmp_path: Path, quota: str, found: int
) -> None:
    assert cores(*kernel(tmp_path, "0::/\n", cpu_max=quota)) == found


def test_a_part_of_a_core_counts_as_one(tmp_path: Path) -> None:
    assert cores(*kernel(tmp_path, "0::/\n", cpu_max="110000 100000")) == min(ALL, 2)


def test_a_group_is_limited_by_those_around_it(tmp_path: Path) -> None:
    given = kernel(tmp_path, "0::/a/b\n", a__cpu_max="100000 100000", a__b__cpu_max="max 100000")
    assert cores(*given) == 1


def test_the_first_version_of_groups_is_read_too(tmp_path: Path) -> None:
    proc, groups = kernel(tmp_path, "4:memory:/x\n3:cpu,cpuacct:/docker/c\n0::/\n")
    group = groups / "cpu,cpuacct" / "docker" / "c"
    group.mkdir(parents=True)
    (group / "cpu.cfs_quota_us").write_text("-1\n")
    (group / "cpu.cfs_period_us").write_text("100000\n")
    assert cores(proc, groups) == ALL
    (group / "cpu.cfs_quota_us").write_text("90000\n")
    assert cores(proc, groups) == 1


def test_what_the_kernel_says_in_another_way_is_no_limit(tmp_path: Path) -> None:
    assert cores(*kernel(tmp_path, "nonsense\n", cpu_max="1 2 3")) == ALL
