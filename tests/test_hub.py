"""Models, tokenizers and datasets of hubs: the real clients, in other processes, against a server on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result

import registry
from schemas.errors import UsageError
from tests.support import hub as hubs
from tests.support.hub import ROOT, Hub, Repository, run

HUBS = ["huggingface", "modelscope"]
CLIENTS = {"huggingface": "huggingface_hub", "modelscope": "modelscope_hub"}
ROW = {"conversations": [{"from": "user", "value": "hub?"}, {"from": "assistant", "value": "hub."}]}
OLD, NEW = "0123456789abcdef0123456789abcdef01234567", "fedcba9876543210fedcba9876543210fedcba98"
REFS = {"main": NEW, "master": NEW, "v1": OLD}
ENTRY = {
    "formatting": "sharegpt",
    "tags": {"role_tag": "from", "content_tag": "value", "user_tag": "user", "assistant_tag": "assistant"},
}


def rows(count: int) -> bytes:
    return (json.dumps(ROW) + "\n").encode() * count


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(params=HUBS)
def name(request: pytest.FixtureRequest) -> str:
    """The name of a hub whose client is installed."""
    pytest.importorskip(CLIENTS[request.param], reason="needs the [hub] extra")
    return str(request.param)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    tokenizer = files(registry.DEMO_TOKENIZER)
    with hubs.serving() as server:
        old = {"train.jsonl": rows(3), "test.jsonl": b'{"bad": 1}\n', "README.md": b"# hub\n"}
        server.repositories["datasets/maker/chats"] = Repository({OLD: old, NEW: old | {"train.jsonl": rows(5)}}, REFS)
        server.repositories["models/maker/words"] = Repository(
            {OLD: tokenizer | {"model.safetensors": b"large"}, NEW: {"README.md": b"moved"}}, REFS
        )
        yield server


def info(folder: Path, **entries: dict[str, str]) -> Path:
    folder.mkdir()
    text = json.dumps({name: ENTRY | places for name, places in entries.items()})
    (folder / "dataset_info.json").write_text(text, encoding="utf-8")
    return folder


def compile_(
    server: Hub | str, folder: Path, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    url = server if isinstance(server, str) else server.url
    places = ("--cache", folder / "cache", "-o", folder / "out")
    return run(url, folder, "compile", *arguments, *places, "--json", **environment)


# -- datasets and tokenizers --


def test_the_commit_of_a_branch_is_in_the_manifest(hub: Hub, name: str, tmp_path: Path) -> None:
    folder = info(tmp_path / "registry", far={"hf_hub_url": "maker/chats", "ms_hub_url": "maker/chats"})
    choose = {"USE_MODELSCOPE_HUB": "1"} if name == "modelscope" else {}
    done = compile_(hub, tmp_path, "--mix", "far", "--registry", folder, **choose)
    assert done.returncode == 0, done.stderr
    dataset = json.loads(done.stdout)["datasets"][0]
    assert dataset["realized"]["rows"] == 5
    assert dataset["source"] == {"hub": {name: "maker/chats"}, "revision": NEW}


def test_a_dataset_is_named_by_its_id_and_its_format_is_recognised(hub: Hub, name: str, tmp_path: Path) -> None:
    done = compile_(hub, tmp_path, "--mix", "maker/chats@v1#2", "--hub", name)
    assert done.returncode == 0, done.stderr
    assert "maker/chats@v1: recognised as" in done.stderr
    dataset = json.loads(done.stdout)["datasets"][0]
    assert dataset["realized"]["rows"] == 2
    assert dataset["source"] == {"hub": {name: "maker/chats"}, "revision": OLD}


def test_a_tag_of_a_dataset_and_of_a_tokenizer_is_read_at_its_commit(hub: Hub, name: str, tmp_path: Path) -> None:
    both = {"hf_hub_url": "maker/chats@v1", "ms_hub_url": "maker/chats@v1"}
    arguments = ("--mix", "far", "--registry", info(tmp_path / "registry", far=both), "--hub", name)
    hub.asked.clear()
    done = compile_(hub, tmp_path, *arguments, "--tokenizer", "maker/words@v1", "--template", "chatml")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert manifest["datasets"][0]["realized"]["rows"] == 3
    assert manifest["datasets"][0]["source"] == {"hub": {name: "maker/chats"}, "revision": OLD}
    assert manifest["run"]["tokenizer"] == {"hub": {name: "maker/words"}, "revision": OLD}
    assert not [path for path in hub.asked if "safetensors" in path], "weights are no part of a tokenizer"


def test_a_set_is_the_same_with_a_tokenizer_of_a_hub_and_of_a_folder(
    run: Callable[..., Result], hub: Hub, tmp_path: Path
) -> None:
    pytest.importorskip("modelscope_hub", reason="needs the [hub] extra")
    done = compile_(hub, tmp_path, "--mix", "agent", "--tokenizer", f"maker/words@{OLD}", "--hub", "modelscope")
    assert done.returncode == 0, done.stderr
    given = run("compile", "--mix", "agent", "--tokenizer", registry.DEMO_TOKENIZER, "-o", tmp_path / "given", "--json")
    assert json.loads(done.stdout)["digest"] == json.loads(given.stdout)["digest"]


def test_a_repository_that_does_not_exist_is_one_message(hub: Hub, name: str, tmp_path: Path) -> None:
    done = compile_(hub, tmp_path, "--mix", "agent", "--hub", name, "--tokenizer", "nobody/nothing")
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: --tokenizer nobody/nothing: ")
    assert "has no model nobody/nothing, or none that you may read" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_revision_that_does_not_exist_is_named(hub: Hub, name: str, tmp_path: Path) -> None:
    wrong = [("dataset", "maker/chats", "v9"), ("model", "maker/words", "0" * 40)]
    assert [said.split(",")[0].partition(" has ")[2] for said in problems(hub.url, tmp_path, name, wrong)] == [
        f"no {kind} {repository}@{revision}" for kind, repository, revision in wrong
    ]


def problems(
    url: str, folder: Path, name: str, wanted: list[tuple[str, str, str | None]], patience: float = 30
) -> list[str]:
    """What is said of downloads (kind, id, revision) that fail, in a process of its own."""
    code = f"""if True:
        from schemas import hub
        hub.PATIENCE = {patience}
        for kind, repository, revision in {wanted}:
            try: hub.download({name!r}, repository, revision, kind, "here", "Give a folder")
            except hub.UsageError as error: print("usage:", error.what)
            except hub.InputError as error: print("input:", error.what)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], env=hubs.surroundings(url, folder), cwd=ROOT, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_a_hub_that_cannot_be_reached_is_one_message_that_says_what_to_do(name: str, tmp_path: Path) -> None:
    folder = info(tmp_path / "registry", far={"hf_hub_url": "nobody/nothing", "ms_hub_url": "nobody/nothing"})
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        done = compile_(url, tmp_path, "--mix", "far", "--registry", folder, "--hub", name)
    assert done.returncode == 5
    assert "error: dataset far: nobody/nothing could not be downloaded from " in done.stderr
    assert "Put its files into DIR/nobody/nothing and add --registry DIR" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 2, done.stderr
    assert not (tmp_path / "out").exists()


