"""Find the traces that belong to one task, so that a task is either trained on or held out, never both.

A trace belongs to the task that its source names; without a name, traces with the same tools and first user message
belong together. First messages that differ only slightly (a date, white space, a corrected typo) are one task: the
overlap of their three-word runs is estimated by MinHash (Broder 1997) with banding, and then confirmed exactly. Runs
that most tasks share are a prompt's template and are ignored; otherwise all tasks of an environment would be one.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable

from hintdistill.core.types import Trace

SIMILAR = 0.8
"""Jaccard overlap from which two first messages count as one task."""
SHARED = 0.5
"""A run of words that occurs in more than this share of the tasks counts as template."""
BANDS, ROWS = 24, 4
RUN = 3
_WORD = re.compile(r"\w+|[^\w\s]")
_MERSENNE = (1 << 61) - 1


def group_key(trace: Trace) -> str:
    """Return the task a trace names, else a hash of its tools and its first user message."""
    if trace.task_id is not None:
        return f"task:{trace.task_id}"
    parts = [sorted(trace.tool_schemas), first_message(trace)]
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return "hash:" + hashlib.sha256(text.encode()).hexdigest()[:24]


def first_message(trace: Trace) -> str:
    """Return the best available description of the task: the first user message, else the system prompt."""
    for role in ("user", "system"):
        found = next((m.content for m in trace.messages if m.role == role and m.content), None)
        if found is not None:
            return found
    return ""


def group_traces(traces: Iterable[Trace]) -> list[str]:
    """Return the group of each trace; near-duplicates among tasks without a name share the smallest of their keys."""
    grouper = Grouper()
    for trace in traces:
        grouper.add(trace)
    return grouper.groups()


class Grouper:
    """Group traces that arrive one at a time. Only a key per trace, and the runs of words of each task without a name,
    are kept in memory."""

    def __init__(self) -> None:
        self._keys: list[str] = []
        self._unnamed: dict[str, frozenset[int]] = {}

    def add(self, trace: Trace) -> None:
        """Take in the next trace."""
        key = group_key(trace)
        self._keys.append(sys.intern(key))
        if key.startswith("hash:"):
            # the newest counts, as all traces of a key have the same first message and tools
            self._unnamed[key] = _runs(trace)

    def groups(self) -> list[str]:
        """Return the group of each trace, in order of arrival."""
        merged = _merge(dict(sorted(self._unnamed.items())))
        return [merged.get(k, k) for k in self._keys]


def _runs(trace: Trace) -> frozenset[int]:
    """Return digests of a first message's runs of words."""
    words = _WORD.findall(first_message(trace).casefold())
    tools = "\0".join(sorted(trace.tool_schemas))
    runs = {tools + "\1" + " ".join(words[i : i + RUN]) for i in range(max(1, len(words) - RUN + 1))}
    return frozenset(map(_digest, runs))


def _digest(run: str) -> int:
    return int.from_bytes(hashlib.blake2b(run.encode(), digest_size=7).digest(), "big")


def _merge(runs: dict[str, frozenset[int]]) -> dict[str, str]:
    """Map each key to the smallest key among its near-duplicates."""
    common = Counter(r for found in runs.values() for r in found)
    template = {r for r, n in common.items() if n > max(2, SHARED * len(runs))}
    told = {k: own if (own := found - template) else found for k, found in runs.items()}
    parent = {k: k for k in runs}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    buckets: dict[tuple[int, tuple[int, ...]], list[str]] = {}
    for key, found in told.items():
        signature = _minhash(found)
        for band in range(BANDS):
            buckets.setdefault((band, signature[band * ROWS : (band + 1) * ROWS]), []).append(key)
    for keys in buckets.values():
        for other in keys[1:]:
            a, b = root(keys[0]), root(other)
            if a != b and _overlap(told[keys[0]], told[other]) >= SIMILAR:
                parent[max(a, b)] = min(a, b)
    return {k: root(k) for k in runs}


def _overlap(a: frozenset[int], b: frozenset[int]) -> float:
    return len(a & b) / len(a | b) if a or b else 1.0


def _minhash(digests: frozenset[int]) -> tuple[int, ...]:
    """Return the minimum of each of BANDS × ROWS hashes; each hash is a linear map of a fixed digest, and is the same
    in every process."""
    return tuple(min((a * d + b) % _MERSENNE for d in digests) for a, b in _MAPS)


_MAPS = [
    (
        int.from_bytes(hashlib.blake2b(f"a{i}".encode(), digest_size=7).digest(), "big") | 1,
        int.from_bytes(hashlib.blake2b(f"b{i}".encode(), digest_size=7).digest(), "big"),
    )
    for i in range(BANDS * ROWS)
]
