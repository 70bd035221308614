"""Repositories of the hubs: which hub is meant, and the files of one commit of a model, a tokenizer or a dataset.

Each hub's own client downloads, into its own cache. The clients are in the extra `hub`, and only this module asks them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from schemas import install
from schemas.errors import InputError, UsageError

HUGGING_FACE, MODELSCOPE, OPENMIND = "huggingface", "modelscope", "openmind"
HUBS = (HUGGING_FACE, MODELSCOPE)
"""The hubs that are read, by the names that `--hub` takes; the first one is the default."""
PATIENCE = 30
"""Seconds within which a hub must answer the first question, which is asked once."""
_VARIABLES = {"USE_HF": HUGGING_FACE, "USE_MODELSCOPE_HUB": MODELSCOPE, "USE_OPENMIND_HUB": OPENMIND}
"""LLaMA-Factory's variables and ms-swift's (USE_HF): each chooses a hub where its value is yes."""
_YES, _NO = ("1", "true", "yes", "y", "on"), ("", "0", "false", "no", "n", "off")
_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_COMMIT = re.compile("[0-9a-f]{40}")
_NAMES = {HUGGING_FACE: "Hugging Face", MODELSCOPE: "ModelScope"}
_CLIENTS = {HUGGING_FACE: "huggingface_hub", MODELSCOPE: "modelscope_hub"}
_LOG_IN = {HUGGING_FACE: "hf auth login", MODELSCOPE: "modelscope login"}
_AGAIN = {
    HUGGING_FACE: "Try again later; HF_HUB_OFFLINE=1 reads what was downloaded earlier",
    MODELSCOPE: "Try again later",
}


@dataclass(frozen=True)
class Snapshot:
    """The downloaded files of one commit of a repository."""

    folder: Path
    hub: str
    repository: str
    commit: str

    @property
    def source(self) -> dict[str, Any]:
        """Where it is from, for manifests."""
        return {"hub": {self.hub: self.repository}, "revision": self.commit}


class _NoSuchRepositoryError(Exception):
    """The hub answers that it has no such repository or revision, or that this user may not read it."""


class _Wanted(NamedTuple):
    """What is asked of a client."""

    repository: str
    kind: str
    """ "model" or "dataset"."""
    revision: str | None
    only: list[str] | None
    without: list[str] | None


def of_environment(environment: Mapping[str, str] = os.environ) -> str | None:
    """The hub that an environment chooses; None where it chooses none. UsageError if it chooses two."""
    asked = {}
    for variable, hub in _VARIABLES.items():
        value = environment.get(variable, "").strip().lower()
        if value not in (*_YES, *_NO):
            raise UsageError(f"{variable}={value}", "expected 1 or 0", f"Unset it, or choose with --hub {hub}.")
        if value in _YES:
            asked[variable] = hub
    if len(asked) > 1:
        raise UsageError(" and ".join(f"{name}=1" for name in asked), "they choose two hubs", "Unset one of them.")
    if OPENMIND in asked.values():
        raise UsageError(
            "USE_OPENMIND_HUB=1", "openMind's hub is not read, only Hugging Face and ModelScope are",
            "Unset it. Download the repository with openMind's own client, openmind_hub, and give its folder.",
        )  # fmt: skip
    return next(iter(asked.values()), None)


def chosen(asked: str | None, where: str) -> str | None:
    """The hub that is `asked` for, else that of the environment, else None. UsageError if they contradict each other.

    `where` is the option or key that asks, for messages.
    """
    found = of_environment()
    if asked and found and asked != found:
        variable = next(name for name, hub in _VARIABLES.items() if hub == found)
        raise UsageError(
            f"{where} {asked}", f"{variable}=1 in the environment chooses {found}", "Leave one of them out."
        )
    return asked or found


def is_id(name: str) -> bool:
    """Whether a name has the form of a hub id, ORGANISATION/NAME, with or without @REVISION."""
    return _ID.fullmatch(name.partition("@")[0]) is not None


def is_commit(revision: str | None) -> bool:
    """Whether a revision is the full hash of a commit, which never changes."""
    return _COMMIT.fullmatch(revision or "") is not None


def parse_id(name: str) -> tuple[str, str | None]:
    """Parse `ID@REVISION`: the id, and the revision or None."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def download(
    hub: str, repository: str, revision: str | None, kind: str, where: str, advice: str, *,
    only: Sequence[str] = (), without: Sequence[str] = (),
) -> Snapshot:  # fmt: skip
    """Download a repository of a kind ("model", "dataset"), or what it has of the files `only`, but not `without`.

    UsageError if there is no client, repository or revision of that name; InputError if the hub does not answer.
    `where` and `advice` are for messages.
    """
    wanted = _Wanted(repository, kind, revision, list(only) or None, list(without) or None)
    what = f"{repository}@{revision}" if revision else repository
    try:
        folder, commit = _CALLS[hub](wanted)
    except ImportError as error:
        state = "is not installed" if isinstance(error, ModuleNotFoundError) else "is too old"
        missing = f"{_CLIENTS[hub]}, which downloads it from {_NAMES[hub]}, {state}"
        raise UsageError(where, missing, f"{advice}, or install it: {install.extra('hub')}") from None
    except _NoSuchRepositoryError as error:
        missing = f"{_NAMES[hub]} has no {kind} {what}, or none that you may read ({error})"
        other = next(one for one in HUBS if one != hub)
        hint = f"Check its name, log in ({_LOG_IN[hub]}), or try --hub {other}. {advice} otherwise."
        raise UsageError(where, missing, hint) from error
    except Exception as error:  # each client has its own errors for no network, a broken answer, a full disk...
        failed = f"{what} could not be downloaded from {_NAMES[hub]}: {_short(error)}"
        raise InputError(where, failed, f"{_AGAIN[hub]}. {advice} otherwise.") from error
    return Snapshot(folder, hub, repository, commit)


