"""Units compiled elsewhere: on a Ray cluster that loses workers and nodes, and in parts, each by a job.

The cluster is a real one of several nodes on this machine (a raylet each, with workers of its own); what its nodes do
not see is hidden from them by a mount namespace.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from click.testing import Result

import registry
from benchmarks.corpus import write
from compiler.tokenizer import encoders
from compiler.units.machines import check, marked, terms_of
from compiler.units.ray import PATIENCE
from schemas.errors import InputError
from tests.support.encoders import long_files, use_wrong
from tests.support.sets import manifest

# Some versions of Ray leave files of a cluster that they start in this process to the garbage collector.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
Run = Callable[..., Result]
ROOT = Path(__file__).resolve().parent.parent
CLI = [sys.executable, "-m", "cli"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
LIMIT = 120
"""Seconds that anything here may take before it counts as hanging."""


def cli(
    *arguments: object, code: int = 0, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*CLI, *map(str, arguments)], cwd="/", env=ENVIRONMENT | (environment or {}),
        capture_output=True, text=True, timeout=LIMIT, check=False,
    )  # fmt: skip
    assert done.returncode == code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def one_message(stderr: str) -> str:
    """Return the one error on stderr."""
    assert stderr.count("error:") == 1, stderr
    assert "Traceback" not in stderr
    return stderr[stderr.index("error:") :]


def digest(out: Path) -> str:
    return str(manifest(out)["digest"])


def wait_until(true: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.01)
    raise AssertionError(f"waited in vain: {what}")


def objects_in(cache: Path) -> int:
    return len(list(cache.glob("objects/*/*.arrow")))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three formats, about 15 units."""
    return write(tmp_path_factory.mktemp("corpus"), 6000)


