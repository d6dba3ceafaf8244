"""Train on stored targets without this package: pyarrow reads the rows, torch computes the loss.

    hintdistill run configs/quickstart.yaml --until rescore run.dir=runs/demo
    python examples/foreign_trainer.py runs/demo/targets examples/toolworld/student [--steps 20] [--out trained]

Per row: check that the context is the one the row was made for, run the student over context and step, and take
KL(teacher ‖ student) over the support and the tail, weighted by token. Hints move the student; anchors, steps of hold traces and
twins hold it: their teacher is the initial policy, their whole step carries loss where that policy was sure, and a twin's quote
always. `docs/targets.md` explains every column. Last line: one JSON object with the rows of each kind and the loss before and
after, nats per weighted token.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from transformers import AutoModelForCausalLM

SCHEMA = b"3"
KINDS = ("hint", "anchor", "hold", "twin")
SURE = 0.5
"""Probability that the initial policy gave a token which is held."""


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Accepted rows of every part."""
    rows = []
    for part in sorted(folder.glob("part-*.parquet")):
        if (pq.read_schema(part).metadata or {}).get(b"hintdistill.targets") != SCHEMA:
            raise SystemExit(f"{part} is not a target file of schema {SCHEMA.decode()}")
        rows += [r for r in pq.read_table(part).to_pylist() if r["accepted"] and r["kind"] in KINDS]
    for row in rows:
        digest = hashlib.sha256(np.asarray(row["context_ids"], "<i4").tobytes()).hexdigest()
        if digest != row["context_sha256"] or row["first_position"] != len(row["context_ids"]):
            raise SystemExit(f"row {row['key']}: this is not the context its target was made for")
    return rows


def token_weights(row: dict[str, Any]) -> list[float]:
    """Weight of each token: of a hint the quote, of what is held the tokens that the initial policy was sure of."""
    weights = row["token_weights"]
    if row["kind"] != "hint":
        quoted = weights if row["kind"] == "twin" else [0.0] * len(weights)
        sure = [math.exp(p) >= SURE for p in row["plain_sampled"]]
        return [float(a or b) for a, b in zip(sure, quoted, strict=True)]
    return weights if sum(weights) else [1.0] * len(row["step_ids"])


def loss(model: Any, row: dict[str, Any]) -> torch.Tensor:
    """KL(teacher ‖ student) over support and tail, mean over token weights, nats."""
    context, step = row["context_ids"], row["step_ids"]
    logits = model(torch.tensor([context + step[:-1]]), logits_to_keep=len(step)).logits[0].float()
    logp, total = logits.log_softmax(-1), logits.new_zeros(())
    weights = token_weights(row)
    for t, weight in enumerate(weights):
        if not weight:
            continue
        ids, teacher = torch.tensor(row["support_ids"][t]), torch.tensor(row["teacher_logprobs"][t])
        kept = logp[t, ids]
        total = total + weight * (teacher.exp() * (teacher - kept)).sum()
        tail = torch.tensor(row["teacher_tail"][t])
        if torch.isfinite(tail):
            rest = logp[t].scatter(0, ids, -torch.inf).logsumexp(0)
            total = total + weight * tail.exp() * (tail - rest)
    return total / max(1.0, sum(weights))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("targets", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=8, help="rows per step")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(0)
    rows = read_rows(args.targets)
    if not any(r["kind"] == "hint" for r in rows):
        raise SystemExit(f"no accepted target in {args.targets}")
    # held-out rows are there to be watched
    train = [r for r in rows if r["split"] == "train"]
    if not any(r["kind"] == "hint" for r in train):
        train = [r for r in rows if r["kind"] == "hint"]
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
    # hints alone: what holds starts at zero
    measured, draw = [r for r in train if r["kind"] == "hint"][:16], random.Random(0)
    with torch.no_grad():
        before = float(torch.stack([loss(model, r) for r in measured]).mean())
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    for step in range(args.steps):
        batch = [loss(model, r) for r in draw.sample(train, min(args.rows, len(train)))]
        torch.stack(batch).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        print(f"step {step}: {float(torch.stack(batch).mean().detach()):.4f}")
    with torch.no_grad():
        after = float(torch.stack([loss(model, r) for r in measured]).mean())
    if args.out:
        model.save_pretrained(args.out)
    kinds = Counter(r["kind"] for r in rows)
    print(json.dumps({"rows": len(rows), "kinds": dict(kinds), "loss_before": before, "loss_after": after}))


if __name__ == "__main__":
    main()
