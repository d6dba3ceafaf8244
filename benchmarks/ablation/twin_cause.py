"""Measure the pull of hint and twin on the initial student, by class and kind of edit, before any training.

    python -m benchmarks.ablation.twin_cause RUN [--per-kind 25]

RUN is a run folder up to rescore with twins (`train.twins.per_finding`). At the decision token of each accepted hint, against its
accepted twins:

| read | meaning |
|---|---|
| cos | cosine between the gradients of log p(what the hint says instead) − log p(error) in the original and in the twin's context |
| transfer | how far a step along the original's gradient moves the same log-odds in the twin's context, relative to the original's |
| p error, p instead | probability of both tokens without a hint, in the original and in the twin's context |
| pull | norm of the gradient of the hint's loss by the student's logits there, for the default's JSD and for the forward KL |

A high transfer means that the twin must undo what the hint does until the student has learned what tells the contexts apart.
A pull near zero means that the hint does nothing against a twin, however much it weighs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.ablation.markdown import table
from hintdistill.config.file import load_config
from hintdistill.core.scores import Target
from hintdistill.engines.transformers import load_model
from hintdistill.pipeline import rescore
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.recipes import Term
from hintdistill.training.pull import pull_of

JSD = Term.model_validate({"divergence": {"kind": "jsd"}})
FKL = Term.model_validate({"divergence": {"kind": "fkl"}})
COLUMNS = (
    "cos",
    "transfer",
    "p error",
    "p error, twin",
    "p instead",
    "p instead, twin",
    "pull, jsd",
    "pull, fkl",
)


@dataclass(frozen=True)
class Reader:
    """Reads one model at single positions."""

    model: Any

    def log_odds(self, target: Target, position: int, error: int, instead: int) -> tuple[Tensor, Tensor]:
        """Gradient of log p(instead) − log p(error) by all weights, flat, and the log-probabilities of both tokens."""
        ids = np.concatenate([target.context_ids, target.step_ids])[: len(target.context_ids) + position]
        logprobs = self.model(torch.from_numpy(ids)[None]).logits[0, -1].log_softmax(-1)
        odds = logprobs[instead] - logprobs[error]
        grads = torch.autograd.grad(odds, list(self.model.parameters()))
        return torch.cat([g.flatten() for g in grads]), logprobs[[error, instead]].detach()


def readings(targets: Sequence[Target], model: Any, per_kind: int) -> Iterator[tuple[str, str, list[float]]]:
    """Class, kind of edit and the values of `COLUMNS` of each twin, at most `per_kind` of a class and kind."""
    hints = {(t.trace_id, t.step): t for t in targets if t.kind == "hint" and t.accepted and t.decision}
    reader, taken = Reader(model), dict[tuple[str, str], int]()
    for twin in sorted((t for t in targets if t.kind == "twin" and t.accepted), key=lambda t: t.key):
        hint = hints.get((twin.trace_id, twin.step))
        name = (twin.error_class or "-", twin.versions.get("edit", "-").rpartition("/")[2])
        if hint is None or hint.measurement is None or taken.get(name, 0) == per_kind:
            continue
        taken[name] = taken.get(name, 0) + 1
        at, instead = hint.measurement.position, hint.measurement.instead_id
        if at is None or instead is None:
            continue
        tokens = (at, int(hint.step_ids[at]), instead)
        ours, before = reader.log_odds(hint, *tokens)
        theirs, there = reader.log_odds(twin, *tokens)
        dot = float(ours @ theirs)
        pulls = [pull_of(hint, term) or 0.0 for term in (JSD, FKL)]
        p = [float(x.exp()) for x in (before[0], there[0], before[1], there[1])]
        yield (
            *name,
            [dot / float(ours.norm() * theirs.norm()), dot / float(ours @ ours), *p, *pulls],
        )


def main(arguments: list[str] | None = None) -> int:
    """Parse, read, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--per-kind", type=int, default=25, help="twins of each class and kind, at most")
    args = parser.parse_args(arguments)
    rundir = RunDir.open(args.run)
    ctx = RunContext(load_config(args.run / "config.yaml"), rundir, Console(quiet=True))
    model = load_model(ctx.initial_folder, torch.float32, torch.device("cpu")).eval()
    rows: dict[tuple[str, str], list[list[float]]] = {}
    for error_class, kind, values in readings(list(rescore.load(ctx)), model, args.per_kind):
        rows.setdefault((error_class, kind), []).append(values)
    body = [
        [*name, str(len(values)), *(f"{v:.3g}" for v in np.mean(values, axis=0))]
        for name, values in sorted(rows.items())
    ]
    print(table(["class", "edit", "twins", *COLUMNS], body))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
