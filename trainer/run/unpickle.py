"""DeepSpeed's state read with nothing in it run: torch loads tensors, plain values, and four classes that hold no code.

DeepSpeed asks torch for full pickles, which can run anything. TORCH_FORCE_WEIGHTS_ONLY_LOAD overrules it, here and in
the process that converts a state for another number of processes. The numbers are the same: torch reads the same bytes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from schemas.disk import is_inside
from schemas.errors import InputError, IntegrityError

_FORCED, _FORBIDDEN = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
_ARCHIVE = re.compile(
    r"PytorchStreamReader|inline_container|zip archive|unexpected pos|size mismatch|loading state_dict"
)
"""What torch's RuntimeErrors say of a file; others are of memory or of another process."""
_WRONG = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, TypeError, ValueError)
"""What DeepSpeed raises for a state that is not as it wrote one."""


def allowed() -> list[Any]:
    """The classes in DeepSpeed's state: numbers and names, with no code of their own at loading."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    def stage(of: Any, name: str) -> Any:
        """Stands for getattr, by which Python 3.11.0 to 3.11.3 write a member of an enumeration."""
        if of is not ZeroStageEnum:
            raise pickle.UnpicklingError("GLOBAL getattr")
        return ZeroStageEnum.__members__[name]

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address, (stage, "builtins.getattr")]


@contextlib.contextmanager
def tensors_only(state: Path) -> Iterator[None]:
    """Let torch load nothing but tensors and `allowed` classes in the block; a Problem for a state that has more."""
    before = {name: os.environ.pop(name, None) for name in (_FORCED, _FORBIDDEN)}
    os.environ[_FORCED] = "1"
    try:
        with torch.serialization.safe_globals(allowed()):
            yield
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"it asks for {asked[1]}" if asked else "it asks for more than tensors"
        hint = "Nothing of it was run. Use another checkpoint."
        raise IntegrityError(str(state), f"{what}, which no state of DeepSpeed has", hint) from error
    except (*_WRONG, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _ARCHIVE.search(str(error)):
            raise
        said = (str(error).strip().splitlines() or [""])[0][:200]
        what = f"DeepSpeed cannot read its state: {type(error).__name__}{f': {said}' if said else ''}"
        raise IntegrityError(str(state), what, "Use another checkpoint.") from error
    finally:
        del os.environ[_FORCED]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def convert(source: Path, target: Path) -> None:
    """Convert a state for any number of processes (DeepSpeed's universal checkpoint), in a process of its own."""
    command = [sys.executable, "-P", "-m", "trainer.run.unpickle", str(source), str(target)]
    places = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False,
        env=os.environ | {"DS_ACCELERATOR": "cpu", "PYTHONPATH": places},
    )  # fmt: skip
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        kind = IntegrityError if done.returncode == IntegrityError.exit_code else InputError
        what = f"cannot be converted for another number of processes: {said[-1]}"
        raise kind(str(source), what, "Resume with as many processes as the checkpoint is of, or use another.")


def _names(state: Any) -> Iterator[str]:
    """Yield the names of parameters in a file of a state, each of which becomes the name of a folder."""
    optimizer = state.get("optimizer_state_dict") or {}
    found = [state.get("module"), *(state.get("param_shapes") or ()), *(optimizer.get("param_slice_mappings") or ())]
    for names in found:
        yield from names or ()


def _main(source: Path, target: Path) -> None:
    """Check the names in a state, and convert it."""
    from deepspeed.checkpoint import ds_to_universal

    with tensors_only(source):
        for path in sorted(source.glob("*.pt")):
            for name in _names(torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path))):
                if not is_inside(name) or "/" in name:
                    raise IntegrityError(str(path), f"the name of a parameter leads to another folder: {name!r}")
        given = ["", "--input_folder", str(source), "--output_folder", str(target)]
        sys.argv = [*given, "--num_extract_workers", "1", "--num_merge_workers", "1"]
        ds_to_universal.main(ds_to_universal.parse_arguments())


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    try:
        _main(Path(sys.argv[1]), Path(sys.argv[2]))
    except (InputError, IntegrityError) as problem:
        print(str(problem).splitlines()[0], file=sys.stderr)
        sys.exit(problem.exit_code)
