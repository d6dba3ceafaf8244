"""rLLM episodes: `{id, task, trajectories: [{name, steps: [{chat_completions, model_response, prompt_ids, response_ids, …}]}]}`.

A step's `chat_completions` is the conversation up to and including its answer, so the last one is the longest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.repeats import chains
from hintdistill.traces.turns import build_trace
from hintdistill.traces.values import kind

NAME = "rllm"
SCOPE: Literal["record"] = "record"


def fits(value: Any) -> bool:
    """Return whether the record is an episode with trajectories, or one trajectory, whose steps have chat
    completions."""
    return (
        isinstance(value, dict)
        and ("trajectories" in value or "steps" in value)
        and any(
            isinstance(s, dict) and "chat_completions" in s for t in _trajectories(value) for s in t.get("steps") or ()
        )
    )


def _trajectories(value: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = value.get("trajectories")
    found = listed if isinstance(listed, list) else [value] if isinstance(value.get("steps"), list) else []
    return [t for t in found if isinstance(t, Mapping) and isinstance(t.get("steps"), list)]


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield one trace per trajectory, or several if its conversation was reset. Raises TraceError."""
    value = record.value
    trajectories = _trajectories(value)
    known = {"trajectories", "steps", "id", "trace_id", "task_id", "reward"}
    for n, trajectory in enumerate(trajectories, 1):
        conversations = chains([_conversation(s, i) for i, s in enumerate(trajectory["steps"])])
        for part, messages in enumerate(conversations, 1):
            suffix = f"/{n}" if len(trajectories) > 1 else ""
            suffix += f".{part}" if len(conversations) > 1 else ""
            rest = {k: v for k, v in trajectory.items() if k not in ("steps", "task", "reward")}
            yield build_trace(
                {**value, **({"trajectory": rest} if rest and trajectory is not value else {})},
                messages,
                record.source,
                options,
                known=known,
                suffix=suffix,
                reward=trajectory.get("reward", value.get("reward")),
                task_id=_task(value),
                tools=value.get("tools"),
            )


def _task(value: Mapping[str, Any]) -> Any:
    task = value.get("task")
    found = task.get("id", task.get("task_id")) if isinstance(task, Mapping) else None
    if found is None and isinstance(value.get("id"), str) and ":" in value["id"]:
        return value["id"].partition(":")[0]  # rLLM's episode ids are `task:rollout`
    return found if isinstance(found, str | int) else value.get("task_id")


def _conversation(step: Any, index: int) -> list[dict[str, Any]]:
    if not isinstance(step, Mapping) or not isinstance(step.get("chat_completions"), list):
        raise TraceError(f"step {index} is {kind(step)} without chat_completions")
    messages = [dict(m) if isinstance(m, Mapping) else m for m in step["chat_completions"]]
    answered = bool(messages) and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
    if not answered:
        messages.append({"role": "assistant", "content": step.get("model_response")})
    last = messages[-1]
    if step.get("response_ids"):
        last |= {
            "prompt_token_ids": step.get("prompt_ids"),
            "token_ids": step["response_ids"],
            "logprobs": step.get("logprobs"),
        }
    if isinstance(step.get("thought"), str) and step["thought"]:
        last.setdefault("reasoning_content", step["thought"])
    return messages
