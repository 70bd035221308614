"""Checkpoints of others, damaged ones and hostile ones: nothing of others is removed, nothing in a file is run, and
damage is named before it is used.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cli import main
from schemas import checkpoint as files
from schemas import own
from schemas.errors import IntegrityError
from tests.support.agent import seal
from tests.support.command import runner
from tests.support.trained import config, losses, outside, save_model, small_set, train
from trainer.run import checkpoints, unpickle

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
]
EVERY = {"save_strategy": "steps", "save_steps": 2, "lora": {"r": 2, "target_modules": ["q_proj"]}}
BEGINNINGS = [(), ("--set", "overwrite_output_dir=true"), ("--resume", "yes"), ("--resume", "2"), ("--dry-run",)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trust")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return save_model(folder / "model")


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    return small_set(folder / "data")


@pytest.fixture(scope="module")
def whole(folder: Path, model: Path, data: Path) -> Path:
    """The configuration of a run of 4 steps, with checkpoints of steps 2 and 4."""
    file = config(folder / "whole.json", model, **EVERY)
    train(data, file)
    return file


@pytest.fixture
def copied(tmp_path: Path, model: Path, whole: Path) -> Path:
    """The same run in a folder of its own."""
    shutil.copytree(whole.with_suffix(""), tmp_path / "run")
    return config(tmp_path / "run.json", model, **EVERY)


def flip(path: Path, bit: int | None = None) -> None:
    """Flip one bit of a file, by default the one in the middle."""
    data = bytearray(path.read_bytes())
    at = len(data) * 4 if bit is None else bit
    data[at // 8] ^= 1 << at % 8
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def cli(*arguments: object, code: int = 0) -> str:
    """What a command prints, on stderr if it fails."""
    done = runner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.stderr if code else done.stdout


# -- what others made --


@pytest.mark.parametrize("beginning", BEGINNINGS, ids=str)
def test_checkpoints_of_another_trainer_are_refused_by_name_and_stay(
    tmp_path: Path, model: Path, data: Path, beginning: tuple[str, ...]
) -> None:
    run = config(tmp_path / "run.json", model, **EVERY)
    for step in (500, 1000):
        other = tmp_path / "run" / f"checkpoint-{step}"
        other.mkdir(parents=True)
        (other / "trainer_state.json").write_text('{"global_step": 500}')
        (other / "optimizer.pt").write_bytes(b"theirs")
    (tmp_path / "run" / "log.jsonl").write_text("their log\n")
    before = contents(tmp_path / "run")
    said = train(data, run, *beginning, code=2).stderr
    assert f"output_dir: {tmp_path / 'run'}: checkpoint-1000 was not made by this trainer" in said
    assert "nothing was changed" in said
    assert contents(tmp_path / "run") == before


def test_a_log_that_nobody_can_prove_to_be_of_this_trainer_is_refused(tmp_path: Path, model: Path, data: Path) -> None:
    run = config(tmp_path / "run.json", model, max_steps=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("their log\n")
    assert "log.jsonl was not made by this trainer" in train(data, run, code=2).stderr
    assert (tmp_path / "run" / "log.jsonl").read_text() == "their log\n"


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a text"])
def test_a_lock_that_is_something_else_is_refused_and_stays(tmp_path: Path, model: Path, data: Path, kind: str) -> None:
    run = config(tmp_path / "run.json", model, max_steps=1)
    lock, theirs = tmp_path / "run" / ".lock", tmp_path / "theirs"
    lock.parent.mkdir()
    theirs.write_text("theirs")
    if kind == "a link":
        lock.symlink_to(theirs)
    elif kind == "a pipe":
        os.mkfifo(lock)
    else:
        lock.write_text("theirs")
    assert str(lock) in train(data, run, code=2).stderr
    assert theirs.read_text() == "theirs"
    assert kind != "a text" or lock.read_text() == "theirs"


def test_what_the_trainer_writes_goes_through_no_link(tmp_path: Path, model: Path, data: Path) -> None:
    """A log and predictions beside checkpoints, in a folder that others may write to as well."""
    run = config(tmp_path / "run.json", model, max_steps=1, save_strategy="steps", save_steps=1)
    train(data, run)
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    for name in ("log.jsonl.partial", ".predictions.jsonl.partial"):
        path = tmp_path / "run" / name
        path.unlink(missing_ok=True)
        path.symlink_to(theirs)
        if name.startswith("log"):
            said = train(data, config(tmp_path / "run.json", model, max_steps=2), "--resume", "yes", code=5).stderr
        else:
            made = ["predict", model, data, "--max-new-tokens", 1, "-o", path.parent / "predictions.jsonl"]
            said = runner().invoke(main, [str(argument) for argument in made]).stderr
        assert f"error: {path}: expected a file, found a link" in said
        assert theirs.read_text() == "theirs"
        path.unlink()


def test_a_checkpoint_of_another_run_in_the_folder_is_not_counted_away(
    tmp_path: Path, data: Path, model: Path, whole: Path
) -> None:
    run = config(tmp_path / "run.json", model, **EVERY, save_total_limit=1, max_steps=6)
    shutil.copytree(whole.with_suffix("") / "checkpoint-2", tmp_path / "run" / "checkpoint-2")
    other = shutil.copytree(whole.with_suffix("") / "checkpoint-4", tmp_path / "run" / "checkpoint-90")
    changed = json.loads((other / "run.json").read_text()) | {"run": "0" * 32, "step": 90}
    (other / "run.json").write_text(json.dumps(changed))
    seal(other)
    train(data, run, "--resume", "2")
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-6", "checkpoint-90"]


# -- kills --


def killed_at(operation: int, act: Callable[[], object]) -> bool:
    """Do something in a process that is killed before its n-th change of a folder; whether it was."""
    child = os.fork()
    if not child:
        left = operation

        def counted(name: str) -> None:
            before = getattr(os, name)

            def after(*arguments: Any, **settings: Any) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return before(*arguments, **settings)

            setattr(os, name, after)

        for name in ("unlink", "rmdir", "rename"):
            counted(name)
        act()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0


def test_a_removal_killed_at_any_moment_leaves_nothing_that_counts_and_nothing_for_good(
    tmp_path: Path, whole: Path
) -> None:
    source, kills = whole.with_suffix("") / "checkpoint-2", 0
    while True:
        output = tmp_path / str(kills)
        path = shutil.copytree(source, output / "checkpoint-2")
        (output / "notes.txt").write_text("theirs")
        was = killed_at(kills, lambda path=path: checkpoints.remove(path))
        assert [one.path for one in checkpoints.complete(output)] == ([path] if kills == 0 else [])
        assert checkpoints.clear_leftovers(output) == []
        assert sorted(one.name for one in output.iterdir()) == (["checkpoint-2", "notes.txt"][kills != 0 :])
        if not was:
            break
        kills += 1
    assert kills > len(files.files(source))


def test_a_save_killed_at_any_moment_leaves_a_checkpoint_of_the_step_and_nothing_for_good(
    tmp_path: Path, whole: Path
) -> None:
    source, kills = whole.with_suffix("") / "checkpoint-2", 0
    sealed = (source / files.COMPLETE).read_bytes()
    while True:
        output = tmp_path / str(kills)
        for name in ("checkpoint-2", ".checkpoint-2.partial"):
            shutil.copytree(source, output / name)
        partial = output / ".checkpoint-2.partial"
        was = killed_at(kills, lambda p=partial, o=output: checkpoints._publish(p, o / "checkpoint-2", sealed))
        assert {one.step for one in checkpoints.complete(output)} == {2}
        assert all(files.damage(one.path) == [] for one in checkpoints.complete(output))
        assert checkpoints.clear_leftovers(output) == []
        if not was:
            break
        kills += 1
    assert [path.name for path in output.iterdir()] == ["checkpoint-2"]
    assert kills > len(files.files(source))


def test_what_a_killed_run_left_is_removed_by_the_next_and_what_it_did_not_make_is_noted(
    copied: Path, data: Path
) -> None:
    output = copied.with_suffix("")
    (output / "checkpoint-4").rename(output / ".checkpoint-4.partial")
    (output / ".checkpoint-4.partial" / "COMPLETE").unlink()
    own.make(output / ".universal-4", files.RUN, {"made_by": files.MADE_BY})
    (output / ".checkpoint-9.removed").mkdir()
    theirs = output / ".checkpoint-8.partial" / "file"
    theirs.parent.mkdir()
    theirs.write_text("theirs")
    said = train(data, copied, "--resume", "yes").stderr
    assert f"note: {theirs.parent} is left as it is: this trainer did not make it" in said
    left = {path.name for path in output.iterdir()}
    assert left == {".lock", ".checkpoint-8.partial", "checkpoint-2", "checkpoint-4", "log.jsonl"}
    assert theirs.read_text() == "theirs"


def test_a_run_that_is_killed_while_it_saves_goes_on_and_leaves_nothing(
    tmp_path: Path, data: Path, model: Path
) -> None:
    """The real command, killed by itself as it removes the oldest checkpoint."""
    run = config(tmp_path / "run.json", model, **EVERY, save_total_limit=1)
    code = (
        "import os, shutil, signal\n"
        "import schemas.own as own\n"
        "rmtree = shutil.rmtree\n"
        "def kill(path, *a, **k):\n"
        "    if '.removed' in str(path): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return rmtree(path, *a, **k)\n"
        "own.shutil.rmtree = kill\n"
        "from cli import main\n"
        f"main(['train', {str(data)!r}, {str(run)!r}])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=outside())
    assert done.returncode == -signal.SIGKILL, done.stderr
    output = run.with_suffix("")
    assert (output / ".checkpoint-2.removed").is_dir()
    assert "nothing left to do" in train(data, run, "--resume", "yes").stdout
    train(data, run, "--resume", "yes", "--set", "max_steps=5")
    assert {path.name for path in output.iterdir()} == {".lock", "checkpoint-5", "log.jsonl"}


# -- damage --


def test_one_flipped_bit_in_any_file_of_a_checkpoint_is_named(copied: Path) -> None:
    path = copied.with_suffix("") / "checkpoint-4"
    names = [*files.files(path), files.COMPLETE]
    assert len(names) > 8
    for name in names:
        flip(path / name)
        said = cli("verify", path, code=4)
        assert said.startswith(f"{name}: is damaged or was edited"), said
        flip(path / name)
    for name in files.files(path):
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[:-1])
        assert cli("verify", path, code=4) == f"{name}: expected {len(data)} bytes, found {len(data) - 1}\n"
        (path / name).unlink()
        assert cli("verify", path, code=4) == f"{name}: No such file or directory\n"
        os.mkfifo(path / name)
        assert cli("verify", path, code=4) == f"{name}: is no regular file\n"
        (path / name).unlink()
        (path / name).write_bytes(data)
    (path / "more.safetensors").write_bytes(b"")
    assert cli("verify", path, code=4) == "more.safetensors: not in COMPLETE\n"


@pytest.mark.parametrize(
    ("name", "bit"),
    [
        ("deepspeed/state/mp_rank_00_model_states.pt", None),
        ("run.json", 8 * len('{\n "set": "')),  # a digit of the set's digest: JSON still, and as the schema says
        ("run.json", 8),
        ("COMPLETE", None),
    ],
)
def test_a_resume_falls_back_to_the_newest_whole_checkpoint_and_says_so(
    copied: Path, data: Path, whole: Path, name: str, bit: int | None
) -> None:
    output = copied.with_suffix("")
    flip(output / "checkpoint-4" / name, bit)
    named = train(data, copied, "--resume", "4", code=4).stderr
    assert str(output / "checkpoint-4") in named
    assert f"{name}: " in named
    assert "Complete ones: 2. --resume yes takes the last of them." in named
    said = train(data, copied, "--resume", "yes").stderr
    assert f"note: {output / 'checkpoint-4'}: {name}: " in said
    assert f"the run goes on from {output / 'checkpoint-2'}\n" in said
    assert losses(copied) == losses(whole)
    assert cli("verify", output / "checkpoint-4").endswith("are whole\n")
    weights = (output / "checkpoint-4" / "adapter_model.safetensors").read_bytes()
    assert weights == (whole.with_suffix("") / "checkpoint-4" / "adapter_model.safetensors").read_bytes()


def test_without_a_whole_checkpoint_nothing_is_started(copied: Path, data: Path) -> None:
    output = copied.with_suffix("")
    for step in (2, 4):
        flip(output / f"checkpoint-{step}" / "tokenizer.json")
    before = contents(output)
    said = train(data, copied, "--resume", "yes", code=4).stderr
    assert "tokenizer.json: is damaged or was edited\n  No checkpoint is whole." in said
    assert contents(output) == before


def test_a_file_that_is_none_of_a_checkpoint_is_not_used_with_it(copied: Path, data: Path) -> None:
    (copied.with_suffix("") / "checkpoint-4" / "deepspeed" / "state" / "layer_1.pt").write_bytes(b"")
    said = train(data, copied, "--resume", "yes", code=4).stderr
    assert "deepspeed/state/layer_1.pt: no file of this checkpoint; it was put there later\n  Move it" in said


def test_every_command_refuses_a_damaged_checkpoint(copied: Path, data: Path, model: Path, tmp_path: Path) -> None:
    path = copied.with_suffix("") / "checkpoint-4"
    flip(path / "adapter_model.safetensors")
    for command in (
        ("export", path, tmp_path / "out"),
        ("chat", model, "--adapter", path),
        ("predict", model, data, "--adapter", path, "-o", tmp_path / "predictions.jsonl"),
    ):
        assert f"{path}: adapter_model.safetensors: is damaged or was edited" in cli(*command, code=4)
    assert not (tmp_path / "out").exists()


# -- what is hostile --


class Bomb:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def states(path: Path) -> list[Path]:
    return sorted(path.rglob("*.pt"))


@pytest.mark.parametrize("archive", [True, False], ids=["torch's archive", "a bare pickle"])
@pytest.mark.parametrize("world", [1, 2], ids=["as it is", "converted"])
@pytest.mark.parametrize("number", [0, 1])
def test_nothing_in_a_state_is_run(copied: Path, data: Path, number: int, world: int, *, archive: bool) -> None:
    output = copied.with_suffix("")
    path, ran = output / "checkpoint-4", output.parent / "ran"
    state = states(path)[number]
    changed = json.loads((path / "run.json").read_text()) | {"world": world}
    (path / "run.json").write_text(json.dumps(changed))
    seal(path)
    if archive:
        torch.save(torch.load(state, weights_only=False) | {"more": Bomb(ran)}, state)
    else:
        state.write_bytes(pickle.dumps({"module": Bomb(ran)}))
    refused = train(data, copied, "--resume", "4", code=4).stderr
    assert f"checkpoint-4: {state.relative_to(path).as_posix()}: " in refused
    seal(path)  # whoever can write a checkpoint can write its digests
    said = train(data, copied, "--resume", "4", "--set", "max_steps=5", code=4).stderr
    assert "it asks for posix.mkdir" in said if archive else "error: " in said
    assert "Traceback" not in said
    assert not ran.exists()


def test_what_torch_is_told_ends_with_the_reading(copied: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # of a user who switches the protection off
    train(data, copied, "--resume", "2")
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert not set(unpickle.allowed()) & set(torch.serialization.get_safe_globals())


def test_no_module_that_an_adapter_names_is_imported(
    copied: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PEFT imports the module of Megatron that an adapter's configuration names; before 0.21 any module."""
    path, ran = copied.with_suffix("") / "checkpoint-4", tmp_path / "ran"
    (tmp_path / "megatron.py").write_text(f"import os; os.mkdir({str(ran)!r})")
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {"megatron_config": {"a": 1}, "megatron_core": "megatron"}
    config_path = path / "adapter_config.json"
    config_path.write_text(json.dumps(json.loads(config_path.read_text()) | named))
    seal(path)
    for command in (("chat", model, "--adapter", path), ("export", path, tmp_path / "out")):
        assert "adapter_config.json: megatron_config names a module to import" in cli(*command, code=4)
    assert not ran.exists()


