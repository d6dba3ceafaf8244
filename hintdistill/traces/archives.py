"""Zip archives, among them Inspect's `.eval` files: members are streamed, never unpacked to disk.

Archives are untrusted. Names that leave the archive, symbolic links, encryption, suspicious compression ratios
(promised or actual), overlapping entries and archives inside archives are refused, each with its reason.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from hintdistill.core.types import Source
from hintdistill.traces.options import Failure

MAX_RATIO = 200
"""Largest ratio of uncompressed to compressed size. JSON with much repetition stays below 50; a decompression bomb
starts near 1,000."""
FREE_BYTES = 16 * 2**20
"""Below this size a high ratio is harmless."""
MAX_MEMBERS = 100_000
SYMLINK, TYPE_MASK = 0o120000, 0o170000
ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, zlib.error, EOFError)
"""The exceptions that reading a damaged archive raises."""


@dataclass(frozen=True)
class Member:
    """Describe one readable file of an archive."""

    name: str
    """Name in the form `archive.zip!/folder/file.jsonl`."""
    archive: Path
    info: zipfile.ZipInfo
    foreign: bool

    def open(self) -> IO[bytes]:
        """Return the member's bytes, uncompressed while reading, and never more than its declared size."""
        return io.BufferedReader(_Raw(self.archive, self.info), 1 << 16)


class _Raw(io.RawIOBase):
    """Read a member as a raw stream that owns its archive, so that closing one closes both."""

    def __init__(self, archive: Path, info: zipfile.ZipInfo) -> None:
        self._archive = _open(archive)
        self._file = self._archive.open(info)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Unpack into the buffer; return the number of bytes."""
        data = self._file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the member and its archive."""
        if not self.closed:
            self._file.close()
            self._archive.close()
        super().close()


def _open(path: Path) -> zipfile.ZipFile:
    with contextlib.suppress(ImportError):
        import zipfile_zstd  # noqa: F401  teaches zipfile the compression of recent Inspect logs
    return zipfile.ZipFile(path)


def members(path: Path, suffixes: tuple[str, ...]) -> Iterator[Member | Failure]:
    """Yield the files of an archive in their stored order; a file that must not be read is a failure.

    Args:
        path: the archive.
        suffixes: endings of trace files; files with other endings are marked foreign.
    """
    where = Source(file=str(path), position="archive")
    try:
        with _open(path) as archive:
            infos = [i for i in archive.infolist() if not i.is_dir()]
    except (*ZIP_ERRORS, OSError, ValueError) as error:
        yield Failure(where, "bad_archive", f"not a readable zip archive: {error}")
        return
    refusal = _whole(infos, path.stat().st_size)
    if refusal is not None:
        yield Failure(where, *refusal)
        return
    for info in infos:
        name = f"{path}!/{info.filename}"
        reason = _one(info, suffixes)
        if reason is not None:
            yield Failure(Source(file=name, position="member"), *reason)
        else:
            yield Member(name, path, info, PurePosixPath(info.filename).suffix.lower() not in suffixes)


def _whole(infos: list[zipfile.ZipInfo], size: int) -> tuple[str, str] | None:
    """Return the reason why the archive as a whole is refused, if any."""
    if not infos:
        return "empty_file", "the archive contains no file"
    if len(infos) > MAX_MEMBERS:
        return "zip_bomb", f"{len(infos):,} members, more than {MAX_MEMBERS:,}"
    packed, unpacked = sum(i.compress_size for i in infos), sum(i.file_size for i in infos)
    if packed > size:
        return "zip_bomb", "its entries overlap: their total size is larger than the archive"
    if unpacked > FREE_BYTES and unpacked > MAX_RATIO * size:
        return "zip_bomb", f"it would unpack to {unpacked:,} bytes, {unpacked // max(size, 1):,} times its size"
    return None


def _one(info: zipfile.ZipInfo, suffixes: tuple[str, ...]) -> tuple[str, str] | None:
    """Return the reason why one member is refused, if any."""
    path = PurePosixPath(info.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return "unsafe_path", "its name points outside the archive"
    if (info.external_attr >> 16) & TYPE_MASK == SYMLINK:
        return "symlink", "a symbolic link, which is not followed"
    if info.flag_bits & 1:
        return "encrypted", "encrypted; decrypt it first"
    if info.file_size > FREE_BYTES and info.file_size > MAX_RATIO * max(info.compress_size, 1):
        return "zip_bomb", f"it would unpack to {info.file_size:,} bytes from {info.compress_size:,}"
    if path.suffix.lower() in (".zip", ".eval", ".gz", ".tar", ".zst"):
        return "nested_archive", "an archive inside an archive; unpack it first"
    if path.suffix.lower() in suffixes and not _can_unpack(info.compress_type):
        return (
            "compression",
            f"compressed with method {info.compress_type}, which is not supported; zstd needs: pip install "
            "'hintdistill[inspect]'",
        )
    return None


def _can_unpack(method: int) -> bool:
    if method == 93:
        try:
            import zipfile_zstd  # noqa: F401
        except ImportError:
            return False
        return True
    return method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
