"""Input that is made to take all memory or time: each kind ends early, in one message, within a bound."""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import zstandard

from tests.support.command import outside

ROOT = Path(__file__).resolve().parent.parent
LIMITED = """
import resource, sys
import cli
try:
    cli.main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, file=sys.stderr)
"""


def compiled(folder: Path, *arguments: object, seconds: float = 20) -> tuple[int, str, int]:
    """Compile in a process of its own; its exit code, what it said, and the most MiB that it had."""
    command = [sys.executable, "-c", LIMITED, "compile", *map(str, arguments), "--cache", "cache", "-o", "out"]
    begin = time.monotonic()
    done = subprocess.run(
        [*command, "--workers", "1"], cwd=folder, env=outside() | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    assert time.monotonic() - begin < 3 * seconds  # machines are shared
    return done.returncode, done.stderr, int(done.stderr.rsplit("peak", 1)[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json"])
def test_a_line_of_a_gigabyte_is_refused_in_less_than_400_mib(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write({"a.json": b'[{"text": "', "a.jsonl": b'{"text": "'}.get(name, b'text\n"'))
        for _ in range(1 << 10):
            file.write(b"a" * (1 << 20))
    code, said, peak = compiled(tmp_path, name)
    assert code == 5
    assert f"has more than {32 if name == 'a.csv' else 128} MiB" in said
    assert peak < 400


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["gz", "zst"])
def test_a_small_file_that_unpacks_to_a_gigabyte_is_refused(tmp_path: Path, compression: str) -> None:
    pack = gzip.compress if compression == "gz" else zstandard.ZstdCompressor().compress
    (tmp_path / f"a.jsonl.{compression}").write_bytes(pack((b" " * 1000 + b"\n") * (1 << 18)))
    code, said, peak = compiled(tmp_path, f"a.jsonl.{compression}")
    assert code == 5
    assert "more than 100 times as many" in said
    assert "--max-expansion N" in said
    assert peak < 400
    row = b'{"instruction": "say it again", "output": "b"}\n'
    (tmp_path / f"b.jsonl.{compression}").write_bytes(pack(row * 400_000))
    assert compiled(tmp_path, f"b.jsonl.{compression}", "--limit", "9")[0] == 0
    assert (
        compiled(tmp_path, f"b.jsonl.{compression}", "--max-expansion", "1", "--limit", "9")[0] == 0
    )  # 16 MiB are free


def workbook(*cells: str) -> bytes:
    """A workbook of one sheet with these cells, each a text."""
    types = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    office = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    package = "http://schemas.openxmlformats.org/package/2006"
    rows = "".join(
        f'<row r="{"".join(filter(str.isdigit, at))}"><c r="{at}" t="inlineStr"><is><t>x{n}</t></is></c></row>'
        for n, at in enumerate(cells)
    )
    parts = {
        "[Content_Types].xml": f'<Types xmlns="{package}/content-types"><Default Extension="rels" '
        f'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override '
        f'PartName="/xl/workbook.xml" ContentType="{types}.sheet.main+xml"/><Override '
        f'PartName="/xl/worksheets/sheet1.xml" ContentType="{types}.worksheet+xml"/></Types>',
        "_rels/.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="a" '
        f'Type="{office}/officeDocument" Target="xl/workbook.xml"/></Relationships>',
        "xl/workbook.xml": f'<workbook xmlns="{main}" xmlns:r="{office}"><sheets><sheet name="a" sheetId="1" '
        f'r:id="b"/></sheets></workbook>',
        "xl/_rels/workbook.xml.rels": f'<Relationships xmlns="{package}/relationships"><Relationship Id="b" '
        f'Type="{office}/worksheet" Target="worksheets/sheet1.xml"/></Relationships>',
        "xl/worksheets/sheet1.xml": f'<worksheet xmlns="{main}"><sheetData>{rows}</sheetData></worksheet>',
    }
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in parts.items():
            file.writestr(name, text)
    return data.getvalue()


def test_a_workbook_with_a_cell_far_away_is_refused(tmp_path: Path) -> None:
    (tmp_path / "far.xlsx").write_bytes(workbook("A1", "A2", "XFD1048576"))
    code, said, peak = compiled(tmp_path, "far.xlsx")
    assert code == 5
    assert "its cells reach to row 1,048,576 and column 16,384" in said
    assert peak < 400
    (tmp_path / "near.xlsx").write_bytes(workbook("A1", "A2", "C9000"))
    assert "column 3" in compiled(tmp_path, "near.xlsx")[1] or "header" in compiled(tmp_path, "near.xlsx")[1]


@pytest.mark.parametrize("columns", [9_999, 100_000])
def test_a_header_of_many_columns_takes_no_time(tmp_path: Path, columns: int) -> None:
    names = [f"c{n}" for n in range(columns)]
    (tmp_path / "a.csv").write_text(",".join(names) + "\n" + ",".join(["1"] * columns) + "\n")
    code, said, _ = compiled(tmp_path, "a.csv")
    assert code in (2, 3, 5)
    if columns > 10_000:
        assert "has 100,000 columns, and at most 10,000 are read" in said
