"""ATIF 1.0-1.8 trajectories (Harbor, Terminal-Bench, NeMo Agent Toolkit), through the `atif` package.

The package's models decide what is valid; keys they do not know are kept. Observations are inside the agent's step in
ATIF, and become tool messages after it. Copied context and steps without a model call count as given; embedded
subagents become separate traces.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import ValidationError

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import GIVEN, build_trace

NAME = "atif"
SCOPE: Literal["record"] = "record"
ROLES = {"agent": "assistant", "user": "user", "system": "system"}


def fits(value: Any) -> bool:
    """Return whether the record carries the format's own mark."""
    version = value.get("schema_version") if isinstance(value, dict) else None
    return isinstance(version, str) and version.startswith("ATIF-")


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the trajectory's trace, and one per embedded subagent. Raises TraceError."""
    trajectory, unknown = _validated(record.value)
    yield from _traces(trajectory, unknown, record, options, "")


def _validated(value: Any) -> tuple[Any, dict[str, Any]]:
    """Return the package's Trajectory, and the keys it does not know, by path.

    Raises:
        TraceError: the package is not installed, or the trajectory is invalid; the message names the first invalid
            field.
    """
    try:
        from atif import Trajectory
    except ImportError:
        raise TraceError("ATIF needs the atif package: pip install 'hintdistill[atif]'") from None
    unknown: dict[str, Any] = {}
    for _ in range(2):
        try:
            return Trajectory.model_validate(value), unknown
        except ValidationError as error:
            foreign = [e["loc"] for e in error.errors() if e["type"] == "extra_forbidden"]
            first = next((e for e in error.errors() if e["type"] != "extra_forbidden"), None)
            if first is not None or unknown or not foreign:
                first = first or error.errors()[0]
                raise TraceError(
                    f"invalid ATIF: {'.'.join(map(str, first['loc'])) or 'trajectory'}: {first['msg']}"
                ) from None
            value = copy.deepcopy(value)
            for path in foreign:
                at = value
                for key in path[:-1]:
                    at = at[key] if not isinstance(at, Mapping) or key in at else at
                if isinstance(at, dict) and path[-1] in at:
                    unknown[".".join(map(str, path))] = at.pop(path[-1])
    raise TraceError("invalid ATIF")


def _traces(t: Any, unknown: dict[str, Any], record: Record, options: ReadOptions, suffix: str) -> Iterator[Trace]:
    kept = t.model_dump(mode="json", exclude_none=True, exclude={"steps", "subagent_trajectories"})
    kept["agent"].pop("tool_definitions", None)
    messages = [m for step in t.steps for m in _step(step)]
    key = t.trajectory_id  # a session's id is shared by its segments and siblings
    yield build_trace(
        {**kept, **({"unknown": unknown} if unknown else {}), **({"trace_id": key} if key else {})},
        messages,
        record.source,
        options,
        known={"trace_id", "trajectory_id"},
        tools=t.agent.tool_definitions,
        suffix=suffix,
        model=t.agent.model_name,
        reward=(t.extra or {}).get("reward"),
        task_id=(t.extra or {}).get("task_id"),
    )
    for n, sub in enumerate(t.subagent_trajectories or (), 1):
        yield from _traces(sub, {}, record, options, f"{suffix}/sub{n}")


def _step(step: Any) -> list[dict[str, Any]]:
    kept = step.model_dump(
        mode="json", exclude_none=True, include={"step_id", "timestamp", "extra", "model_name", "llm_call_count"}
    )
    message: dict[str, Any] = {**kept, "role": ROLES[step.source], "content": _text(step.message)}
    if step.source != "agent":
        results = step.observation.results if step.observation else ()
        return [message, *({"role": "system", "content": _text(r.content)} for r in results if r.content is not None)]
    if step.reasoning_content:
        message["reasoning_content"] = step.reasoning_content
    message["tool_calls"] = [
        {"id": c.tool_call_id, "name": c.function_name, "arguments": c.arguments} for c in step.tool_calls or ()
    ]
    if step.metrics is not None:
        message |= {
            "prompt_token_ids": step.metrics.prompt_token_ids,
            "token_ids": step.metrics.completion_token_ids,
            "logprobs": step.metrics.logprobs,
        }
    if step.is_copied_context or step.llm_call_count == 0:
        message[GIVEN] = True
    return [message, *_observed(step)]


def _observed(step: Any) -> list[dict[str, Any]]:
    """Return the results after a step: results of calls as tool messages, others as messages from the environment to
    the agent."""
    out: list[dict[str, Any]] = []
    for result in step.observation.results if step.observation else ():
        refs = [r.model_dump(mode="json", exclude_none=True) for r in result.subagent_trajectory_ref or ()]
        made: dict[str, Any] = {"role": "tool" if step.tool_calls else "user", "content": _text(result.content)}
        if result.source_call_id is not None:
            made["tool_call_id"] = result.source_call_id
        if refs:
            made["subagents"] = refs
        out.append(made)
    return out


def _text(content: Any) -> str | None:
    if content is None or isinstance(content, str):
        return content
    return "".join(p.text if p.type == "text" and p.text is not None else f"[{p.type}]" for p in content)
