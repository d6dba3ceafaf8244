"""Claude Code session logs: one event per line, in a tree by `uuid` and `parentUuid`.

One answer of the model is spread over several lines with the same message id; results are in user lines. Rewinds create
branches, subagents are sidechains, and a compaction starts a new context with a summary. Each path is a trace; a turn
on two paths is the student's on the first path only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.formats import anthropic
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.repeats import HELD
from hintdistill.traces.turns import GIVEN, build_trace

NAME = "claude_code"
SCOPE: Literal["file"] = "file"
NOTES = (
    "summary",
    "file-history-snapshot",
    "queue-operation",
    "system",
    "progress",
    "attachment",
    "ai-title",
    "last-prompt",
)
Entry = Mapping[str, Any]


def fits(value: Any) -> bool:
    """Return whether the record is a line of a session."""
    if not isinstance(value, dict):
        return False
    if value.get("type") in ("user", "assistant"):
        message = value.get("message")
        held = not isinstance(message, dict) or "content" in message or "parts" not in message
        return "sessionId" in value and "uuid" in value and "message" in value and held
    return value.get("type") in NOTES and bool({"leafUuid", "messageId", "sessionId"} & set(value))


class _Group:
    """Collect the lines that form one message: an answer's blocks, or the results of its calls."""

    def __init__(self, parent: _Group | None) -> None:
        self.parent = parent
        self.orphan: bool = parent is not None and parent.orphan
        """Whether the session's beginning is missing from the file, so that the context of this message is unknown."""
        self.lines: list[Entry] = []
        self.children = 0
        if parent is not None:
            parent.children += 1

    def path(self) -> list[_Group]:
        """Return the path from the root to this message."""
        out: list[_Group] = []
        at: _Group | None = self
        while at is not None:
            out.append(at)
            at = at.parent
        return out[::-1]


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield one trace per path of the session, main line first. Raises TraceError if there is no turn."""
    skipped: Counter[str] = Counter()
    said: list[Entry] = []
    for line in record.value:
        what = line.get("type") if isinstance(line, Mapping) else None
        if what in ("user", "assistant") and isinstance(line.get("message"), Mapping):
            said.append(line)
        elif what in ("user", "assistant") or not isinstance(what, str):
            place = line.get("uuid") if isinstance(line, Mapping) else None
            yield Failure(
                Source(file=record.source.file, position=f"uuid {place}"),
                "not_a_trace",
                f"a line of type {what!r} without a message",
            )
        else:
            skipped[what] += 1
            if line.get("subtype") == "compact_boundary":
                said.append(line)
    groups = _groups(said)
    if not groups:
        raise TraceError(f"no turn in the session (lines: {dict(skipped)})")
    done: set[int] = set()
    leaves = [g for g in groups if not g.children]
    for n, leaf in enumerate(leaves, 1):
        path = leaf.path()
        source = Source(file=record.source.file, position=f"path {n}" if len(leaves) > 1 else record.source.position)
        try:
            yield _trace(path, done, source, options, f"/{n}" if len(leaves) > 1 else "", dict(skipped))
        except TraceError as error:
            yield Failure.of(source, error)
        done.update(id(g) for g in path)


def _groups(lines: list[Entry]) -> list[_Group]:
    """Return the messages of the session in file order, each knowing its parent."""
    by_uuid: dict[str, _Group] = {}
    by_answer: dict[tuple[Any, ...], _Group] = {}
    results: dict[int, _Group] = {}
    last: dict[Any, _Group] = {}
    groups: list[_Group] = []
    boundary, session = False, "None"
    for line in lines:
        session = str(line.get("sessionId") or session)  # a line that does not say it is of the session around it
        if "message" not in line:
            boundary = True
            continue
        lane = (session, bool(line.get("isSidechain")), str(line.get("agentId")))
        parent = by_uuid.get(str(line.get("parentUuid")))
        fresh = boundary or line.get("isCompactSummary")
        if parent is None and not fresh:
            parent = last.get(lane)  # logs without a tree are in order
        lost = parent is None and not fresh and bool(line.get("parentUuid")) and bool(groups)
        parent = groups[-1] if lost else parent
        boundary = False
        key = (
            (lane, str(line["message"].get("id")))
            if line["type"] == "assistant" and line["message"].get("id")
            else None
        )
        group = by_answer.get(key) if key else None
        if group is None and parent is not None and _is_result(line):
            group = results.get(id(parent))
        if group is None:
            group = _Group(parent)
            group.orphan = group.orphan or lost
            groups.append(group)
            if key:
                by_answer[key] = group
            if parent is not None and _is_result(line):
                results[id(parent)] = group
        group.lines.append(line)
        if line.get("uuid"):
            by_uuid[str(line["uuid"])] = group
        last[lane] = group
    return groups


def _is_result(line: Entry) -> bool:
    content = line["message"].get("content")
    return (
        line["type"] == "user"
        and isinstance(content, list)
        and any(isinstance(b, Mapping) and b.get("type") == "tool_result" for b in content)
    )


def _trace(
    path: list[_Group], done: set[int], source: Source, options: ReadOptions, suffix: str, skipped: dict[str, int]
) -> Trace:
    messages = [m for g in path for m in _messages(g, id(g) in done)]
    head = path[0].lines[0]
    named = (line["message"].get("model") for g in path for line in g.lines if not _is_synthetic(line))
    model = next((m for m in named if m), None)
    kept = {k: head[k] for k in ("cwd", "gitBranch", "version", "agentId") if head.get(k)}
    if skipped:
        kept["skipped_lines"] = skipped
    if any(line.get("isSidechain") for g in path for line in g.lines):
        kept["sidechain"] = True
    record = {"trace_id": str(head.get("sessionId") or source.position), **kept}
    return build_trace(record, messages, source, options, known={"trace_id"}, suffix=suffix, model=model)


def _messages(group: _Group, seen: bool) -> list[dict[str, Any]]:
    first = group.lines[0]
    if first["type"] == "user":
        return [m for line in group.lines for m in anthropic.split({**line["message"], "role": "user"}, 0)]
    blocks: list[Any] = []
    for line in group.lines:
        content = line["message"].get("content")
        for block in content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []:
            _take(blocks, block)
    made = anthropic.split({"role": "assistant", "content": blocks, "id": first["message"].get("id")}, 0)
    if _is_synthetic(first):
        return [{**m, GIVEN: "written by the tool, not by the model"} for m in made]
    reason = "the beginning of its session is not in the file" if group.orphan else HELD if seen else None
    return [{**m, GIVEN: reason} for m in made] if reason else made


def _is_synthetic(line: Entry) -> bool:
    """Return whether the tool wrote the line in place of the model, e.g. to report an error of the API."""
    return line["message"].get("model") == "<synthetic>" or bool(line.get("isApiErrorMessage"))


def _take(blocks: list[Any], block: Any) -> None:
    """Add a block. A block that an earlier line already contains or begins is added once, in its latest state."""
    for i, held in enumerate(blocks):
        if not isinstance(block, Mapping) or not isinstance(held, Mapping) or held.get("type") != block.get("type"):
            continue
        if held == block or ("id" in block and held.get("id") == block["id"]):
            blocks[i] = block
            return
        for key in ("text", "thinking"):
            old, new = held.get(key), block.get(key)
            if isinstance(old, str) and isinstance(new, str) and old and new:
                if new.startswith(old):
                    blocks[i] = block
                    return
                if old.startswith(new):
                    return
    blocks.append(block)
