"""BFCL's tasks of at most one call with a short list of functions, for a student as small as `warm_up.py` makes one.

    rollout.environment=examples/bfcl/bfcl_short.py:SHORT

`train` and `validation` have requests that need a call and requests that need none, `test` those that need one; `irrelevance` is the
package's whole category, in which none is right.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bfcl_compare import right_calls
from bfcl_data import entries, fraction, splits
from bfcl_rows import usable, written
from bfcl_suite import DECLINE, Calls, opening

MOST = 1000
"""Characters of a request and its functions, about 260 tokens of a small vocabulary."""


class Short(Calls):
    """The short tasks, in an order of their own that a hash draws, so that the first n are a sample of all."""

    def __init__(self) -> None:
        """The functions are written into the system prompt."""
        super().__init__(as_text=True)

    def splits(self) -> dict[str, Sequence[str]]:
        """Task ids by split."""
        return {name: list(ids) for name, ids in _drawn().items()}

    def right_text(self, task: str) -> str:
        """The right answer to a task, as a student writes it."""
        return written(right_calls(entries()[task])) or DECLINE


@cache
def _drawn() -> dict[str, tuple[str, ...]]:
    def short(task: str) -> bool:
        entry = entries()[task]
        return usable(entry) and sum(len(m.content or "") for m in opening(entry, as_text=True)) <= MOST

    found = {name: [i for i in splits()[name] if short(i)] for name in ("train", "validation", "test")}
    found["test"] = [i for i in found["test"] if entries()[i].answer]
    found["irrelevance"] = list(splits()["irrelevance"])
    return {name: tuple(sorted(ids, key=lambda i: fraction(f"short {i}"))) for name, ids in found.items()}


SHORT = Short()
