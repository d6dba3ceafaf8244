"""A train section from flat words: what a test changes of a recipe, without the recipe's nesting."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hintdistill.config import TrainSection
from hintdistill.recipes import DEFAULT, load_recipe

DISTILL = {
    "divergence": ("divergence", "kind"),
    "support": ("support", "kind"),
    "top_k": ("support", "k"),
    "loss_span": ("span",),
    "quote_weight": ("quote_weight",),
}


def train_section(**flat: Any) -> TrainSection:
    """`divergence`, `support`, `top_k`, `teacher`, `loss_span`, `quote_weight`, `normalize` and `anchor.min_probability` go
    into the recipe; the rest are keys of the section."""
    recipe = flat.pop("recipe", DEFAULT)
    terms: dict[str, Any] = {}
    for word, path in DISTILL.items():
        if (value := flat.pop(word, None)) is not None:
            node = terms.setdefault("distill", {})
            for part in path[:-1]:
                node = node.setdefault(part, {})
            node[path[-1]] = value
    anchor = flat.get("anchor")
    if isinstance(anchor, Mapping) and "min_probability" in anchor:
        kept = {k: v for k, v in anchor.items() if k != "min_probability"}
        flat["anchor"] = kept
        if kept.get("weight") != 0:
            terms["anchor"] = _anchor(recipe) | {"min_probability": anchor["min_probability"]}
    if (normalize := flat.pop("normalize", None)) is not None:
        for name in load_recipe({"preset": recipe, "terms": terms}).terms:
            terms.setdefault(name, {})["normalize"] = normalize
    changed: dict[str, Any] = {"terms": terms} if terms else {}
    if (teacher := flat.pop("teacher", None)) is not None:
        changed["teacher"] = {"update": teacher}
    return TrainSection(recipe={"preset": recipe, **changed} if changed else recipe, **flat)


def _anchor(recipe: Any) -> dict[str, Any]:
    """The default recipe's anchor, where the recipe has none to change."""
    if "anchor" in load_recipe(recipe).terms:
        return {}
    return load_recipe(DEFAULT).terms["anchor"].model_dump(mode="json", by_alias=True, exclude_defaults=True)
