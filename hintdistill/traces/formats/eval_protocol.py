"""eval-protocol recordings: one line per step of an environment, `{env_index, step, messages so far}`, episodes interleaved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Source, Trace
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.repeats import chains
from hintdistill.traces.turns import build_trace

NAME = "eval_protocol"
SCOPE: Literal["file"] = "file"


def fits(value: Any) -> bool:
    """Return whether the record has the three keys of such a line."""
    return isinstance(value, dict) and {"env_index", "step"} <= set(value) and isinstance(value.get("messages"), list)


def traces(record: Record, options: ReadOptions) -> Iterator[Trace | Failure]:
    """Yield one trace per episode, made of its longest chain."""
    episodes: dict[str, list[dict[str, Any]]] = {}
    for line in record.value:
        if fits(line):
            episodes.setdefault(str(line["env_index"]), []).append(line)
        else:
            yield Failure(
                record.source, "not_a_trace", "among the lines of episodes, a line without env_index, step and messages"
            )
    for index, lines in episodes.items():
        source = Source(file=record.source.file, position=f"episode {index}")
        conversations = chains([line["messages"] for line in lines])
        last = {k: v for k, v in lines[-1].items() if k != "messages"}
        for n, messages in enumerate(conversations, 1):
            try:
                yield build_trace(
                    last,
                    messages,
                    source,
                    options,
                    known={"messages", "reward", "task_id"},
                    tools=lines[-1].get("tools"),
                    suffix=f"/{n}" if len(conversations) > 1 else "",
                    reward=_reward(lines),
                    task_id=last.get("task_id"),
                )
            except TraceError as error:
                yield Failure.of(source, error)


def _reward(lines: list[dict[str, Any]]) -> Any:
    """Return the reward of the last message that records one."""
    for line in reversed(lines):
        for message in reversed(line["messages"]):
            note = message.get("control_plane_step") if isinstance(message, dict) else None
            if isinstance(note, dict) and note.get("reward") is not None:
                return note["reward"]
    return lines[-1].get("reward")