@pytest.fixture(scope="module")
def local(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the local engine makes of the files."""
    folder = tmp_path_factory.mktemp("local")
    return json.loads(cli("compile", *files, "--cache", folder / "cache", "-o", folder / "out", "--json").stdout)


@pytest.fixture(scope="module")
def other_code(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine with another version of the package."""
    folder = tmp_path_factory.mktemp("other")
    for name in ("compiler", "registry", "schemas", "trainer"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "cli.py", folder)
    with (folder / "compiler" / "encode" / "weigh.py").open("a") as file:
        file.write("# another version\n")
    return {"PYTHONPATH": str(folder)}


# -- Ray --


def processes_of(session: str, called: str = "") -> list[int]:
    """Return the processes that write into a session's logs; of those, the ones that call themselves so."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if (folder / "cmdline").read_bytes().startswith(called.encode()) and any(
                str(fd.readlink()).startswith(session) for fd in (folder / "fd").iterdir()
            ):
                found.append(int(folder.name))
    return found


class Nodes:
    """A cluster of this machine's own: a head with one CPU, and what is added."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quickly = {
            "health_check_initial_delay_ms": 0,
            "health_check_period_ms": 500,
            "health_check_timeout_ms": 500,
            "health_check_failure_threshold": 3,
        }
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": quickly}
        )
        self.address = self.cluster.address
        self.session = self.cluster.head_node.get_session_dir_path()

    def working(self, node: Any = None, what: str = "settle") -> list[int]:
        """Return the workers that are compiling a unit (or writing a shard); of one node, where one is named."""
        raylet = None if node is None else raylet_of(node)
        found = processes_of(self.session, f"ray::{what}")
        return [pid for pid in found if raylet in (None, parent_of(pid))]

    def hold(self, node: Any = None, what: str = "settle") -> int:
        """Stop a worker within a unit, so that what is done to it hits just then; return its process."""

        def held() -> int:
            for pid in self.working(node, what):
                os.kill(pid, signal.SIGSTOP)
                if pid in self.working(node, what):
                    return pid
                os.kill(pid, signal.SIGCONT)
            return 0

        return int(wait_until(held, f"no worker is in {what}"))

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        command = [*CLI, "compile", *map(str, arguments), "--engine", "ray", "--ray-address", self.address]
        return subprocess.Popen(
            command, cwd="/", env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@contextlib.contextmanager
def a_node_that_does_not_see(folder: Path, nodes: Nodes) -> Iterator[None]:
    """Add a node to the cluster from which a folder is hidden."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs a mount namespace, which this machine does not give")
    start = f"mount -t tmpfs none {folder} && exec ray start --address={nodes.address} --num-cpus=1 --block"
    environment = ENVIRONMENT | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    before = len(nodes.cluster.global_state._live_node_ids())
    with subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", start], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as node:
        try:
            wait_until(lambda: len(nodes.cluster.global_state._live_node_ids()) > before, "the node does not start")
            yield
        finally:
            node.terminate()
            node.wait(LIMIT)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """A cluster; nothing of it may be left in the end."""
    pytest.importorskip("ray", reason="needs the [ray] extra")
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.cluster.shutdown()
        end = time.monotonic() + 10
        while processes_of(nodes.session) and time.monotonic() < end:
            time.sleep(0.05)
        left = processes_of(nodes.session)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert left == []


def test_a_cluster_that_loses_a_worker_and_two_nodes_makes_the_same_set(
    nodes: Nodes, files: list[Path], local: dict[str, Any], tmp_path: Path
) -> None:
    """A worker is killed; one node goes with all of its processes; another falls silent: its worker answers nothing."""
    second, third = (nodes.cluster.add_node(num_cpus=1) for _ in range(2))
    cache = tmp_path / "cache"
    with nodes.start(*files, "--cache", cache, "-o", tmp_path / "out", "--json") as process:
        wait_until(lambda: objects_in(cache) >= 1, "nothing is compiled")
        os.kill(nodes.hold(nodes.cluster.head_node), signal.SIGKILL)
        held, silent = nodes.hold(second), nodes.hold(third)
        nodes.cluster.remove_node(second, allow_graceful=False)
        with contextlib.suppress(ProcessLookupError):  # without its raylet it may have gone by itself
            os.kill(held, signal.SIGKILL)
        os.kill(raylet_of(third), signal.SIGSTOP)
        before = objects_in(cache)
        stdout, stderr = process.communicate(timeout=LIMIT)
        os.kill(silent, signal.SIGKILL)  # it is still there
    nodes.cluster.remove_node(third, allow_graceful=False)
    assert process.returncode == 0, stderr
    assert before < local["units_compiled"] - 3  # it was not over yet
    again = re.findall(r" at \d+: the worker was lost \((.*)\); the unit is compiled again", stderr)
    assert len(again) >= 3 and again[-1] == "its node is gone"
    summary = json.loads(stdout)  # nothing of Ray's is there
    assert summary["digest"] == local["digest"]
    assert summary["units_compiled"] == local["units_compiled"]


def test_a_worker_and_a_node_that_are_lost_while_shards_are_written_cost_no_byte(
    nodes: Nodes, files: list[Path], local: dict[str, Any], tmp_path: Path
) -> None:
    """A worker is killed within a shard; then the node that writes it falls silent, and its half is left there."""
    cache, out = tmp_path / "cache", tmp_path / "out"
    second = nodes.cluster.add_node(num_cpus=1)
    with nodes.start(*files, "--cache", cache, "-o", out, "--json") as process:
        os.kill(nodes.hold(what="write_shard"), signal.SIGKILL)
        silent = nodes.hold(what="write_shard")
        raylet = parent_of(silent)
        node = second if raylet == raylet_of(second) else nodes.cluster.head_node
        if node is second:
            os.kill(raylet, signal.SIGSTOP)
        else:  # the head is the cluster itself
            os.kill(silent, signal.SIGKILL)
        stdout, stderr = process.communicate(timeout=LIMIT)
        with contextlib.suppress(ProcessLookupError):
            os.kill(silent, signal.SIGKILL)
    nodes.cluster.remove_node(second, allow_graceful=node is not second)
    assert process.returncode == 0, stderr
    again = re.findall(r"train/shard-00000.arrow: the worker was lost \((.*)\); the shard is written again", stderr)
    assert 1 <= len(again) <= 2, stderr  # the second one may have been over when it was stopped
    assert json.loads(stdout)["digest"] == local["digest"]
    assert not list(out.glob("train/.*"))


def test_where_a_node_does_not_see_the_output_the_shards_are_written_here(
    nodes: Nodes, files: list[Path], local: dict[str, Any], tmp_path: Path
) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    with a_node_that_does_not_see(hidden, nodes):
        done = cli("compile", *files, "--cache", tmp_path / "cache", "-o", hidden / "out",
                   "--engine", "ray", "--ray-address", nodes.address, "--json")  # fmt: skip
    assert re.search(r"hidden/out: node \S+ does not see it; this machine alone writes the shards", done.stderr)
    assert json.loads(done.stdout)["digest"] == local["digest"]


def test_a_node_that_joins_during_the_run_and_falls_silent_costs_seconds(
    nodes: Nodes, files: list[Path], local: dict[str, Any], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with nodes.start(*files, "--cache", cache, "-o", tmp_path / "out", "--json") as process:
        waiting = nodes.hold(nodes.cluster.head_node)  # what is left is for the node that joins
        late = nodes.cluster.add_node(num_cpus=1)
        silent = nodes.hold(late)
        time.sleep(PATIENCE + 2)  # it has been noticed by then
        os.kill(raylet_of(late), signal.SIGSTOP)
        began = time.monotonic()
        os.kill(waiting, signal.SIGCONT)
        stdout, stderr = process.communicate(timeout=LIMIT)
        os.kill(silent, signal.SIGKILL)
    nodes.cluster.remove_node(late, allow_graceful=False)
    assert process.returncode == 0, stderr
    assert time.monotonic() - began < 110  # Ray itself waits seven minutes
    assert "its node is gone" in stderr
    assert json.loads(stdout)["digest"] == local["digest"]


def test_a_unit_whose_workers_are_always_lost_is_given_up_in_one_message(
    nodes: Nodes, files: list[Path], tmp_path: Path
) -> None:
    with nodes.start(files[1], "--cache", tmp_path / "cache", "-o", tmp_path / "out", "--workers", 1) as process:
        killed = 0
        while process.poll() is None:
            for pid in nodes.working():
                os.kill(pid, signal.SIGKILL)
                killed += 1
            time.sleep(0.02)
        message = one_message(process.communicate()[1])
    assert process.returncode == 5
    assert killed >= 4
    assert "every worker by which this unit was compiled was lost, the last of 4 with WorkerCrashedError" in message
    assert not (tmp_path / "out").exists() or not (tmp_path / "out" / "manifest.json").exists()


def test_a_node_with_other_code_is_refused_in_one_message(
    nodes: Nodes, files: list[Path], other_code: dict[str, str], tmp_path: Path
) -> None:
    other = nodes.cluster.add_node(num_cpus=1, env_vars=other_code)
    try:
        done = cli("compile", *files, "--cache", tmp_path / "cache", "-o", tmp_path / "out",
                   "--engine", "ray", "--ray-address", nodes.address, code=4)  # fmt: skip
    finally:
        nodes.cluster.remove_node(other)
    assert re.search(r"expected the compiler's source \w{12}, found \w{12}\n", one_message(done.stderr))
    assert objects_in(tmp_path / "cache") == 0


def test_a_node_that_does_not_see_the_cache_is_named_in_one_message(
    nodes: Nodes, files: list[Path], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with a_node_that_does_not_see(cache, nodes):
        done = cli("compile", *files, "--cache", cache, "-o", tmp_path / "out",
                   "--engine", "ray", "--ray-address", nodes.address, code=5)  # fmt: skip
    message = one_message(done.stderr)
    assert message.startswith(f"error: {cache} (on ")
    assert "this folder is another one" in message and "on a shared file system" in message
    assert objects_in(cache) == 0


def test_what_a_killed_driver_left_in_the_cache_goes_with_the_next_run(files: list[Path], tmp_path: Path) -> None:
    """The mark by which nodes know the cache; a run that is under way keeps its own."""
    cache = tmp_path / "cache"
    script = (
        f"import sys, pathlib; from compiler.units.machines import marked\nwith marked(pathlib.Path({str(cache)!r})):"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"{script}\n    print(flush=True); sys.stdin.read()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=ENVIRONMENT | {"PYTHONPATH": str(ROOT)},
    ) as driver:  # fmt: skip
        assert driver.stdout is not None
        driver.stdout.readline()
        driver.kill()
    assert len(list((cache / "objects" / "tmp").iterdir())) == 1
    with marked(cache) as mark:
        check(terms_of(str(cache), mark, encoders.REFERENCE))
    cli("compile", files[0], "--cache", cache, "-o", tmp_path / "out", "--workers", 1)
    assert not list((cache / "objects" / "tmp").iterdir())


def test_a_machine_that_does_not_see_the_sources_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "a.jsonl")
    with marked(tmp_path) as mark, pytest.raises(InputError, match=f"^{missing} \\(on .*not there"):
        check(terms_of(str(tmp_path), mark, encoders.REFERENCE, (str(tmp_path), missing)))


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_ends_a_run_on_a_cluster_of_its_own_and_leaves_no_process(
    files: list[Path], local: dict[str, Any], tmp_path: Path, how: int, code: int
) -> None:
    pytest.importorskip("ray", reason="needs the [ray] extra")
    cache = tmp_path / "cache"
    command = [*CLI, "compile", *map(str, files), "--engine", "ray", "--cache", str(cache), "-o", str(tmp_path / "out")]
    with subprocess.Popen(
        command,
        cwd="/",
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        wait_until(lambda: objects_in(cache) >= 1, "nothing is compiled")
        session = session_of(process.pid)
        os.killpg(process.pid, how) if how == signal.SIGINT else process.send_signal(how)
        _, stderr = process.communicate(timeout=LIMIT)
    assert process.returncode == code, stderr
    one_message(stderr)
    assert objects_in(cache) < local["units_compiled"]
    wait_until(lambda: not processes_of(session), "processes are left")


def session_of(process: int) -> str:
    """Return the folder of the Ray session whose files a process has open."""
    links = [fd.readlink() for fd in Path(f"/proc/{process}/fd").iterdir()]
    [session] = {folder for link in links for folder in link.parents if folder.name.startswith("session_")}
    return str(session)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--engine", "ray", "--ray-address", "127.0.0.1:9"], 5, "no Ray cluster could be reached: "),
        (["--engine", "ray", "--ray-address", "ray://127.0.0.1:10001"], 2, "expected HOST:PORT or auto"),
        (["--ray-address", "auto"], 2, "Add --engine ray"),
        (["--engine", "ray", "--only", "0/2"], 2, "Leave one of them out"),
    ],
)
def test_what_ray_cannot_do_is_one_message(
    run: Run, files: list[Path], tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    assert says in one_message(run("compile", *files, "-o", tmp_path / "out", *arguments, code=code).stderr)


def test_ray_that_is_not_installed_is_one_message(
    run: Run, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    result = run("compile", *files, "--engine", "ray", "-o", tmp_path / "out", code=2)
    assert re.search(r"pip install -e '/.*\[ray\]'", one_message(result.stderr))


# -- parts --


@pytest.fixture(scope="module")
def mixed(files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files of every way to find a unit again: by range, by group of a table, and by cutting once more."""
    folder = tmp_path_factory.mktemp("mixed")
    plain, tools, _ = (path.read_bytes() for path in files)
    rows = [json.loads(line) for line in plain.splitlines()[:1000]]
    table = pa.Table.from_pylist([{"instruction": row["instruction"], "output": row["output"]} for row in rows])
    pq.write_table(table, folder / "groups.parquet", row_group_size=400)
    with pa.ipc.new_stream(folder / "stream.arrow", table.schema) as writer:
        writer.write_table(table.slice(0, 600), max_chunksize=200)
    (folder / "packed.jsonl.gz").write_bytes(gzip.compress(tools[: tools.index(b"\n", 2 << 20) + 1], 1))
    (folder / "array.json.zst").write_bytes(zstandard.compress(json.dumps(rows).encode()))
    shutil.copy(files[0], folder / "plain.jsonl")
    return sorted(folder.iterdir())


def part(*arguments: object) -> dict[str, Any]:
    """Compile a part of the units in a process of its own; return what it says."""
    return json.loads(cli("compile", *arguments, "--workers", "1", "--json").stdout)


def test_parts_compiled_at_once_leave_nothing_to_compile_and_make_the_same_set(
    mixed: list[Path], tmp_path: Path
) -> None:
    here = json.loads(cli("compile", *mixed, "--cache", tmp_path / "here", "-o", tmp_path / "local", "--json").stdout)
    arguments = ["compile", *map(str, mixed), "--cache", str(tmp_path / "cache"), "-o", str(tmp_path / "out"), "--json"]
    jobs = [
        subprocess.Popen(
            [*CLI, *arguments, "--only", f"{k}/3", "--workers", "1"], cwd="/", stdout=subprocess.PIPE, text=True
        )
        for k in (2, 0, 1)
    ]
    said = [json.loads(job.communicate(timeout=LIMIT)[0]) for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    assert not (tmp_path / "out").exists()
    assert [one["only"] for one in said] == ["2/3", "0/3", "1/3"]
    assert all(one["units_compiled"] > 1 and one["units_cached"] == 0 for one in said)
    assert sum(one["units_compiled"] for one in said) == here["units_compiled"]
    linked = json.loads(cli(*arguments).stdout)
    assert (linked["units_compiled"], linked["units_cached"]) == (0, here["units_compiled"])
    assert linked["digest"] == here["digest"]


def test_a_part_is_skipped_the_second_time_and_a_part_that_is_lost_is_compiled_by_the_compile(
    files: list[Path], local: dict[str, Any], tmp_path: Path
) -> None:
    arguments = [*files, "--cache", tmp_path / "cache", "-o", tmp_path / "out"]
    first = part(*arguments, "--only", "1/2")
    mine = first["units_compiled"]
    assert 0 < mine < local["units_compiled"]
    assert part(*arguments, "--only", "1/2") == {
        "version": 1,
        "only": "1/2",
        "units_compiled": 0,
        "units_cached": mine,
    }
    linked = json.loads(cli("compile", *arguments, "--json").stdout)
    assert (linked["units_compiled"], linked["units_cached"]) == (local["units_compiled"] - mine, mine)
    assert linked["digest"] == local["digest"]


def test_a_part_compiled_by_other_code_is_not_used(
    files: list[Path], other_code: dict[str, str], local: dict[str, Any], tmp_path: Path
) -> None:
    arguments = ["compile", *files, "--cache", tmp_path / "cache", "-o", tmp_path / "out", "--json"]
    cli(*arguments, "--only", "0/1", environment=other_code)
    assert objects_in(tmp_path / "cache") == local["units_compiled"]
    linked = json.loads(cli(*arguments).stdout)
    assert (linked["units_compiled"], linked["units_cached"]) == (local["units_compiled"], 0)
    assert linked["digest"] == local["digest"]


def test_a_job_says_what_it_did_and_what_comes_next(run: Run, files: list[Path], tmp_path: Path) -> None:
    done = run("compile", files[0], "-o", tmp_path / "out", "--only", "7/8")
    assert done.stdout == (
        "part 7/8: 0 units reused from the cache, none compiled\n"
        "when all parts are done, run the same cli compile without --only\n"
    )


def test_the_jobs_of_the_document_run_as_they_stand(files: list[Path], tmp_path: Path) -> None:
    text = (ROOT / "docs" / "scale.md").read_text("utf-8").replace("/shared", str(tmp_path))
    [by_hand] = re.findall(r"```bash\n(cli compile[^`]*--only 0/2.*?)```", text, re.DOTALL)
    [job] = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", text, re.DOTALL)
    (tmp_path / "chats.jsonl").write_bytes(files[0].read_bytes()[: 1 << 16].rpartition(b"\n")[0])
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for script, more in ((by_hand, {}), (job, {"SLURM_ARRAY_TASK_ID": "15"})):
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script], cwd=tmp_path, env=ENVIRONMENT | {"PATH": path} | more,
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        linked = done.stdout.rpartition("without --only\n")[2]
        assert ("reused from the cache, none compiled" in linked) == (script == by_hand)


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ("2/2", "Parts are counted from 0: 0/2 to 1/2."),
        ("0/0", "expected K/N"),
        ("1", "expected K/N"),
        ("-1/2", "expected K/N"),
        ("first", "Parts are counted from 0: 0/16 to 15/16."),
    ],
)
def test_a_part_that_is_none_is_a_usage_error(
    run: Run, files: list[Path], tmp_path: Path, part: str, says: str
) -> None:
    message = one_message(run("compile", files[0], "-o", tmp_path / "out", f"--only={part}", code=2).stderr)
    assert f"--only {part}: " in message and says in message
    assert not (tmp_path / "cache").exists()


