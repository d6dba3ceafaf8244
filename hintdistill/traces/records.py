"""Turn bytes into records: JSON lines, a JSON array, one object, or objects one after another.

Reading is streamed: a window on the file holds one record at a time, however large the file is. A broken record loses
only itself: it becomes one failure with its line, and reading continues at the next recognisable record.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any

import msgspec

from hintdistill.core.types import Source
from hintdistill.traces.compressed import inner_name
from hintdistill.traces.options import Failure, Record

CHUNK = 1 << 16
TAIL = 16
"""An error within this distance of the window's end may come from a truncated value; no JSON literal is longer."""
SPACE = " \t\r\n"
_SPACE = re.compile(r"[ \t\r\n]*")


class _Decoder:
    """The standard library's decoder, extended to report numbers that do not fit a float."""

    def __init__(self) -> None:
        self._fast = msgspec.json.Decoder()
        self._odd: list[str] = []
        self._decoder = json.JSONDecoder(parse_float=self._float, parse_constant=self._odd_constant)

    def _float(self, text: str) -> float:
        value = float(text)
        if value in (float("inf"), float("-inf")):
            self._odd.append(text[:40])
        return value

    def _odd_constant(self, text: str) -> None:
        self._odd.append(text)

    def whole(self, line: bytes, source: Source) -> Record | None:
        """Return the value if it fills the whole line, at twice the speed; None if `decode` must find out what the line
        contains.

        msgspec rejects everything that `decode` rejects; what it accepts, both decoders read alike.
        """
        try:
            return Record(self._fast.decode(line), source)
        except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
            return None

    def decode(self, text: str, at: int, source: Source) -> tuple[Record | Failure, int]:
        """Return the value at position `at` and the position of its end. Raises ValueError or RecursionError if there
        is none."""
        self._odd.clear()
        value, end = self._decoder.raw_decode(text, at)
        if self._odd:
            why = f"contains the number {self._odd[0]}, which is not finite or too large for a float"
            return Failure(source, "not_finite", why), end
        if (text.find("\\ud", at, end) >= 0 or text.find("\\uD", at, end) >= 0) and not _encodes(value):
            return Failure(source, "lone_surrogate", "contains half of a surrogate pair, which is not valid text"), end
        return Record(value, source), end


