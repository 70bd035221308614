"""The files of a split: Parquet, or streams of Arrow batches, closed after some tokens and begun again; or lines."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pyarrow as pa
import pyarrow.parquet as pq

from compiler.convert.base import Columns

FILE_BYTES = 1 << 28
"""Bytes of columns after which a file is closed."""


class SplitFiles:
    """The files of one split that is being written: a context manager that closes the last one."""

    def __init__(self, folder: Path, name: str, split: str) -> None:
        self.folder, self.name, self.split = folder, name, split
        self.files: list[Path] = []
        self.schema: pa.Schema | None = None
        self._writer: pq.ParquetWriter | pa.RecordBatchStreamWriter | None = None
        self._bytes = 0

    def __enter__(self) -> SplitFiles:
        return self

    def write(self, columns: Columns) -> None:
        """Write the next rows."""
        if self.name.endswith(".jsonl"):
            self._write_lines(columns["line"])
            return
        batch = pa.RecordBatch.from_pydict(columns)
        if self._writer is None:
            self._writer = self._begin(batch.schema)
        self._writer.write_batch(batch)
        self._bytes += batch.nbytes
        if self._bytes >= FILE_BYTES:
            self._end()

    def _write_lines(self, lines: pa.Array) -> None:
        """Write lines to the one file of the split."""
        path = self.folder / self.name.format(split=self.split)
        if not self.files:
            self.files.append(path)
        with path.open("ab") as file:
            file.writelines(lines.to_pylist())

    def _begin(self, schema: pa.Schema) -> pq.ParquetWriter | pa.RecordBatchStreamWriter:
        path = self.folder / self.name.format(split=self.split, number=len(self.files))
        path.parent.mkdir(parents=True, exist_ok=True)
        self.schema = schema
        self.files.append(path)
        if path.suffix == ".parquet":
            # Token ids have no runs and few repeats in a page: a dictionary costs more than it saves.
            return pq.ParquetWriter(path, schema, compression="zstd", compression_level=1, use_dictionary=False)
        return pa.ipc.new_stream(str(path), schema)

    def _end(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._bytes = None, 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end()
        except OSError:
            if error is None:
                raise  # else the first error is the one to tell
