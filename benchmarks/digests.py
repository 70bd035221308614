"""`python -m benchmarks.digests [FILE]`: digests of what the compiler makes, to compare before and after a change.

Compiles the README's mix, a generated corpus of 6,000 rows (plain, packed, with the qwen2.5 tokenizer where it is
beside the project) and every example, each with the `cli` of this Python. Prints one line a set: the sha256 of its
shards' bytes and of its rows (every column as JSON). With FILE, also compares with what an earlier run printed into
it, and exits with 1 where a line differs. A refactoring changes no line.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from benchmarks import corpus
from tests.support.vision import vision_model

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "tokenizers"
TOKENIZERS = {"chatglm3": SHARED / "chatglm3", "cogagent": SHARED / "glm4"}
"""The tokenizers that the examples' READMEs call $TOKENIZER; the vision example's is made by its test."""
_BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def digests(folder: Path) -> str:
    """Return the digests of a compiled set: of its shards' bytes, and of its rows."""
    shards, rows, count = hashlib.sha256(), hashlib.sha256(), 0
    for path in sorted(folder.glob("*/shard-*.arrow")):
        shards.update(path.relative_to(folder).as_posix().encode() + path.read_bytes())
        with pa.memory_map(str(path)) as file:
            for row in pa.ipc.open_file(file).read_all().to_pylist():
                rows.update(json.dumps(row, sort_keys=True, default=bytes.hex).encode())
                count += 1
    return f"{count:6} rows {rows.hexdigest()[:24]} shards {shards.hexdigest()[:24]}"


def lines(folder: Path) -> Iterator[str]:
    """Compile every set below `folder`; yield a line for each."""
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / "cache"),
    }

    def compiled(name: str, *arguments: str) -> str:
        command = ["cli", "compile", *arguments, "-o", str(folder / name)]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
        return f"{name:32} {digests(folder / name)}"

    yield compiled("readme", "--mix", "agent:1,bench:2", "--self-cognition", "3000")
    # Named without the folder, whose name is another one each time: rows hold the names of their files.
    files = [str(path.relative_to(folder)) for path in corpus.write(folder / "sources", 6000)]
    yield compiled("corpus", *files, "--val-size", "0.05")
    yield compiled("corpus-packed", *files, "--pack", "2048")
    if (SHARED / "qwen2.5").is_dir():
        yield compiled("corpus-qwen2.5", *files, "--tokenizer", str(SHARED / "qwen2.5"))
    for example in sorted(path.parent for path in (ROOT / "examples").glob("*/README.md")):
        copy = folder / example.name
        shutil.copytree(example, copy, ignore=shutil.ignore_patterns("out"))
        given = {"TOKENIZER": str(_tokenizer(example.name, folder))}
        for block in _BLOCK.findall((example / "README.md").read_text(encoding="utf-8")):
            shell = ["bash", "-c", block]  # some commands are there to fail; what they make is what counts
            subprocess.run(shell, cwd=copy, env=environment | given, capture_output=True, check=False)
        for manifest in sorted(copy.glob("out/*/manifest.json")):
            yield f"{example.name + '/' + manifest.parent.name:32} {digests(manifest.parent)}"


def _tokenizer(example: str, folder: Path) -> Path:
    if example in TOKENIZERS:
        return TOKENIZERS[example]
    return vision_model(folder / "vision")


def main() -> None:
    """Print the lines; compare them with those of FILE."""
    earlier = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines() if len(sys.argv) > 1 else None
    found = []
    with tempfile.TemporaryDirectory() as name:
        for line in lines(Path(name)):
            print(line, flush=True)
            found.append(line)
    if earlier is not None and (changed := sorted(set(found) ^ set(earlier))):
        sys.exit("\n".join(["these lines differ:", *changed]))


if __name__ == "__main__":
    main()