def test_the_scalers_of_fp16_are_read_back(tmp_path: Path) -> None:
    """No CPU trains in fp16: what DeepSpeed keeps for it is saved here as DeepSpeed saves it."""
    from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler

    every = {"init_scale": 2.0**16, "scale_window": 1000, "min_scale": 1.0, "delayed_shift": 2}

    for dynamic in (True, False):
        scaler = CreateLossScaler(torch.float16, 1024.0, dynamic, every | {"consecutive_hysteresis": True})
        torch.save({"optimizer_state_dict": {"loss_scaler": scaler}}, tmp_path / "state.pt")
        with unpickle.tensors_only(tmp_path):
            found = torch.load(tmp_path / "state.pt", weights_only=False)["optimizer_state_dict"]["loss_scaler"]
        assert type(found) is type(scaler)
        assert vars(found) == vars(scaler)


class Written:
    """Is written as a call of getattr, as Python 3.11.2 writes a member of an enumeration."""

    def __init__(self, of: object, name: str) -> None:
        self.of, self.name = of, name

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.of, self.name)


def test_a_stage_is_read_as_every_python_writes_it_and_getattr_is_called_for_nothing_else(tmp_path: Path) -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum

    torch.save({"zero_stage": Written(ZeroStageEnum, "gradients")}, tmp_path / "state.pt")
    with unpickle.tensors_only(tmp_path):
        assert torch.load(tmp_path / "state.pt")["zero_stage"] is ZeroStageEnum.gradients
    torch.save({"zero_stage": Written(LossScaler, "__init__")}, tmp_path / "state.pt")
    with pytest.raises(IntegrityError, match="it asks for getattr"), unpickle.tensors_only(tmp_path):
        torch.load(tmp_path / "state.pt")


