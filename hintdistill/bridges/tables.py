"""Store exported rows on disk: parquet written row group by row group, and read one row at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hintdistill.bridges.formats import DATA
from hintdistill.core.errors import InputError

META = b"hintdistill.export"
"""Entry of the file's metadata with the format's name and schema number."""
GROUP_ROWS = 16


def write_rows(folder: Path, name: str, schema: pa.Schema, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as they come, and return their number."""
    marked, count, batch = schema.with_metadata({META: f"{name} 1".encode()}), 0, list[dict[str, Any]]()
    with pq.ParquetWriter(folder / DATA, marked, compression="zstd") as file:
        for row in rows:
            batch.append(row)
            count += 1
            if len(batch) == GROUP_ROWS:
                file.write_table(pa.Table.from_pylist(batch, schema=marked))
                batch = []
        if batch:
            file.write_table(pa.Table.from_pylist(batch, schema=marked))
    return count


def open_export(folder: Path, name: str) -> pq.ParquetFile:
    """Return an export's file. Raises InputError if it does not exist, or has another format."""
    path = folder / DATA
    if not path.is_file():
        raise InputError(f"there is no export in {folder}", hint=f"hintdistill export RUN --to {name} --out {folder}")
    file = pq.ParquetFile(path)
    found = (file.schema_arrow.metadata or {}).get(META, b"").decode()
    if found != f"{name} 1":
        raise InputError(f"{path} is {found or 'not an export of this toolkit'}, not `{name} 1`")
    return file


def read_rows(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """Yield an export's rows in order; see `open_export`."""
    with open_export(folder, name) as file:
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group).to_pylist()


def row_at(folder: Path, name: str, number: int) -> dict[str, Any]:
    """Return one row by its number. Raises InputError if it does not exist."""
    with open_export(folder, name) as file:
        before = number
        for group in range(file.num_row_groups):
            held = file.metadata.row_group(group).num_rows
            if before < held:
                return dict(file.read_row_group(group).slice(before, 1).to_pylist()[0])
            before -= held
    raise InputError(f"{folder / DATA} has no row {number}", hint="export the run again")
