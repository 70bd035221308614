"""Runs on `npu:0` of tests/support/ascend, in real processes: the code that an NPU takes, on the CPU's kernels.

No NPU is here, and none was used: Ascend's kernels, their precision, HCCL and speed are not shown.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import npu
from tests.support.trained import config, losses, save_model, small_set, train

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of libraries about their own future
    pytest.mark.usefixtures("one_process"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small set and a model."""
    made = tmp_path_factory.mktemp("npu")
    small_set(made / "data")
    save_model(made / "model")
    return made


def configs(folder: Path, name: str, **settings: Any) -> list[Path]:
    """The same run on the CPU and on the NPU."""
    return [
        config(folder / f"{name}-{kind}.json", folder / "model", use_cpu=kind == "cpu", **settings)
        for kind in ("cpu", "npu")
    ]


def on_npu(
    folder: Path, run: Path, *ranks: dict[str, str], data: Path | None = None, **more: str
) -> Sequence[tuple[int, str]]:
    """Exit code and what was printed, of `cli train` in one process or in several."""
    command = [sys.executable, str(npu.ROOT / "cli.py"), "train", str(data or folder / "data" / "shards"), str(run)]
    running = [
        subprocess.Popen(
            command, env=npu.environment(folder, **more) | rank, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for rank in ranks or ({},)
    ]  # fmt: skip
    printed = [one.communicate(timeout=600)[0] for one in running]
    return [(one.returncode, said) for one, said in zip(running, printed, strict=True)]


def test_a_run_on_an_npu_trains_as_on_the_cpu(folder: Path) -> None:
    """Through DeepSpeed's accelerator for NPUs. There AdamW goes over many tensors at once, and rounds otherwise."""
    cpu, run = configs(
        folder, "alone", tuning="full", lora=None, zero_stage=2, bf16=False, save_strategy="steps", save_steps=4
    )
    train(folder / "data" / "shards", cpu)
    ((code, said),) = on_npu(folder, run)
    assert code == 0, said
    assert "steps 1 to 4 of 2 rows on 1 x Ascend910B3" in said
    assert "Warning" not in said
    assert losses(run) == pytest.approx(losses(cpu), rel=1e-6)
    found, expected = (load_file(one.with_suffix("") / "checkpoint-4" / "model.safetensors") for one in (run, cpu))
    for name in expected.keys() | found.keys():
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-5)  # a step is up to 1e-3


def test_two_nodes_with_an_npu_each_train_as_one_process_with_all_rows(folder: Path) -> None:
    """Collectives of ZeRO-3 on the group `hccl`; adapters, in bf16."""
    cpu, run = configs(folder, "both", zero_stage=3, bf16=True)
    train(folder / "data" / "shards", cpu)
    settings = json.loads(run.read_text()) | {"per_device_train_batch_size": 1}
    run.write_text(json.dumps(settings))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    group = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    done = on_npu(folder, run, *({**group, "RANK": rank} for rank in "01"))
    assert [code for code, _ in done] == [0, 0], done
    assert "on 2 x Ascend910B3" in done[0][1]
    assert losses(run) == pytest.approx(losses(cpu), rel=1e-3)


def test_packs_are_apart_in_flash_attention_for_npus(folder: Path) -> None:
    """What Transformers makes of the ends of sequences, given to a kernel that is computed by its formula here."""
    packs = small_set(folder / "packs", "--pack", 64)
    cpu, run = configs(folder, "packs", bf16=True)
    train(packs, cpu)
    ((code, said),) = on_npu(folder, run, data=packs)
    assert code == 0, said
    assert "attention: flash_attention_2" in said
    assert "packs: the losses equal those of their sequences alone (difference 0.0e+00)" in said
    assert losses(run) == pytest.approx(losses(cpu), rel=1e-3)


def test_an_npu_that_is_full_is_one_message(folder: Path) -> None:
    _, run = configs(folder, "full", tuning="full", lora=None, bf16=True)
    ((code, said),) = on_npu(folder, run, FAKE_NPU_MEMORY=str(4 << 20))
    assert code == 2, said
    assert "out of memory while " in said and "NPU out of memory. Tried to allocate" in said
    assert "Use tuning: lora" in said and "Traceback" not in said
