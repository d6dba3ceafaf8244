"""The tasks of BFCL as the package bfcl-eval ships them: entries, possible answers, JSON schemas, and fixed splits.

Nothing of the package is executed here; only its data files are read. The package is installed without its dependencies:
`pip install --no-deps -r requirements-bfcl.txt`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError

VERSION = "2026.3.23"
"""Version of bfcl-eval whose data the splits and the tests are of."""
CALLS = ("simple_python", "multiple", "parallel", "parallel_multiple")
"""Categories of one turn with possible answers."""
LIVE_CALLS = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
"""The same, of functions and requests that users sent in."""
NO_CALLS = ("irrelevance", "live_irrelevance")
"""Categories in which any call is wrong."""
SOME_CALL = ("live_relevance",)
"""Some call is right, and the package does not say which."""
TURNS = ("multi_turn_base", "multi_turn_miss_func", "multi_turn_miss_param", "multi_turn_long_context")
"""Categories of several turns."""
MAIN_CLASSES = {
    "GorillaFileSystem": "train",
    "VehicleControlAPI": "train",
    "TradingBot": "validation",
    "TravelAPI": "test",
}
"""Every multi-turn task has exactly one of these APIs, which decides its split. The others (MathAPI, MessageAPI, TicketAPI,
TwitterAPI) come beside one of them and are shared by the splits."""
UNANSWERABLE = ("live_simple_106-63-0", "live_simple_112-68-0", "live_multiple_862-181-3", "live_multiple_964-207-0")
"""Tasks whose possible answers the package's own checker refuses, every one: a required argument has none, or one is not described.
They count as the package has them: nobody gets them right."""
SHARES = (("test", 0.10), ("validation", 0.35))
"""Shares of the groups of single-turn tasks; what is left trains."""
_KINDS = {"dict": "object", "float": "number", "tuple": "array", "hashmap": "object"}


@dataclass(frozen=True)
class Entry:
    """One task of a single turn."""

    id: str
    category: str
    messages: tuple[dict[str, str], ...]
    functions: tuple[dict[str, Any], ...]
    """As the package describes them, with its own names of types."""
    answer: tuple[dict[str, dict[str, list[Any]]], ...] | None
    """The calls that are right, in any order: name → argument → the values that are allowed, `""` where it may be left out. Empty
    where no call is right; None where any call is."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the functions, as they are called."""
        return tuple(f["name"] for f in self.functions)

    @property
    def request(self) -> str:
        """Return the user's last message."""
        return next(m["content"] for m in reversed(self.messages) if m["role"] == "user")


@dataclass(frozen=True)
class Talk:
    """One multi-turn task, over stateful APIs."""

    id: str
    category: str
    turns: tuple[tuple[dict[str, str], ...], ...]
    """What the user says at the beginning of each turn; empty where functions are added instead."""
    classes: tuple[str, ...]
    state: dict[str, Any]
    """The initial state of each API."""
    late: dict[int, tuple[str, ...]]
    """Turn → functions that are not listed before it."""
    answer: tuple[tuple[str, ...], ...]
    """The right calls of each turn, as Python source."""

    @property
    def long_context(self) -> bool:
        """Whether the APIs contain much more data than the task needs."""
        return self.category == "multi_turn_long_context"

    @property
    def main_class(self) -> str:
        """The API that decides the split."""
        (found,) = set(self.classes) & set(MAIN_CLASSES)
        return found


@cache
def data_folder() -> Path:
    """Where the package keeps its data. Raises ConfigError where it is not installed, or is another version."""
    how = "pip install --no-deps -r requirements-bfcl.txt"
    found = importlib.util.find_spec("bfcl_eval")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("examples/bfcl needs the package bfcl-eval", hint=how)
    version = importlib.metadata.version("bfcl-eval")
    if version != VERSION:
        raise ConfigError(f"bfcl-eval is {version}; tasks, answers and splits here are those of {VERSION}", hint=how)
    return Path(next(iter(found.submodule_search_locations))) / "data"


