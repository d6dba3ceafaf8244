"""What tests of recipes in the trainer share: the recipes that a run can meet, a tiny model, how its traces ended."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from hintdistill.config import TrainSection
from hintdistill.core.scores import Target
from hintdistill.recipes import load_recipe, missing, reads_reward, recipe_names
from hintdistill.recipes.parts import OWN_CONTEXTS
from hintdistill.training.capabilities import available
from hintdistill.training.reward import NO_OUTCOME, OutcomeData, OutcomeRow, TraceOutcome

V = 96
RUNNABLE = [n for n in recipe_names() if not missing(load_recipe(n), available(TrainSection(recipe=n)))]


def tiny(seed: int = 3):
    """A random Llama of one layer and `V` tokens, the same each time; large weights make it opinionated."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(8.0)
    model.config.use_cache = False
    return model


def outcome_of(targets: list[Target], recipe) -> OutcomeData:
    """Every other trace ended well; for an additive coupling each hint's step is a sampled one."""
    if not reads_reward(recipe):
        return NO_OUTCOME
    ended = {t.trace_id: TraceOutcome(float(i % 2), i % 2 - 0.5, 0.5, 2) for i, t in enumerate(targets)}
    rows = [
        OutcomeRow(
            f"outcome:{t.key}",
            t.trace_id,
            t.step,
            torch.from_numpy(np.concatenate([t.context_ids, t.step_ids])),
            len(t.step_ids),
            torch.from_numpy(t.plain_sampled),
            ended[t.trace_id].advantage,
            1 / len(t.step_ids),
        )
        for t in targets
        if t.kind == "hint"
    ]
    return OutcomeData(ended, rows if recipe.coupling.kind == "additive" else [])


@lru_cache(maxsize=1)
def _labels() -> frozenset[str]:
    """The names of all further contexts that shipped recipes read."""
    used = [load_recipe(name).used_contexts() for name in recipe_names()]
    return frozenset(label for each in used for view, label in each.values() if view.context not in OWN_CONTEXTS)


def with_contexts(targets: list[Target], size: int = V) -> list[Target]:
    """The hints with every further context that a shipped recipe's views read, in the hint's place, each of other tokens."""
    labels, out = _labels(), []
    for target in targets:
        blocks = {
            label: (target.insert_at, np.random.default_rng([7, *label.encode()]).integers(3, size, 5))
            for label in sorted(labels)
        }
        out.append(replace(target, views=blocks) if target.kind == "hint" else target)
    return out
