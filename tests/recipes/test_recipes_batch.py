"""What a recipe takes from the whole batch is said, and nothing else is."""

from __future__ import annotations

import torch

from hintdistill.objectives import shapes, signals
from hintdistill.recipes import load_recipe, parts, recipe_names
from hintdistill.recipes.describe import document, over_step, text

LENGTHS = [9, 6]


def _is_batch_statistic(name: str, **parameters) -> bool:
    """Whether a row's weights change with the row it shares a batch with."""
    x = torch.rand(sum(LENGTHS), generator=torch.Generator().manual_seed(1))
    # the other row holds what is least and greatest
    x = torch.cat([0.5 + 0.4 * x[: LENGTHS[0]], 5 * x[LENGTHS[0] :] - 0.5])
    if name == "rank_softmax":
        x = torch.cat([torch.full((n,), v) for n, v in zip(LENGTHS, (2.0, 5.0), strict=True)])
    if name in ("bernoulli", "frontier", "frontier_root"):
        x = x.clamp(0, 1)
    if name == "rolling_stop":
        parameters |= {"window": 2, "patience": 1, "skip": 0, "eta": 0.5}

    def weights(rows: list[torch.Tensor]) -> torch.Tensor:
        joined = torch.cat(rows)
        if parts.SHAPES.get(name).reads_set:
            joined = joined.abs()[:, None].expand(len(joined), 2)
        context = {"valid": torch.ones(len(joined), dtype=torch.bool), "lengths": [len(r) for r in rows]}
        return shapes.apply(name, joined, parameters, generator=torch.Generator().manual_seed(0), **context)[0]

    first = x[: LENGTHS[0]]
    return not torch.allclose(weights([first, x[LENGTHS[0] :]])[: LENGTHS[0]], weights([first]))


def test_the_entries_are_what_the_shapes_do():
    for entry in parts.SHAPES.entries():
        assert _is_batch_statistic(entry.name) == entry.reads_batch, entry.name
        if entry.unless is not None:
            assert not _is_batch_statistic(entry.name, **{entry.unless: 0.7})


def test_the_signals_are_what_the_signals_do():
    s, t = -torch.rand(12, generator=torch.Generator().manual_seed(2)) * 3, -torch.rand(12) * 3
    batch = {n for n, f in signals.SIGNALS.items() if not torch.allclose(f(s, t)[:5], f(s[:5], t[:5]))}
    assert batch == parts.BATCH_SIGNALS


def test_a_recipe_says_what_is_taken_over_a_step():
    tip = load_recipe("tip")
    found = over_step(tip)
    assert (
        "terms.distill: weights of the shape minmax01" in found
        and "terms.distill: weights of the shape top_frac" in found
    )
    assert "terms.distill: normalize kept of its weights" in found
    assert "computed over all rows of an optimiser step:" in text(tip)
    assert document(tip)["over_step"] == found
    assert over_step(load_recipe("gndpo")) == ["terms.distill: the signal znorm"]
    assert "normalize mean1" in str(over_step(load_recipe("fire")))
    for name in ("targeted", "hint_sd", "eopd"):
        recipe = load_recipe(name)
        assert over_step(recipe) == [] and "taken over" not in text(recipe)
    level = {
        "terms": {"distill": {"weights": [{"score": "gap", "shape": "saturate", "c": 0.5}], "normalize": "per_row"}}
    }
    assert over_step(load_recipe("targeted", level)) == []
    level["terms"]["distill"]["weights"][0].pop("c")
    assert over_step(load_recipe("targeted", level)) == ["terms.distill: weights of the shape saturate"]


def test_every_shipped_recipe_with_such_a_part_says_so():
    for name in recipe_names():
        recipe = load_recipe(name)
        body = str(recipe.terms)
        used = [
            e.name for e in parts.SHAPES.entries() if e.reads_batch and e.unless is None and f"shape='{e.name}'" in body
        ]
        assert all(any(s in line for line in over_step(recipe)) for s in used), name
