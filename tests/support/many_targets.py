"""Many synthetic targets on disk, and the memory that a process needs to go through them.

`python tests/support/many_targets.py write FOLDER ROWS` writes them with the real store. `… read CACHE_MB FOLDER …` does what a
run does with them between scoring and the report, folder after folder, and prints the peak of resident memory, MB, after each part.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hintdistill.core.scores import Measurement, Placebo, Target
from hintdistill.rescoring.store import TargetStore

F = np.float32
PART = 64
STEP, KEPT, CONTEXT = 48, 32, 256
"""Tokens of a step, kept ids of a token, tokens of a context."""
MEASURED = Measurement(1, 7, -3.25, -0.125, 0.0, -1.5, None, -0.25)


def synthetic(rows: int) -> Iterator[Target]:
    """As many hints as anchors, two steps of each trace; hints first, as the rescore stage stores them."""
    rng = np.random.default_rng(0)
    for number in range(rows):
        kind, trace = ("hint", number) if number < rows // 2 else ("anchor", number - rows // 2)
        own = np.random.default_rng(trace)
        ids = own.integers(3, 500, CONTEXT + 2 * STEP)
        start = CONTEXT if kind == "hint" else CONTEXT + STEP
        sampled = -rng.exponential(1.0, STEP).astype(F)
        logprobs = -rng.exponential(3.0, (STEP, KEPT)).astype(F)
        support = np.sort(rng.permuted(np.tile(np.arange(500), (STEP, 1)), axis=1)[:, :KEPT], axis=1)
        support[:, -1] = ids[start : start + STEP]
        yield Target(
            key=f"{trace:07}-{kind}",
            trace_id=f"trace {trace}",
            step=int(kind == "anchor"),
            kind=kind,
            split="holdout" if trace % 10 == 0 else "train",
            context_ids=ids[:start],
            step_ids=ids[start : start + STEP],
            span=(0, 4),
            support_ids=support,
            teacher_logprobs=logprobs,
            plain_logprobs=logprobs - F(0.5),
            teacher_tail=sampled - F(1),
            plain_tail=sampled - F(2),
            teacher_sampled=sampled - F(0.5) if kind == "hint" else sampled,
            plain_sampled=sampled,
            insert_at=start - 4,
            block_ids=ids[:8] if kind == "hint" else ids[:0],
            error_class="unknown_tool" if kind == "hint" else None,
            hint="Use a tool of the list." if kind == "hint" else None,
            measurement=MEASURED if kind == "hint" else None,
            placebos=(Placebo("generic", "Take care.", sampled, MEASURED),) if kind == "hint" else (),
            accepted=True,
            tokens=tuple(f"t{i}" for i in range(STEP)),
            instead=tuple(f"i{i}" for i in range(STEP)),
            versions={"weights": "w", "renderer": "r", "engine": "TransformersEngine"},
        )


def write(folder: Path, rows: int) -> None:
    """Write `rows` synthetic targets in parts of 64."""
    store, part = TargetStore(folder), list[Target]()
    for target in synthetic(rows):
        part.append(target)
        if len(part) == PART:
            store.append(part)
            part = []
    store.append(part)


def resident() -> float:
    """The most memory this process ever had, MB."""
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def read(folder: Path, cache_bytes: int) -> dict[str, float]:
    """Select, build the training's data set, take every row of it, and read what a report reads: peak MB after each."""
    from hintdistill.config import GateSection, TrainSection
    from hintdistill.pipeline.train import chosen_anchors
    from hintdistill.rescoring.stored import by_key
    from hintdistill.training import rows
    from hintdistill.training.watch import subsample, watch_rows

    rows.CACHE_BYTES = cache_bytes
    found = {"start": resident()}
    stored = TargetStore(folder).open(gate=GateSection(), cache_bytes=cache_bytes)
    found["open"] = resident()
    usable = stored.where(lambda t: t.accepted and t.split == "train")
    config = TrainSection()
    anchors = chosen_anchors(usable.where(lambda t: t.kind == "anchor"), config, 0)
    watch_rows(subsample(stored.where(lambda t: t.split == "holdout" and t.kind == "anchor"), 64, 0))
    found["select"] = resident()
    chosen = {t.key for t in anchors.heads} | {t.key for t in usable.heads if t.kind == "hint"}
    data = rows.RowDataset(rows.build_rows(by_key(usable.where(lambda t: t.key in chosen)), config))
    found["build"] = resident()
    slots = sum(len(data[i].slots) for i in range(len(data)))
    assert slots == len(chosen), (slots, len(chosen))
    found["train"] = resident()
    hints = stored.where(lambda t: t.kind == "hint")
    assert sum(t.decision is not None and len(t.placebos) == 1 for _, t in hints.by_part()) == len(hints)
    return found | {"report": resident()}


def peaks(*folders: Path, cache_mb: int) -> list[dict[str, float]]:
    """`read` of each folder, one after the other, in a process of its own."""
    command = [sys.executable, __file__, "read", str(cache_mb), *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        peak = [read(Path(folder), int(sys.argv[2]) << 20) for folder in sys.argv[3:]]
        print(json.dumps([{k: round(v, 1) for k, v in p.items()} for p in peak]))
