"""Compressed trace files (`.gz` and `.zst`): unpacked while reading, never to disk, and bounded like archives."""

from __future__ import annotations

import gzip
import io
from pathlib import Path
from typing import IO, Any

from hintdistill.traces.archives import FREE_BYTES, MAX_RATIO

COMPRESSED = (".gz", ".zst")


def inner_name(name: str) -> str:
    """Return a compressed file's name without its compression suffix: `t.jsonl.gz` becomes `t.jsonl`; other names are
    unchanged."""
    return name[: name.rindex(".")] if name.lower().endswith(COMPRESSED) else name


def open_compressed(path: Path) -> IO[bytes]:
    """Open a `.gz` or `.zst` file and return a stream of its uncompressed bytes.

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
    """Read the frames of a zstd file one after another. A truncated or broken frame is an OSError, as for gzip."""

    def __init__(self, file: IO[bytes], library: Any) -> None:
        self._file, self._library = file, library
        self._frame: Any = None
        self._packed = self._ready = b""

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; the result is empty at the end of the last frame."""
        while not self._ready:
            self._packed = self._packed or self._file.read(1 << 16)
            if not self._packed:
                if self._frame is not None:
                    raise OSError("the zstd file is truncated: its last frame is incomplete")
                return b""
            if self._frame is None:
                self._frame = self._library.ZstdDecompressor(max_window_size=2**27).decompressobj()
            try:
                self._ready = self._frame.decompress(self._packed)
            except self._library.ZstdError as error:
                raise OSError(f"not valid zstd: {error}") from None
            self._packed = self._frame.unused_data
            if self._frame.eof:
                self._frame = None
        out, self._ready = self._ready[:size], self._ready[size:]
        return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Bounded(io.RawIOBase):
    """A stream that stops with an error when it unpacks to far more data than a trace file plausibly contains."""

    def __init__(self, stream: Any, packed: int) -> None:
        self._stream, self._left = stream, max(FREE_BYTES, MAX_RATIO * packed)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack into the buffer; return the number of bytes. Raises OSError past the bound."""
        data = self._stream.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise OSError(f"it unpacks to more than {MAX_RATIO} times its size and is refused as a decompression bomb")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the wrapped stream."""
        if not self.closed:
            self._stream.close()
        super().close()
