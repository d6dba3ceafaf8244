"""Compressed trace files: `.gz` and `.zst`, unpacked as they are read, never to disk, and bounded like archives."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, Any

from hintdistill.traces.archives import FREE_BYTES, MAX_RATIO

COMPRESSED = (".gz", ".zst")


def inner_name(name: str) -> str:
    """Return the name of what a compressed file holds: `t.jsonl.gz` is `t.jsonl`; other names stay."""
    return name[: name.rindex(".")] if name.lower().endswith(COMPRESSED) else name


def open_compressed(path: Path) -> IO[bytes]:
    """Return the bytes inside a `.gz` or `.zst` file.

    Raises:
        OSError: the file cannot be opened, or its compression needs a package that is not installed.
    """
    stream: Any
    stream = gzip.open(path, "rb") if path.suffix.lower() == ".gz" else _zstd(path)  # noqa: SIM115
    return io.BufferedReader(_Bounded(stream, path.stat().st_size), 1 << 20)


def _zstd(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise OSError("compressed by zstd, which needs a package: pip install zstandard") from None
    return _Zstd(path.open("rb"), zstandard)


class _Zstd:
    """The frames of a zstd file one after another; what is cut or broken is an OSError, as of gzip."""

    def __init__(self, file: IO[bytes], library: Any) -> None:
        self._file, self._library = file, library
        self._frame: Any = None
        self._packed = self._ready = b""

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end of the last frame."""
        while not self._ready:
            self._packed = self._packed or self._file.read(1 << 16)
            if not self._packed:
                if self._frame is not None:
                    raise OSError("the zstd file is cut: its last frame has no end")
                return b""
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor(max_window_size=2**27).decompressobj()
            try:
                self._ready = self._frame.decompress(self._packed)
            except self._library.ZstdError as error:
                raise OSError(f"not readable zstd: {error}") from None
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        out, self._ready = self._ready[:size], self._ready[size:]
        return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Bounded(io.RawIOBase):
    """A stream that stops where it unpacks to far more than a file of traces does."""

    def __init__(self, stream: Any, packed: int) -> None:
        self._stream, self._left = stream, max(FREE_BYTES, MAX_RATIO * packed)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack into the buffer; returns how many bytes. Raises OSError past the bound."""
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise OSError(f"unpacks to more than {MAX_RATIO} times its size: refused as a decompression bomb")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the stream inside."""
        if not self.closed:
            self._stream.close()
        super().close()