def test_no_parameter_leads_out_of_the_folder_of_a_conversion(copied: Path, data: Path) -> None:
    output = copied.with_suffix("")
    path = output / "checkpoint-4"
    changed = json.loads((path / "run.json").read_text()) | {"world": 2}
    (path / "run.json").write_text(json.dumps(changed))
    state = next(one for one in states(path) if "optim" in one.name)
    loaded = torch.load(state, weights_only=False)
    mappings = loaded["optimizer_state_dict"]["param_slice_mappings"]
    for group, mapping in enumerate(mappings):
        mappings[group] = OrderedDict((f"../../../../out/{name}", value) for name, value in mapping.items())
    torch.save(loaded, state)
    seal(path)
    before = contents(output.parent)
    said = train(data, copied, "--resume", "4", "--set", "max_steps=5", code=4).stderr
    assert "the name of a parameter leads to another folder: '../../../../out/" in said
    assert contents(output.parent).keys() == before.keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"step": "4"}, '/step: "4" is not of type "integer"'),
        ({"step": 10**400}, "/step: "),
        ({"world": 0}, "/world: 0 is less than the minimum of 1"),
        ({"provenance": None}, "/provenance: "),
        ({"base_model": "/dev/\x00null"}, "/base_model: "),
        ({"run": "../.."}, "/run: "),
    ],
    ids=str,
)
def test_a_run_json_of_another_kind_is_one_message(copied: Path, data: Path, change: dict[str, Any], said: str) -> None:
    path = copied.with_suffix("") / "checkpoint-4"
    (path / "run.json").write_text(json.dumps(json.loads((path / "run.json").read_text()) | change))
    seal_with(path, "0" * 32)
    assert said in cli("verify", path, code=4)
    assert "checkpoint-4: run.json#/" in train(data, copied, "--resume", "4", code=4).stderr


