"""verifiers v0 `results.jsonl` and prime-rl `train_rollouts.jsonl`: `{example_id, prompt, completion, reward, …}`, one
per line.

Messages in `prompt` count as given; messages in `completion` are the run. Newer rows have token ids under `tokens`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.formats.openai_chat import given, loads
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import build_trace

NAME = "verifiers"
SCOPE: Literal["record"] = "record"


def fits(value: Any) -> bool:
    """Return whether the record has a prompt, a completion and an example's number."""
    return isinstance(value, dict) and "completion" in value and "prompt" in value and "example_id" in value


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield the one trace of a row. Raises TraceError."""
    value = record.value
    prompt, answer = loads(value["prompt"]), loads(value["completion"])
    if isinstance(prompt, str):
        prompt = [{"role": "user", "content": prompt}]
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    if not isinstance(prompt, list) or not isinstance(answer, list):
        raise TraceError("`prompt` and `completion` must be messages or text")
    known = {"prompt", "completion", "reward", "example_id", "tools", "oai_tools", "id", "trace_id", "task_id", "model"}
    info = value.get("info")
    tools = (
        value.get("oai_tools") or value.get("tools") or (info.get("oai_tools") if isinstance(info, Mapping) else None)
    )
    yield build_trace(
        value,
        [*given(prompt), *_with_tokens(answer, value.get("trajectory"))],
        record.source,
        options,
        known=known,
        tools=tools,
        reward=value.get("reward"),
        task_id=value.get("task_id", value["example_id"]),
        model=value.get("model"),
    )


def _with_tokens(messages: list[Any], steps: Any) -> list[Any]:
    """Add the token ids of `trajectory[].tokens`, one entry per assistant turn, if the row has them."""
    turns = [i for i, m in enumerate(messages) if isinstance(m, dict) and m.get("role") == "assistant"]
    if not isinstance(steps, list) or len(steps) != len(turns):
        return messages
    out = list(messages)
    for i, step in zip(turns, steps, strict=True):
        tokens = step.get("tokens") if isinstance(step, Mapping) else None
        if isinstance(tokens, Mapping) and tokens.get("completion_ids"):
            out[i] = {
                **out[i],
                "prompt_token_ids": tokens.get("prompt_ids"),
                "token_ids": tokens["completion_ids"],
                "logprobs": tokens.get("completion_logprobs"),
            }
    return out
