"""Qwen Code session logs: one event per line in a tree by `uuid`, with messages as Gemini `parts`.

The envelope is the same as in Claude Code's logs; the messages differ. Notes of the tool itself (`system` lines,
telemetry) are only counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.formats.observed import Messages, messages_in
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.repeats import HELD
from hintdistill.traces.turns import GIVEN, build_trace

NAME = "qwen_code"
SCOPE: Literal["file"] = "file"
SAID = ("user", "assistant", "tool_result")


def fits(value: Any) -> bool:
    """Return whether the record is a line of a session whose message has parts."""
    if not isinstance(value, dict) or not {"sessionId", "uuid"} <= value.keys():
        return False
    message = value.get("message")
    return isinstance(message, dict) and isinstance(message.get("parts"), list) and "content" not in message


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield one trace per path of the session, in file order. Raises TraceError if there is no turn."""
    skipped: Counter[str] = Counter()
    lines: dict[str, Mapping[str, Any]] = {}
    parents: dict[str, str | None] = {}
    last: str | None = None
    for n, line in enumerate(record.value):
        if (
            not isinstance(line, Mapping)
            or line.get("type") not in SAID
            or not isinstance(line.get("message"), Mapping)
        ):
            skipped[str(line.get("type")) if isinstance(line, Mapping) else "not an object"] += 1
            if isinstance(line, Mapping) and line.get("uuid"):
                # a note in the tree: what hangs on it hangs on what is above it
                parents[str(line["uuid"])] = _known(line.get("parentUuid"), lines, parents) or last
            continue
        key = str(line.get("uuid") or f"line {n}")
        parents[key] = _known(line.get("parentUuid"), lines, parents) or (last if "parentUuid" not in line else None)
        lines[key] = line
        last = key
    if not lines:
        raise TraceError(f"no turn in the session (lines: {dict(skipped)})")
    above = {parents[key] for key in lines}
    leaves = [key for key in lines if key not in above]
    done: set[str] = set()
    for n, leaf in enumerate(leaves, 1):
        path = _path(leaf, parents)
        source = Source(file=record.source.file, position=f"path {n}" if len(leaves) > 1 else record.source.position)
        try:
            yield _trace(
                [(lines[k], k in done) for k in path], source, options, f"/{n}" if len(leaves) > 1 else "", skipped
            )
        except TraceError as error:
            yield Failure.of(source, error)
        done.update(path)


def _known(parent: Any, lines: Mapping[str, Any], parents: Mapping[str, str | None]) -> str | None:
    """Return the message that a parent's id refers to; the id of a note refers to the message above it."""
    return str(parent) if str(parent) in lines else parents.get(str(parent))


def _path(leaf: str, parents: Mapping[str, str | None]) -> list[str]:
    out: list[str] = []
    at: str | None = leaf
    while at is not None and at not in out:
        out.append(at)
        at = parents.get(at)
    return out[::-1]


def _trace(
    path: list[tuple[Mapping[str, Any], bool]],
    source: Source,
    options: ReadOptions,
    suffix: str,
    skipped: Mapping[str, int],
) -> Trace:
    messages = [m for line, seen in path for m in _messages(line, seen)]
    head = path[0][0]
    kept = {k: head[k] for k in ("cwd", "gitBranch", "version") if head.get(k)}
    if skipped:
        kept["skipped_lines"] = dict(skipped)
    model = next((line["model"] for line, _ in path if isinstance(line.get("model"), str)), None)
    record = {"trace_id": str(head.get("sessionId") or source.position), **kept}
    return build_trace(record, messages, source, options, known={"trace_id"}, suffix=suffix, model=model)


def _messages(line: Mapping[str, Any], seen: bool) -> Messages:
    role = "assistant" if line["type"] == "assistant" else "user"
    found = messages_in({**line["message"], "role": role}, role)
    return [{**m, GIVEN: HELD} if seen and m.get("role") == "assistant" else m for m in found]
