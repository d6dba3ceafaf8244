"""Write the table of splits into docs/bfcl.md.

python examples/bfcl/bfcl_splits.py
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from bfcl_data import entries, splits, talks  # noqa: E402

from benchmarks.blocks import put  # noqa: E402

MARKS = "<!-- splits: made by examples/bfcl/bfcl_splits.py -->", "<!-- end of splits -->"
TURNS = "multi_turn_"


def table() -> str:
    """Tasks by split and category, and the functions of each split."""
    lines = ["| suite | split | tasks | functions or APIs | by category |", "|---|---|---|---|---|"]
    for split, ids in splits().items():
        if split.startswith(TURNS):
            found = [talks()[i] for i in ids]
            suite, names = "TURNS", ", ".join(sorted({t.main_class for t in found}))
        else:
            found = [entries()[i] for i in ids]
            suite, names = "CALLS", f"{len({n for e in found for n in e.names}):,}"
        counted = Counter(t.category.removeprefix(TURNS) for t in found)
        shown = ", ".join(f"{name} {n}" for name, n in sorted(counted.items()))
        lines.append(f"| {suite} | {split.removeprefix(TURNS)} | {len(ids):,} | {names} | {shown} |")
    return "\n".join(lines)


if __name__ == "__main__":
    put(ROOT / "docs" / "bfcl.md", *MARKS, table())
