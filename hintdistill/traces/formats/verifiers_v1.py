"""verifiers v1 `traces.jsonl`: an episode as a graph of messages; each path from the root to a leaf is one trace.

A node is `{parent, message, sampled, token_ids, mask, logprobs}`. A node lists only the token ids that it adds to its
parent's; ids at which `mask` is set were sampled. Branches share their trunk, so a node is the student's only on the
first path that contains it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError
from hintdistill.core.types import Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.turns import GIVEN, build_trace
from hintdistill.traces.values import kind, listed

NAME = "verifiers_v1"
SCOPE: Literal["record"] = "record"
Node = Mapping[str, Any]


def fits(value: Any) -> bool:
    """Return whether the record has a list of nodes with a parent and a message."""
    nodes = value.get("nodes") if isinstance(value, dict) else None
    return (
        isinstance(nodes, list)
        and bool(nodes)
        and isinstance(nodes[0], dict)
        and {"parent", "message"} <= set(nodes[0])
    )


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield one trace per leaf. Raises TraceError if the graph is invalid."""
    value = record.value
    nodes = [_node(n, i) for i, n in enumerate(value["nodes"])]
    parents = [_parent(n, i) for i, n in enumerate(nodes)]
    leaves = sorted(set(range(len(nodes))) - {p for p in parents if p is not None})
    task = value.get("task")
    task_id = task.get("id", task.get("idx")) if isinstance(task, Mapping) else task
    task_id = task_id if isinstance(task_id, str | int) else value.get("task_id", value.get("example_id"))
    known = {"nodes", "tools", "id", "trace_id", "reward", "task_id", "example_id", "model"}
    done: set[int] = set()
    for n, leaf in enumerate(leaves, 1):
        path: list[int] = []
        at: int | None = leaf
        while at is not None:
            path.append(at)
            at = parents[at]
        path.reverse()
        yield build_trace(
            value,
            _messages(nodes, path, done),
            record.source,
            options,
            known=known,
            tools=value.get("tools"),
            suffix=f"/{n}" if len(leaves) > 1 else "",
            reward=value.get("reward", _total(value.get("rewards"))),
            task_id=task_id,
            model=value.get("model"),
        )
        done.update(path)


def _total(rewards: Any) -> float | None:
    """Return the sum of a dict of rewards, each a number or `{value, weight}`."""
    if not isinstance(rewards, Mapping) or not rewards:
        return None
    total = 0.0
    for item in rewards.values():
        score, weight = (item.get("value"), item.get("weight", 1.0)) if isinstance(item, Mapping) else (item, 1.0)
        if not isinstance(score, int | float) or not isinstance(weight, int | float):
            return None
        total += score * weight
    return total


def _node(value: Any, index: int) -> Node:
    if not isinstance(value, Mapping) or not isinstance(value.get("message"), Mapping):
        raise TraceError(f"node {index} is {kind(value)} without a message")
    return value


def _parent(node: Node, index: int) -> int | None:
    """Return the index of a node's parent, which comes before its child, so that paths end."""
    parent = node.get("parent")
    if parent is None or parent == -1:
        return None
    if not isinstance(parent, int) or not 0 <= parent < index:
        raise TraceError(f"node {index} has the parent {parent!r}, which is not before it")
    return parent


def _messages(nodes: list[Node], path: list[int], done: set[int]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    before: list[int] = []
    complete = True
    for i in path:
        node = nodes[i]
        message = {k: v for k, v in node["message"].items() if v is not None}
        ids, mask, logprobs = (listed(node.get(k)) for k in ("token_ids", "mask", "logprobs"))
        sampled = bool(node.get("sampled")) or any(mask)
        if message.get("role") == "assistant" and (i in done or ("sampled" in node and not sampled)):
            message[GIVEN] = True
        if sampled and ids and complete:
            head = next((k for k, m in enumerate(mask) if m), 0) if len(mask) == len(ids) else 0
            message["prompt_token_ids"] = [*before, *ids[:head]]
            message["token_ids"] = ids[head:]
            # one log-probability per id of the node, or one per sampled id
            tail = logprobs[head:] if len(logprobs) == len(ids) else logprobs
            if tail and len(tail) == len(ids) - head:
                message["logprobs"] = tail
        before += ids
        complete = complete and bool(ids)
        out.append(message)
    return out