def test_a_hub_that_says_nothing_is_given_up_in_time(name: str, tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are accepted, and no answer comes
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (said,) = problems(url, tmp_path, name, [("model", "maker/words", None)], patience=0.5)
    assert said.startswith("input: maker/words could not be downloaded from ")
    assert "Timeout" in said


# -- models --


@pytest.fixture(scope="module")
def served(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set, beside two models on the hub: one without code, and one that comes with code."""
    from tests.support.trained import save_model, small_set

    folder = tmp_path_factory.mktemp("served")
    plain = files(save_model(folder / "model"))
    config = json.loads(plain["config.json"]) | {"auto_map": {"AutoConfig": "made.Config"}}
    coded = plain | {"config.json": json.dumps(config).encode(), "made.py": b"raise SystemExit('it ran')"}
    hub.repositories["models/maker/tiny"] = Repository({OLD: plain, NEW: {"README.md": b"moved"}}, REFS)
    hub.repositories["models/maker/coded"] = Repository({OLD: coded}, REFS | {"main": OLD, "master": OLD})
    return small_set(folder / "data")


@pytest.mark.slow
def test_the_commit_of_a_model_of_modelscope_is_in_the_checkpoint(hub: Hub, served: Path, tmp_path: Path) -> None:
    """Code is trusted, as many configurations do: a model that has none needs no commit for that."""
    pytest.importorskip("modelscope_hub", reason="needs the [hub] extra")
    given = {"output_dir": str(tmp_path / "run"), "use_cpu": True, "max_steps": 1, "plot_loss": False}
    given |= {"model_revision": "v1", "trust_remote_code": True}
    (tmp_path / "run.yaml").write_text(json.dumps(given), encoding="utf-8")
    arguments = ("train", served, tmp_path / "run.yaml", "--model", "maker/tiny")
    done = run(hub.url, tmp_path, *arguments, USE_MODELSCOPE_HUB="1")
    assert done.returncode == 0, done.stderr
    saved = json.loads((tmp_path / "run" / "checkpoint-1" / "run.json").read_text("utf-8"))
    named = {"model": "maker/tiny", "revision": OLD, "hub": "modelscope", "trust_remote_code": True, "remote_code": {}}
    assert saved["model"] == named


@pytest.mark.slow
@pytest.mark.usefixtures("served")
def test_code_of_a_hub_is_downloaded_and_run_only_at_a_commit(hub: Hub, name: str, tmp_path: Path) -> None:
    code = f"""if True:
        from pathlib import Path
        from trainer.config.config import TrainConfig
        from trainer.models import folder
        print(folder.find(TrainConfig("maker/tiny", "out", model_revision="v1", hub={name!r})).record)
        for revision in ("v1", None, {OLD!r}):
            config = TrainConfig("maker/coded", "out", model_revision=revision, hub={name!r}, trust_remote_code=True)
            try: folder.find(config)
            except folder.UsageError as error: print(error.what, list(Path({str(tmp_path)!r}).rglob("made.py")))
    """
    done = subprocess.run(
        [sys.executable, "-c", code], env=hubs.surroundings(hub.url, tmp_path), cwd=ROOT, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    record = {"model": "maker/tiny", "revision": OLD, "trust_remote_code": False, "hub": name}
    what = "maker/coded comes with code, and code from a hub is run only from a fixed commit []"
    assert done.stdout.splitlines() == [str(record), what, what]
    assert done.stderr.endswith("it ran\n")


def test_a_revision_inside_the_name_of_a_model_is_told_its_key() -> None:
    from trainer.config.config import TrainConfig
    from trainer.models import folder

    with pytest.raises(UsageError, match=r"Write maker/tiny, and model_revision: v1\."):
        folder.find(TrainConfig("maker/tiny@v1", "out"))


def test_a_key_that_contradicts_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.config.config import TrainConfig
    from trainer.models import folder

    monkeypatch.setenv("USE_HF", "1")
    with pytest.raises(UsageError, match="hub: modelscope: USE_HF=1 in the environment chooses huggingface"):
        folder.find(TrainConfig("maker/tiny", "out", hub="modelscope"))


@pytest.mark.parametrize("key", ["hub", "model_revision"])
def test_a_model_that_is_from_no_hub_needs_no_hub_and_no_revision(tmp_path: Path, key: str) -> None:
    from trainer.config import load as configs

    for model in ("demo", str(tmp_path)):
        values = {"model_name_or_path": model, "output_dir": "out", key: "modelscope"}
        (tmp_path / "run.yaml").write_text(json.dumps(values), encoding="utf-8")
        with pytest.raises(UsageError, match=f"#/{key}: it has no effect: the model is not from a hub"):
            configs.load(tmp_path / "run.yaml")


# -- which hub --


@pytest.mark.parametrize(
    ("environment", "told"),
    [
        ({"USE_HF": "1"}, "error: --hub modelscope: USE_HF=1 in the environment chooses huggingface"),
        (
            {"USE_HF": "1", "USE_MODELSCOPE_HUB": "true"},
            "error: USE_HF=1 and USE_MODELSCOPE_HUB=1: they choose two hubs",
        ),
        ({"USE_OPENMIND_HUB": "1"}, "error: USE_OPENMIND_HUB=1: openMind's hub is not read"),
        ({"USE_MODELSCOPE_HUB": "maybe"}, "error: USE_MODELSCOPE_HUB=maybe: expected 1 or 0"),
        ({"USE_MODELSCOPE_HUB": "1"}, "error: --hub modelscope: nothing of this compile is downloaded from a hub"),
    ],
)
def test_a_choice_of_hub_that_contradicts_itself_or_has_no_effect_is_refused(
    run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], told: str
) -> None:
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    result = run("compile", "--mix", "agent", "--hub", "modelscope", "-o", tmp_path / "out", code=2)
    assert result.stderr.startswith(told)
    assert not (tmp_path / "out").exists()


def test_a_dataset_of_another_hub_than_the_preferred_one_says_so(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub", reason="needs the [hub] extra")
    folder = info(tmp_path / "registry", far={"hf_hub_url": "maker/chats"})
    done = compile_(hub, tmp_path, "--mix", "far", "--registry", folder, "--hub", "modelscope")
    assert done.returncode == 0, done.stderr
    assert "far: it is from huggingface: its entry names no repository of modelscope" in done.stderr
    assert json.loads(done.stdout)["datasets"][0]["source"]["hub"] == {"huggingface": "maker/chats"}


def test_a_local_copy_is_not_taken_for_the_revision_that_is_asked_for(
    run: Callable[..., Result], tmp_path: Path
) -> None:
    folder = info(tmp_path / "registry", far={"ms_hub_url": "maker/chats@v1"})
    (folder / "maker" / "chats").mkdir(parents=True)
    (folder / "maker" / "chats" / "train.jsonl").write_bytes(rows(2))
    said = run("compile", "--mix", "far", "--registry", folder, "-o", tmp_path / "out").stderr
    assert "whether it is the revision v1 is not checked" in said
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text("utf-8"))
    assert manifest["datasets"][0]["source"] == {"hub": {"modelscope": "maker/chats"}}


def test_openminds_hub_is_refused_by_its_name(run: Callable[..., Result], tmp_path: Path) -> None:
    folder = info(tmp_path / "registry", far={"om_hub_url": "maker/chats"})
    said = run("compile", "--mix", "far", "--registry", folder, "-o", tmp_path / "out", code=2).stderr
    assert said.startswith("error: dataset far: it is on no hub that is read, only on openmind\n")