def test_a_part_whose_fast_encoder_errs_is_encoded_again_and_no_other_part_is_trusted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = long_files(tmp_path, 3000)
    whole = json.loads(run("compile", *files, "-o", tmp_path / "right", "--json").stdout)
    (tmp_path / "cache").rename(tmp_path / "another")
    one = [*files, "-o", tmp_path / "out", "--workers", 1, "--json", "--only"]
    first = json.loads(run("compile", *one, "0/2").stdout)
    with monkeypatch.context() as patch:
        use_wrong(patch)
        second = run("compile", *one, "1/2")
    assert "gave different ids for a text of the data; what it encoded is encoded again" in second.stderr
    assert "encoded again" not in run("compile", *one, "1/2").stderr
    again = whole["units_compiled"] - first["units_compiled"]
    assert json.loads(second.stdout)["units_compiled"] == again
    linked = json.loads(run("compile", *files, "-o", tmp_path / "out", "--json").stdout)
    assert (linked["units_compiled"], linked["units_cached"]) == (first["units_compiled"], again)
    assert linked["digest"] == whole["digest"]
    encoded = json.loads((tmp_path / "out" / "encoders.json").read_bytes())["encoders"]
    assert [name.split()[0] for name in encoded] == [encoders.REFERENCE]


LOOKS_AT_LENGTHS = (
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['content']|length > 4000 %}{{ 'Long: ' }}"
    "{% endif %}{{ m['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)
"""A chat template that no skeleton can stand for, which only a long text shows."""


def test_a_part_that_no_skeleton_stands_for_is_rendered_row_by_row_as_in_the_compile(run: Run, tmp_path: Path) -> None:
    tokenizer = Path(shutil.copytree(registry.DEMO_TOKENIZER, tmp_path / "tokenizer"))
    config = json.loads((tokenizer / "tokenizer_config.json").read_text())
    (tokenizer / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": LOOKS_AT_LENGTHS}))
    chats = [
        {"messages": [
            {"role": "user", "content": f"question {i} " + "word " * (900 if i > 1800 and i % 3 == 0 else 180)},
            {"role": "assistant", "content": f"answer {i}"},
        ]}
        for i in range(2500)
    ]  # fmt: skip
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in chats))
    arguments = [file, "--tokenizer", tokenizer, "--max-rejects", "100%", "-o", tmp_path / "out"]
    part = run("compile", *arguments, "--only", "0/1", "--workers", 1, "--json")
    assert "every row is rendered instead" in part.stderr
    linked = run("compile", *arguments)
    assert "every row is rendered instead" in linked.stderr
    units = json.loads(part.stdout)["units_compiled"]
    assert f"{units} units reused from the cache, none compiled" in linked.stdout
