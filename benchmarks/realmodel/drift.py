"""Measure how far a student moved on unrelated text: KL(initial ‖ student) on answers to general instructions.

The untrained model answers each prompt of examples/smollm2/general.py greedily, once; both models then read the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.realmodel import play
from benchmarks.realmodel.plan import ROOT, Plan
from hintdistill.core.importing import load_object
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.storage import content_key, write_atomic
from hintdistill.core.types import Message
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.rescoring.drift import token_movement
from hintdistill.rollouts.generation import SamplingOptions
from hintdistill.rollouts.sampling import Sampler

ANSWER = 24
"""Tokens of an answer that are read, at most."""


@cache
def prompts() -> tuple[str, ...]:
    """The general instructions, at least 300."""
    make = load_object(f"{ROOT / 'examples' / 'smollm2' / 'general.py'}:prompts", "general", "function")
    return tuple(make())


def moved(plan: Plan, student: Path) -> dict[str, Any]:
    """Percentiles of KL(initial ‖ student) over tokens, nats, its mean, and the share of tokens whose first choice changed."""
    asked = _answers(plan)
    config = plan.config
    initial, other = (
        TransformersEngine.load(folder, config.run.dtype, config.run.device, config.rescore.batch_tokens)
        for folder in (resolve_model(str(config.run.model)), student)
    )
    kls, flips = token_movement(initial, other, asked)
    flat = np.concatenate(kls)
    return {"prompts": len(asked), "tokens": len(flat), **summary(flat, flips)}


def summary(kl: np.ndarray, flips: int) -> dict[str, float]:
    """The numbers that tables give of KLs [tokens], nats."""
    p50, p95, p99 = (float(p) for p in np.percentile(kl, [50, 95, 99]))
    return {"kl_mean": float(kl.mean()), "kl_p50": p50, "kl_p95": p95, "kl_p99": p99, "flips": flips / len(kl)}


def _answers(plan: Plan) -> list[ScoreRequest]:
    """The texts that both models read: the untrained model writes them once, and they are kept next to the jobs."""
    path = plan.folder / "general.json"
    key = content_key(prompts(), ANSWER, model_key(resolve_model(str(plan.config.run.model))).weights)
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if kept.get("key") != key:
        kept = {"key": key, "ids": _answered(plan)}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(kept))
    return requests_of(kept["ids"])


def requests_of(ids: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[ScoreRequest]:
    """Requests that score each answer below its prompt."""
    return [ScoreRequest(np.array([*p, *a], np.int64), len(p), len(p) + len(a)) for p, a in ids if a]


def _answered(plan: Plan) -> list[tuple[list[int], list[int]]]:
    world = play.World.load(plan.config)
    contexts = [
        world.renderer.encode(world.renderer.render([Message(role="user", content=p)], (), header=True))
        for p in prompts()
    ]
    options = SamplingOptions(temperature=0.0, max_new_tokens=ANSWER, batch_size=32)
    sampler = Sampler(world.generator, world.renderer, options)
    out = []
    for at in range(0, len(contexts), options.batch_size):
        part = contexts[at : at + options.batch_size]
        out += list(zip(part, sampler.generate(part, at), strict=True))
    return out