def _encodes(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def read_values(stream: IO[bytes], file: str, max_bytes: int) -> Iterator[Record | Failure]:
    """Yield every record of one stream, in order. An empty stream is one failure.

    Args:
        stream: a binary stream, read once from its start.
        file: the file's name for messages; `.jsonl` and `.ndjson` are read by lines.
        max_bytes: the size limit of a record; a larger one is a failure.
    """
    head = stream.read(CHUNK)
    if not head.strip().removeprefix(codecs.BOM_UTF8).strip():
        rest = head
        while rest and not rest.strip():
            rest = stream.read(CHUNK)
        if not rest or not rest.strip().removeprefix(codecs.BOM_UTF8):
            yield Failure(Source(file=file, position="line 1"), "empty_file", "the file is empty")
            return
        head = head + rest
    by_lines = _by_lines(head, file)
    yield from (_lines if by_lines else _document)(_Stream(stream, head), file, max_bytes)


def _by_lines(head: bytes, file: str) -> bool:
    """Return whether the head of a file looks like one record per line."""
    lines = [line for line in head.split(b"\n") if line.strip()]
    whole = len(head) < CHUNK or len(lines) > 1
    first = lines[0].decode("utf-8-sig", errors="replace").strip()
    complete = whole and _complete(first)
    if inner_name(file.lower()).endswith((".jsonl", ".ndjson")):
        # an indented document under the ending of JSON lines: the second line is no record either
        return complete or len(lines) < 2 or lines[1].lstrip()[:1] in (b"{", b"[")
    return complete and len(lines) > 1


def _complete(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class _Stream:
    """A binary stream whose first bytes were already read."""

    def __init__(self, stream: IO[bytes], head: bytes) -> None:
        self._stream, self._head = stream, head

    def read(self, size: int) -> bytes:
        """Return the bytes that were read ahead, then those of the stream."""
        if self._head:
            head, self._head = self._head, b""
            return head
        return self._stream.read(size)

    def lines(self, max_bytes: int) -> Iterator[tuple[bytes, bool]]:
        """Yield each line with whether it was cut at `max_bytes`; the rest of a cut line is skipped."""
        pending = self._head
        self._head = b""
        *ready, pending = pending.split(b"\n")
        yield from ((line, False) for line in ready)
        while line := self._stream.readline(max_bytes + 1):
            pending += line
            if pending.endswith(b"\n"):
                yield pending[:-1], False
                pending = b""
            elif len(pending) > max_bytes:
                yield pending[:80], True
                while (skipped := self._stream.readline(CHUNK)) and not skipped.endswith(b"\n"):
                    pass
                pending = b""
        if pending:
            yield pending, False


def _lines(stream: _Stream, file: str, max_bytes: int) -> Iterator[Record | Failure]:
    decoder = _Decoder()
    for number, (line, cut) in enumerate(stream.lines(max_bytes), 1):
        source = Source(file=file, position=f"line {number}")
        if cut:
            yield _too_large(source, max_bytes)
            continue
        if (record := decoder.whole(line, source)) is not None:
            yield record
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            yield Failure(source, "not_utf8", f"not valid UTF-8: {error.reason} at byte {error.start}")
            continue
        yield from _values_of_line(decoder, text, source)


def _values_of_line(decoder: _Decoder, text: str, source: Source) -> Iterator[Record | Failure]:
    """Yield the values of one line; several values become several records, each with its position."""
    at, count, where = _skip(text, 0), 0, source
    while at < len(text):
        count += 1
        if count > 1:
            where = Source(file=source.file, position=f"{source.position}, value {count}")
        try:
            outcome, at = decoder.decode(text, at, where)
        except (ValueError, RecursionError) as error:
            yield _failure(where, error)
            return
        yield outcome
        at = _skip(text, at)


class _Window:
    """Hold the text of a stream around the reading position; text behind it is dropped, and text ahead is read when
    needed."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")("surrogateescape")
        self.text, self.at, self.line, self.ended = "", 0, 1, False
        self._column = 0

    def more(self, size: int = CHUNK) -> bool:
        """Read more text; return False at the end of the stream."""
        if self.ended:
            return False
        data = self._stream.read(size)
        self.ended = not data
        self.drop()
        grown = self._decoder.decode(data, final=self.ended)
        self.text += grown
        return bool(grown) or not self.ended

    def drop(self) -> None:
        """Drop the text before the position."""
        self.line += self.text.count("\n", 0, self.at)
        self._column = self.column
        self.text, self.at = self.text[self.at :], 0

    @property
    def column(self) -> int:
        """Return the number of characters of this line before the position."""
        start = self.text.rfind("\n", 0, self.at)
        return self._column + self.at if start < 0 else self.at - start - 1

    def peek(self) -> str:
        """Move to the next character that is not white space and return it; return "" at the end."""
        while True:
            self.at = _skip(self.text, self.at)
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.more():
                return ""

    @property
    def here(self) -> int:
        """Return the line number of the position, counted from 1."""
        return self.line + self.text.count("\n", 0, self.at)

    def resume(self) -> bool:
        """Move to the next line that starts like a record and is not indented deeper than this one; return False if
        there is none."""
        depth = min(self.column, CHUNK)
        mark = re.compile(rf"\n[ \t]{{0,{depth}}},?[ \t]*(?=\{{)")
        skip = self.at + 1
        while True:
            found = mark.search(self.text, skip)
            if found:
                self.at = found.end()
                return True
            self.at = skip = max(0, len(self.text) - depth - 8)
            if not self.more():
                return False
            skip = 0


def _document(stream: _Stream, file: str, max_bytes: int) -> Iterator[Record | Failure]:
    """Yield an array's elements, or the values of a file one after another."""
    window, decoder, count, inside, after = _Window(stream), _Decoder(), 0, False, False
    while (char := window.peek()) != "":
        if not inside and char == "[":
            window.at += 1
            inside, after = True, False
            if window.peek() == "]":
                yield Failure(Source(file=file, position=f"line {window.here}"), "empty_file", "the list is empty")
            continue
        if inside and (char == "]" or (char == "," and after)):
            window.at += 1
            inside, after = char == ",", False  # after a bracket another value may follow
            continue
        count += 1
        outcome = _next(window, decoder, Source(file=file, position=f"record {count}"), max_bytes)
        yield outcome
        after = True
        if isinstance(outcome, Failure) and outcome.reason in BROKEN and not window.resume():
            return
    if inside:
        yield Failure(
            Source(file=file, position=f"line {window.here}"),
            "not_json",
            "the list is not closed: the file is truncated",
        )


BROKEN = ("not_json", "too_deep", "number_too_large", "too_large")
"""Failures after which the reading position is at the start of the record."""


def _next(window: _Window, decoder: _Decoder, source: Source, max_bytes: int) -> Record | Failure:
    """Return the value at the window's position, and on success move past it."""
    while True:
        try:
            outcome, end = decoder.decode(window.text, window.at, source)
        except (ValueError, RecursionError) as error:
            if _may_be_cut(window, error):
                if len(window.text) - window.at > max_bytes:
                    return _too_large(source, max_bytes)
                window.more(max(CHUNK, len(window.text) - window.at))
                continue
            place = window.here
            if isinstance(error, json.JSONDecodeError):
                place = window.line + window.text.count("\n", 0, error.pos)
            return _failure(Source(file=source.file, position=f"line {place}"), error)
        if end >= len(window.text) - TAIL and not window.ended and not isinstance(_value(outcome), dict | list):
            window.more()  # a bare number may go on in the next chunk
            continue
        broken = _not_utf8(window.text, window.at, end, source)
        window.at = end
        return broken or outcome


def _value(outcome: Record | Failure) -> Any:
    return outcome.value if isinstance(outcome, Record) else {}


def _may_be_cut(window: _Window, error: Exception) -> bool:
    if window.ended or not isinstance(error, json.JSONDecodeError):
        return False
    return error.pos >= len(window.text) - TAIL or error.msg.startswith("Unterminated string")


ESCAPED = re.compile("[\udc80-\udcff]")


def _not_utf8(text: str, start: int, end: int, source: Source) -> Failure | None:
    """Return a failure for bytes that are not UTF-8, which appear in the text as lone surrogates."""
    if text.isascii() or not (bad := ESCAPED.search(text, start, end)):
        return None
    byte = ord(bad.group()) - 0xDC00
    return Failure(source, "not_utf8", f"not valid UTF-8: byte 0x{byte:02x}, {bad.start() - start} characters in")


def _skip(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _too_large(source: Source, max_bytes: int) -> Failure:
    return Failure(source, "too_large", f"a record is larger than {max_bytes:,} bytes")


def _failure(source: Source, error: Exception) -> Failure:
    if isinstance(error, RecursionError):
        return Failure(source, "too_deep", "nested too deeply")
    if not isinstance(error, json.JSONDecodeError):
        return Failure(source, "number_too_large", f"contains a number too large to read: {error}")
    return Failure(source, "not_json", f"not valid JSON: {error}")