def read(name: str) -> list[dict[str, Any]]:
    """Read the objects of a data file, one per line. Raises ConfigError if the file is missing."""
    path = data_folder() / name
    if not path.is_file():
        raise ConfigError(f"bfcl-eval {VERSION} has no file {path}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


@cache
def entries() -> dict[str, Entry]:
    """Every task of a single turn, by its id."""
    out: dict[str, Entry] = {}
    for category in (*CALLS, *LIVE_CALLS, *NO_CALLS, *SOME_CALL):
        answers = _answers(category) if category in (*CALLS, *LIVE_CALLS) else {}
        for raw in read(f"BFCL_v4_{category}.json"):
            if len(raw["question"]) != 1:
                raise ConfigError(f"{raw['id']} has {len(raw['question'])} turns in a category of one")
            right = () if category in NO_CALLS else None if category in SOME_CALL else tuple(answers[raw["id"]])
            said, listed = tuple(raw["question"][0]), tuple(raw["function"])
            out[raw["id"]] = Entry(raw["id"], category, said, listed, right)
    return out


@cache
def talks() -> dict[str, Talk]:
    """Every multi-turn task, by its id."""
    out: dict[str, Talk] = {}
    for category in TURNS:
        answers = _answers(category)
        for raw in read(f"BFCL_v4_{category}.json"):
            out[raw["id"]] = Talk(
                id=raw["id"],
                category=category,
                turns=tuple(tuple(turn) for turn in raw["question"]),
                classes=tuple(raw["involved_classes"]),
                state=raw["initial_config"],
                late={int(k): tuple(v) for k, v in raw.get("missed_function", {}).items()},
                answer=tuple(tuple(turn) for turn in answers[raw["id"]]),
            )
    return out


def _answers(category: str) -> dict[str, list[Any]]:
    return {a["id"]: a["ground_truth"] for a in read(f"possible_answer/BFCL_v4_{category}.json")}


def schema_of(described: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema for what the package describes: types get their JSON names, `any` is no type, inner schemas likewise."""
    out = {k: v for k, v in described.items() if k not in ("optional", "format")}
    kind = out.get("type")
    if isinstance(kind, str):
        out["type"] = _KINDS.get(kind.lower(), kind.lower())
        if kind.lower() == "any":
            del out["type"]
    if isinstance(out.get("required"), bool):
        del out["required"]
    if isinstance(out.get("properties"), dict):
        out["properties"] = {name: schema_of(inner) for name, inner in out["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = schema_of(out[key])
    return out


def tool_of(function: dict[str, Any]) -> dict[str, Any]:
    """The OpenAI function schema of a function. Arguments that it does not describe are not allowed: the package refuses them."""
    parameters = schema_of(function["parameters"]) | {"additionalProperties": False}
    return {
        "type": "function",
        "function": {"name": function["name"], "description": function["description"], "parameters": parameters},
    }


def group_keys(entry: Entry) -> Iterator[str]:
    """What ties a task to others: the names of its functions, and its family (tasks of users share a function description)."""
    for name in entry.names:
        yield "function " + re.sub(r"\W", "_", name.lower())
    family = re.fullmatch(r".*_\d+-(\d+)-\d+", entry.id)
    if family:
        yield f"family {entry.category} {family[1]}"


def groups(tasks: Iterable[Entry]) -> list[list[Entry]]:
    """Tasks that share a function or a family, directly or through others, together; in the order of their first tasks."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    out: dict[str, list[Entry]] = {}
    listed = list(tasks)
    for entry in listed:
        first, *others = map(root, (f"task {entry.id}", *group_keys(entry)))
        for other in others:
            parent[root(other)] = root(first)
    for entry in listed:
        out.setdefault(root(f"task {entry.id}"), []).append(entry)
    return list(out.values())


def fraction(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12


@cache
def splits() -> dict[str, tuple[str, ...]]:
    """Task ids by split; see docs/bfcl.md. No function name and no family is in two of `train`, `validation` and `test`."""
    named: dict[str, list[str]] = {"train": [], "validation": [], "test": [], "irrelevance": []}
    for group in groups(entries().values()):
        chosen = _split_of(group)
        for entry in group:
            named["irrelevance" if entry.category == "irrelevance" else chosen].append(entry.id)
    for talk in talks().values():
        named.setdefault(f"multi_turn_{MAIN_CLASSES[talk.main_class]}", []).append(talk.id)
    return {split: tuple(sorted(ids, key=_numbered)) for split, ids in named.items()}


def _split_of(group: Sequence[Entry]) -> str:
    # the split `irrelevance` is measured whole, so nothing that shares a function with it is trained or validated on
    if any(entry.category == "irrelevance" for entry in group):
        return "test"
    at = fraction("split " + min(entry.id for entry in group))
    for split, share in SHARES:
        if at < share:
            return split
        at -= share
    return "train"


def _numbered(name: str) -> tuple[str, list[int]]:
    category, _, number = name.rpartition("_")
    return category, [int(n) for n in number.split("-")]
