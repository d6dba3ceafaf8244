"""Tables of traces with one row per record: `.parquet` files, and folders saved by `datasets`.

A column that contains JSON as text is decoded. Arrow gives every object of a column the keys of all of them, with null
for absent keys; such nulls are removed, so that no call gets an argument that it never had.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TABLES = (".parquet", ".arrow")
SAVED = frozenset({"state.json", "dataset_info.json", "dataset_dict.json"})
"""The files that `datasets` writes next to the tables of a saved set."""


def is_saved_set(names: list[str]) -> bool:
    """Return whether a folder with files of these names was written by `save_to_disk`."""
    return "dataset_dict.json" in names or {"state.json", "dataset_info.json"} <= set(names)


def saved_tables(folder: Path, names: list[str]) -> set[str]:
    """Return the tables of a saved set; other tables in its folder are caches."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        return {f["filename"] for f in state["_data_files"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {name for name in names if name.endswith(".arrow") and not name.startswith("cache-")}


def table_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table, batch by batch.

    Raises:
        OSError: the file is not such a table, or cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if path.suffix.lower() == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=64):
                    yield from map(plain_row, batch.to_pylist())
            return
        with pa.memory_map(str(path)) as source:
            for batch in _batches(pa, source):
                for start in range(0, batch.num_rows, 64):
                    yield from map(plain_row, batch.slice(start, 64).to_pylist())
    except (pa.ArrowException, ValueError) as error:
        raise OSError(f"not a readable table: {error}") from None


def _batches(pa: Any, source: Any) -> Iterator[Any]:
    """Yield the batches of an Arrow file, in its streaming or its random-access form."""
    try:
        stream = pa.ipc.open_stream(source)
    except pa.ArrowInvalid:
        file = pa.ipc.open_file(source)
        yield from (file.get_batch(i) for i in range(file.num_record_batches))
        return
    yield from stream


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return one row in the form of a decoded JSON record."""
    return {k: _decoded(plain(v)) for k, v in row.items() if v is not None}


def _decoded(value: Any) -> Any:
    """Return the object or list that a text column encodes as JSON; other text is unchanged."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def plain(value: Any) -> Any:
    """Return a value made of JSON's own types, without the nulls that a table's schema adds to its objects."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, tuple):
        return [plain(v) for v in value]
    if isinstance(value, bytes):
        return f"[{len(value)} bytes]"
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return value if isinstance(value, str | int | float | bool) or value is None else str(value)
