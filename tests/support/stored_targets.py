"""A target with every field filled in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hintdistill.core.scores import Measurement, Placebo, Target

F = np.float32
INF = np.inf


def make_target(key: str = "a", **change) -> Target:
    measurement = Measurement(1, 7, -3.25, -0.125, 0.0, -1.5, None, -0.25)
    base = Target(
        key=key,
        trace_id="trace é",
        step=2,
        kind="hint",
        split="holdout",
        context_ids=np.array([5, 6, 7]),
        step_ids=np.array([8, 9]),
        span=(1, 2),
        support_ids=np.array([[1, 8, 9], [4, 9, -1]]),
        teacher_logprobs=np.array([[-0.1, -3, -5], [-1, -2, -INF]], F),
        plain_logprobs=np.array([[-1, -2, -3], [-0.5, -4, -INF]], F),
        teacher_tail=np.array([-4.5, -INF], F),
        plain_tail=np.array([-2, -0.7], F),
        teacher_sampled=np.array([-3, -2], F),
        plain_sampled=np.array([-2, -4], F),
        insert_at=1,
        block_ids=np.array([3, 3]),
        error_class="unknown_tool",
        hint="h",
        fidelity="raw_text",
        measurement=measurement,
        placebos=(Placebo("generic", "p", np.array([0.125, -1], F), measurement),),
        guards=("leak: x",),
        accepted=False,
        reasons=("leak",),
        tokens=("a", "b"),
        instead=("c", "d"),
        recorded_gap=0.5,
        versions={"weights": "w", "renderer": "r"},
    )
    return replace(base, **change)
