"""Report the precision that `run.dtype=auto` chose on a CPU, and how far its scores are from float32's on this run's
own steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from hintdistill.core.extensions import ENGINES
from hintdistill.core.machine import BYTES, room
from hintdistill.core.model_shape import ModelShape
from hintdistill.engines.transformers import TransformersEngine, pick_device, pick_dtype
from hintdistill.pipeline.context import RunContext
from hintdistill.rescoring.drift import movement
from hintdistill.rescoring.scorer import HintItem, Scorer

STEPS = 4
"""Number of steps read in both precisions; the shortest ones are used."""
SHARE = 0.5
"""Share of the free memory that a second copy of the weights in float32 may use."""


def shortest(hints: Sequence[HintItem]) -> list[HintItem]:
    """Return the shortest items, whose steps are read in both precisions."""
    return sorted(hints, key=lambda h: (len(h.injection.plain_ids), h.key))[:STEPS]


def note_precision(ctx: RunContext, hints: Sequence[HintItem]) -> None:
    """If `auto` chose bfloat16 on a CPU, report its distance from float32 (KL per token in nats) and keep it in the
    manifest.

    Raises:
        ModelError: the model cannot be loaded in float32.
    """
    run = ctx.config.run
    engine = ctx.engines.get(ctx.teacher_folder)
    if engine is None and run.dtype == "auto" and hints and not ctx.rundir.manifest().get("precision"):
        device = pick_device(run.device)
        own = ENGINES.get(ctx.config.rescore.engine.backend).shared
        if own and device.type == "cpu" and pick_dtype("auto", device, ctx.teacher_folder) == torch.bfloat16:
            # a run was stopped between its last part and this
            engine = ctx.engine(ctx.teacher_folder)
    if run.dtype != "auto" or not isinstance(engine, TransformersEngine) or not hints:
        return
    weights = next(engine.model.parameters())
    if weights.device.type != "cpu" or weights.dtype != torch.bfloat16 or ctx.rundir.manifest().get("precision"):
        return
    if ModelShape.of(ctx.teacher_folder).parameters * BYTES["float32"] > SHARE * room(run.device).available:
        ctx.console.note(
            "rescore: run.dtype=auto chose bfloat16; there is not enough memory for a float32 copy to compare it with"
        )
        return
    requests = [r for h in shortest(hints) for r in Scorer.requests(h.key, h.injection)[:2]]
    exact = TransformersEngine.load(ctx.teacher_folder, "float32", run.device, ctx.config.rescore.batch_tokens)
    found = movement(exact, engine, requests)
    assert found is not None
    ctx.rundir.note(precision={"dtype": "bfloat16", **asdict(found)})
    ctx.console.note(
        "rescore: run.dtype=auto chose bfloat16; KL(float32 ‖ bfloat16) is "
        f"{found.kl_per_token:.4f} nats per token over {found.tokens} tokens, and "
        f"{found.top1_flip_rate:.1%} of the first choices differ"
    )
