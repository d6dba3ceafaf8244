"""ToolBench and StableToolBench answers: a search tree of chats in the legacy `function_call` form.

`answer_generation.train_messages` contains the prefixes of the branch that led to the answer, one per model call; other
branches are counted, not read. If a search failed it is empty, and the turns are in the tree: each path to a leaf is a
conversation, and a node is the student's only on the first path that contains it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from hintdistill.core.errors import TraceError, UnreadBranchesError
from hintdistill.core.types import Trace
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.repeats import chains
from hintdistill.traces.turns import build_trace

NAME = "toolbench"
SCOPE: Literal["record"] = "record"


def fits(value: Any) -> bool:
    """Return whether the record is an answer with a tree or tries."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("answer_generation"), dict)
        and ("tree" in value or "trys" in value)
    )


def traces(record: Record, options: ReadOptions) -> Iterator[Trace]:
    """Yield one trace per conversation that is not a prefix of another.

    Raises:
        TraceError: there is no conversation.
        UnreadBranchesError: raised after the traces, if the search has branches that are not read.
    """
    value = record.value
    answer = value["answer_generation"]
    listed = answer.get("train_messages")
    found = chains(listed) if isinstance(listed, list) and listed else chains(_from_tree(value))
    if not found:
        raise TraceError("neither chats nor a tree with a turn of the model in it")
    rest = {k: v for k, v in value.items() if k not in ("tree", "trys", "compare_candidates", "answer_generation")}
    rest |= {"answer_generation": {k: v for k, v in answer.items() if k not in ("train_messages", "function", "chain")}}
    if isinstance(listed, list) and listed:
        rest["given_up"] = _given_up(value, found)
    for n, messages in enumerate(found, 1):
        yield build_trace(
            rest,
            messages,
            record.source,
            options,
            known=set(),
            tools=answer.get("function"),
            suffix=f"/{n}" if len(found) > 1 else "",
            task_id=answer.get("query"),
            reward=value.get("win"),
        )
    if isinstance(listed, list) and listed and (unread := _unread(_from_tree(value), found)):
        raise UnreadBranchesError(
            f"{unread} abandoned branches of the search tree are not read; the answered branch is"
        )


def _unread(paths: list[list[dict[str, Any]]], found: list[list[dict[str, Any]]]) -> int:
    """Return how many paths of the tree make calls that no conversation begins with."""
    read = [_calls(messages) for messages in found]
    return sum(not any(calls == other[: len(calls)] for other in read) for calls in map(_calls, paths))


def _calls(messages: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    made = [m.get("function_call") for m in messages if isinstance(m, Mapping) and m.get("role") == "assistant"]
    return [(c.get("name"), c.get("arguments")) for c in made if isinstance(c, Mapping)]


def _given_up(value: Mapping[str, Any], found: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the turns of abandoned branches, each once: they were tried, but are not part of an answered
    conversation."""
    said = {_key(m) for messages in found for m in messages if isinstance(m, Mapping)}
    left: dict[str, dict[str, Any]] = {}
    for path in _from_tree(value):
        left |= {_key(m): m for m in path if _key(m) not in said}
    return list(left.values())


def _key(message: Mapping[str, Any]) -> str:
    return json.dumps([message.get("content"), message.get("function_call")], sort_keys=True, default=str)


def _from_tree(value: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
    """Return every path of the tree, or the chain of every try, as a conversation after the query."""
    answer = value["answer_generation"]
    query = [{"role": "user", "content": str(answer.get("query") or "")}]
    tree = value.get("tree")
    root = tree.get("tree") if isinstance(tree, Mapping) else None
    paths = list(_paths(root)) if isinstance(root, Mapping) else []
    tries = value.get("trys")
    if isinstance(tries, list):
        paths += [t["chain"] for t in tries if isinstance(t, Mapping) and isinstance(t.get("chain"), list)]
    return [[*query, *turns] for path in paths if (turns := _turns(path))]


def _paths(root: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Yield the paths from root to leaf, depth first, without recursion, because an untrusted tree may be deep."""
    stack: list[tuple[Any, list[Any]]] = [(root, [])]
    while stack:
        node, path = stack.pop()
        children = node.get("children") if isinstance(node, Mapping) else None
        path = [*path, node]
        if isinstance(children, list) and children:
            stack += [(c, path) for c in reversed(children)]
        else:
            yield path


def _turns(path: list[Any]) -> list[dict[str, Any]]:
    """Merge `Thought`, `Action` and `Action Input` nodes into one turn of the model; an input's observation is the
    result."""
    out: list[dict[str, Any]] = []
    turn: dict[str, Any] | None = None
    for node in path:
        if not isinstance(node, Mapping):
            continue
        what, text = node.get("node_type"), node.get("description")
        if what in ("Thought", "Action") and isinstance(text, str):
            if turn is None or (what == "Thought" and turn.get("function_call")):
                turn = {"role": "assistant", "content": None}
                out.append(turn)
            if what == "Thought":
                turn["content"] = text
            else:
                turn["function_call"] = {"name": text, "arguments": ""}
        elif what == "Action Input" and turn is not None and "function_call" in turn:
            turn["function_call"] = {**turn["function_call"], "arguments": text if isinstance(text, str) else ""}
            if isinstance(node.get("observation"), str):
                out.append({"role": "function", "name": turn["function_call"]["name"], "content": node["observation"]})
            turn = None
    return out