def _short(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{': ' if lines else ''}{lines[0][:200] if lines else ''}"


def _hugging_face(wanted: _Wanted) -> tuple[Path, str]:
    """The folder and commit of a snapshot: huggingface_hub keeps it in a folder named by its commit."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with suppress(OfflineModeIsEnabled):  # HF_HUB_OFFLINE=1: what was downloaded earlier is read
            # The client itself waits without end for a hub that accepts the connection and says nothing.
            HfApi().repo_info(wanted.repository, repo_type=wanted.kind, revision=wanted.revision, timeout=PATIENCE)
        folder = snapshot_download(
            wanted.repository, repo_type=wanted.kind, revision=wanted.revision, allow_patterns=wanted.only,
            ignore_patterns=wanted.without,
        )  # fmt: skip
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise _NoSuchRepositoryError(type(error).__name__) from error
    return Path(folder), Path(folder).name


def _modelscope(wanted: _Wanted) -> tuple[Path, str]:
    """The folder and commit of a snapshot. The commit is asked for first: the client itself never tells it."""
    import logging

    from modelscope_hub import HubApi, NotExistError, get_default_config
    from modelscope_hub.errors import AuthenticationError, PermissionDeniedError

    logging.getLogger("modelscope_hub").setLevel(logging.CRITICAL)  # it logs each attempt; the error is one message
    config = get_default_config()
    try:
        commit = wanted.revision
        if not is_commit(commit):
            commit = _modelscope_commit(config, wanted)
        # Not the client's choice of folder: it would go on in one of its earlier versions, which mixes commits.
        name = wanted.repository.replace("/", "--")
        folder = config.cache_dir / f"{wanted.kind}s" / name / "snapshots" / str(commit)
        HubApi().download_repo(
            wanted.repository, wanted.kind, revision=commit, local_dir=folder, allow_patterns=wanted.only,
            ignore_patterns=wanted.without,
        )  # fmt: skip
    except (NotExistError, AuthenticationError, PermissionDeniedError) as error:
        raise _NoSuchRepositoryError(type(error).__name__) from error
    return folder, str(commit)


def _modelscope_commit(config: Any, wanted: _Wanted) -> str:
    """The commit that a branch or tag of a ModelScope repository is at.

    The question is that of `list_repo_commits` in modelscope 1.30 to 1.37; its successor, modelscope_hub, asks none.
    """
    import requests

    answer = requests.get(
        f"{config.endpoint}/api/v1/{wanted.kind}s/{wanted.repository}/commits",
        params={"Ref": wanted.revision or "master", "PageNumber": "1", "PageSize": "1"},
        headers={"Authorization": f"Bearer {config.token}"} if config.token else None,
        cookies={"m_session_id": config.token} if config.token else None,
        timeout=PATIENCE,
    )  # fmt: skip
    if answer.status_code in (401, 403, 404):
        raise _NoSuchRepositoryError(f"HTTP {answer.status_code}")
    answer.raise_for_status()
    told = answer.json()
    commits = (told.get("Data") or {}).get("Commit")
    if not told.get("Success", True) or not commits:
        raise _NoSuchRepositoryError(told.get("Message") or "it tells no commit")
    if not is_commit(commits[0]["Id"]):
        raise ValueError(f"expected a commit, found {commits[0]['Id']!r}")
    return str(commits[0]["Id"])


_CALLS: Mapping[str, Callable[[_Wanted], tuple[Path, str]]] = {HUGGING_FACE: _hugging_face, MODELSCOPE: _modelscope}
