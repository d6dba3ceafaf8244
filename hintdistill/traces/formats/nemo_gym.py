"""NeMo Gym rollouts: `{responses_create_params, response: {output}, reward}`, with token ids on the items if they were
kept.

The items in `responses_create_params.input` are the task, so their assistant turns count as given. A record's `id`
names its task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.formats import openai_responses
from hintdistill.traces.options import ReadOptions, Record

NAME = "nemo_gym"
SCOPE: Literal["record"] = "record"
TASK_KEYS = ("task_id", "instance_id", "problem_id", "uuid", "_ng_task_index", "task_idx")


def fits(value: Any) -> bool:
    """Return whether the record has the two keys that every rollout has."""
    return isinstance(value, dict) and isinstance(value.get("responses_create_params"), dict) and "response" in value


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the traces of one rollout. Raises TraceError."""
    value = record.value
    asked, response = value["responses_create_params"], value["response"]
    if not isinstance(response, Mapping):
        raise TraceError("a rollout without a response: the run failed or is still going")
    asked = {k: v for k, v in asked.items() if v not in (None, [], {})}
    rest = {("record_id" if k == "id" else k): v for k, v in value.items() if k != "responses_create_params"}
    flat = {**rest, "request": asked}
    if isinstance(asked.get("instructions"), str):
        flat["instructions"] = asked["instructions"]
    used = frozenset({"request"} if set(asked) <= {"input", "tools", "instructions"} else ())
    asked = {k: v for k, v in asked.items() if k not in ("input", "tools", "instructions")}
    if not used:
        flat["request"] = asked
    yield from openai_responses.conversation(
        flat,
        _asked(value["responses_create_params"]),
        response,
        record.source,
        options,
        reward=value.get("reward"),
        task_id=_task(value),
        used=used,
        tools=value["responses_create_params"].get("tools"),
        prompted=True,
    )


def _asked(params: Mapping[str, Any]) -> Any:
    """Return the task's input. If it is empty, return the task's text from the metadata, which the harness rephrased
    for the student."""
    read, metadata = params.get("input"), params.get("metadata")
    if read or not isinstance(metadata, Mapping):
        return read
    for key in ("problem_statement", "question", "prompt", "instruction"):
        if isinstance(metadata.get(key), str) and metadata[key]:
            place = f"responses_create_params.metadata.{key}"
            return [{"role": "user", "content": metadata[key], "read_from": place}]
    return read


def _task(value: Mapping[str, Any]) -> str | None:
    """Return the name of the task, which is searched for in the record, its metadata and its verifier's metadata."""
    metadata = value["responses_create_params"].get("metadata")
    for place in (metadata, value.get("verifier_metadata"), value):
        if isinstance(place, Mapping):
            for key in TASK_KEYS:
                if isinstance(place.get(key), str | int) and not isinstance(place[key], bool):
                    agent = value.get("agent_ref")
                    name = agent.get("name") if isinstance(agent, Mapping) else None
                    # an index is the task's only among the tasks of its environment
                    return f"{name}:{place[key]}" if key in ("_ng_task_index", "task_idx") and name else str(place[key])
    return None