@pytest.mark.parametrize("text", ["null", "[]", "{}", "NaN", "[" * 100_000, '{"made_by": 1}', "\ud800"])
def test_a_mark_that_is_none_is_refused_and_stays(tmp_path: Path, data: Path, model: Path, text: str) -> None:
    run = config(tmp_path / "run.json", model, max_steps=1)
    path = tmp_path / "run" / "checkpoint-1"
    path.mkdir(parents=True)
    for name in (files.RUN, files.COMPLETE):
        (path / name).write_bytes(text.encode("utf-8", "surrogatepass"))
    before = contents(tmp_path / "run")
    assert "checkpoint-1 was not made by this trainer" in train(data, run, "--resume", "yes", code=2).stderr
    assert contents(tmp_path / "run") == before


def seal_with(path: Path, run: str) -> None:
    entries = {name: files.digest(path / name) for name in files.files(path)}
    (path / files.COMPLETE).write_bytes(files.sealed(run, entries))


def test_the_list_of_a_checkpoint_reads_nothing_outside(copied: Path) -> None:
    path = copied.with_suffix("") / "checkpoint-4"
    for name in ("../checkpoint-2/run.json", "/etc/passwd", "a//b", "a\\b", "a\nb"):
        entries = {one: files.digest(path / one) for one in files.files(path)} | {name: (1, "0" * 32)}
        (path / files.COMPLETE).write_bytes(files.sealed("0" * 32, entries))
        assert cli("verify", path, code=4) == f"COMPLETE: lists {name!r}, which leads out of the folder\n"


@pytest.mark.parametrize(
    "found", [None, [], {"files": []}, {"files": {"a": []}}, {"files": {"a": [float("inf"), "x"]}}, {"files": {"a": 1}}]
)
def test_a_list_of_files_in_another_shape_is_damage(tmp_path: Path, found: object) -> None:
    (tmp_path / files.COMPLETE).write_text(json.dumps(found), encoding="utf-8")
    assert [line.partition(":")[0] for line in files.damage(tmp_path)] == [files.COMPLETE]
    with pytest.raises(IntegrityError, match=files.COMPLETE):
        files.read_run(tmp_path)
