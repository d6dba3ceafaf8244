"""One training step of every recipe on a tiny model, with the piece that makes it its method and without."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from support.exact_rows import loss_and_gradient, target_of, trainer_of
from support.recipe_models import V, outcome_of, tiny, with_contexts

from hintdistill.core.scores import Target
from hintdistill.recipes import load_recipe

STEPS = [(18, 26, 7, True), (33, 41, 7, True), (46, 54, 7, False)]
"""Start, end and place of the hint; whether a critic found an error in it. The others get a context where every step does."""
NO_CONTEXT = {"views": {"teacher": {"weights": "teacher", "context": "plain"}}}
"""The teacher reads what the student read."""


def _term(**keys: Any) -> dict[str, Any]:
    return {"terms": {"distill": keys}}


BASE: dict[str, dict[str, Any]] = {
    "esr": _term(weights=[{"score": "index", "shape": "first_n", "n": 3}]),
    "kat": _term(
        weights=[{"score": "div_tail64", "shape": "rolling_stop", "window": 2, "eta": 0.3, "patience": 1, "skip": 1}]
    ),
    "rock_freeze": _term(
        weights=[{"score": "token_id", "shape": "freeze", "ids": list(range(0, V, 3)), "weight": 0.0}]
    ),
    "openclaw_topk": _term(support={"k": 8}),
    "revisiting": _term(support={"k": 8}),
    "topk_sg": _term(support={"k": 8}),
    "opsd": _term(divergence={"pointwise_clip": 0.001}),
    "targeted": {"terms": {"anchor": {"min_probability": 0.0}}},
    "targeted_jsd": {"terms": {"anchor": {"min_probability": 0.0}}},
}
"""What is set where a shipped number is larger than the steps and the vocabulary here."""
OFF: dict[str, dict[str, Any]] = {
    "accept_route": {"terms": {"rejected": {"divergence": {"kind": "fkl"}}}},
    "amplify": _term(target={"loglin": {"teacher": 1.0, "plain": None}}),
    "aopd": {"terms": {"bad": {"coef": 0.0}}},
    "ar_opd": _term(target={"loglin": {"partial": None, "teacher": 1.0}, "anchor": None, "residual_clip": None}),
    "cgtr": {"teacher": {"update": "live"}},
    "contrast_target": _term(target={"loglin": {"wrong": None}}),
    "cursor_targeted": _term(coef=0.0),
    "dasd": {"coupling": {"beta": 0.0}},
    "decouple": _term(divergence={"kind": "rkl"}),
    "edge_opd": _term(weights=[]),
    "eopd": {"terms": {"entropic": None}},
    "esr": _term(weights=[]),
    "evidence_target": _term(target={"loglin": {"plain": None}}),
    "exopd": _term(target={"loglin": {"teacher": 1.0, "initial": None}}),
    "fire": _term(weights=[]),
    "gkd": {"teacher": {"update": "live"}},
    "gndpo": _term(divergence={"signal": "log"}),
    "hero": NO_CONTEXT,
    "hint_sd": NO_CONTEXT,
    "kat": _term(weights=[]),
    "minillm": {"terms": {"returns": None}},
    "mopd_peers": NO_CONTEXT,
    "nca": {"terms": {"consistency": None}},
    "ogls": _term(target={"loglin": {"succ": None, "fail": None}}),
    "opcd": NO_CONTEXT,
    "opd_plus": _term(divergence={"signal": "log"}),
    "openclaw_pg": NO_CONTEXT,
    "openclaw_topk": _term(support={"kind": "full"}),
    "opsd": _term(divergence={"pointwise_clip": None}),
    "pbsd_tilt": _term(target={"tilt": 0.0}),
    "pbsd_token": NO_CONTEXT,
    "power": _term(divergence={"signal": "log"}),
    "prune_opd": _term(weights=[]),
    "ptd_po": _term(weights=[]),
    "pw_opsd": _term(weights=[]),
    "reopold": _term(weights=[]),
    "revisiting": _term(support={"kind": "full"}),
    "rlcsd": {"coupling": {"beta": 0.0}},
    "rlsd": {"coupling": {"lam": 0.0}},
    "rock_freeze": _term(weights=[]),
    "rosd": _term(span="step"),
    "sc_grpo": {"coupling": {"lam": 0.0}},
    "scope": {"terms": {"correct": None}},
    "sdar": _term(weights=[]),
    "sdft": NO_CONTEXT,
    "sdpo": NO_CONTEXT,
    "sdpo_feedback": NO_CONTEXT,
    "selectkd": _term(weights=[]),
    "sg_opd": _term(weights=[]),
    "step_opsd": {"coupling": {"lam": 0.0}},
    "ta_opd": _term(weights=[]),
    "targeted": {"terms": {"anchor": None}},
    "targeted_jsd": {"terms": {"anchor": None}},
    "tip": _term(weights=[]),
    "tm_opd": {"teacher": {"update": "live"}},
    "topk_sg": _term(divergence={"kind": "rkl"}, support={"accept_bias": True}),
    "trace": {"terms": {"key": {"coef": 0.0}}},
    "tropd": {"terms": {"outliers": {"coef": 0.0}}},
    "veto": _term(target={"loglin": {"student": None}}),
    "vopd": _term(divergence={"baseline": None, "baseline_k": None}),
}
"""Recipe → its defining piece taken away."""


@lru_cache(maxsize=64)
def targets_for(model: Any, kind: str, every: bool) -> list[Target]:
    """Two traces; the context is of tokens of its own for each maker, and stands above every step where the recipe says so."""
    out = list[Target]()
    for n, trace_id in enumerate(("first", "second")):
        trace = np.random.default_rng([4, n]).integers(3, V, 60)
        block = np.random.default_rng([9, n, *kind.encode()]).integers(3, V, 6)
        for start, end, at, found in STEPS:
            if not (found or every):
                continue
            made = target_of(model, f"{trace_id}{start}", trace_id, trace, start, end, at, block)
            out.append(replace(made, span=(2, 5), action_start=2))
        out.append(target_of(model, f"{trace_id}anchor", trace_id, trace, 28, 31, 28, block[:0]))
    return with_contexts(out)


def measured(model: Any, name: str, changed: dict[str, Any], folder: Path) -> tuple[float, torch.Tensor]:
    """Loss and gradient of one batch; the student has moved a little away from initial and following weights."""
    given = _merged(BASE.get(name, {}), changed)
    recipe, settings = load_recipe(name), load_recipe({"preset": name}, given)
    rows, data = {t.rows for t in settings.terms.values()}, recipe.data
    targets = [t for t in targets_for(model, data.hint.kind, data.steps == "every") if t.kind in rows]
    if settings.teacher.update == "external":
        given = _merged(given, {"teacher": {"model": "another"}})
    trainer = trainer_of(model, targets, folder, outcome_of(targets, recipe), recipe={"preset": name, **given})
    if settings.teacher.update == "external":
        trainer._external = tiny(11)
    nudge = np.random.default_rng(6)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter += (
                0.05 * torch.from_numpy(nudge.standard_normal(tuple(parameter.shape))).float() * parameter.std()
            )
    trainer.state.global_step = 5
    return loss_and_gradient(trainer)


def _merged(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    out = dict(a)
    for key, value in b.items():
        out[key] = _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out
