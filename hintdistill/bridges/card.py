"""Write the data card of an export: its contents, origin and licence, and what this format loses."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections import Counter
from pathlib import Path
from typing import Any

from hintdistill.bridges.formats import DATA, Format
from hintdistill.bridges.narrow import Tail
from hintdistill.bridges.runs import RunRows
from hintdistill.objectives.schedules import moved
from hintdistill.recipes import Term

CARD = "card.json"
README = "README.md"
EXPORT_SCHEMA = 1


def describe(run: RunRows, form: Format, k: int | None, tail: Tail, licence: str | None) -> dict[str, Any]:
    """Return the card's data before the rows are written. It contains no text of a trace."""
    heads = run.targets.heads
    recipe = run.section.effective_recipe
    versions: dict[str, list[str]] = {}
    for name in sorted({n for h in heads for n in h.versions}):
        versions[name] = sorted({h.versions[name] for h in heads if name in h.versions})
    weighed = Counter(m.kind for p in run.rows.plans for m in p.members)
    unread = Counter[str](h.kind for h in heads)
    unread.subtract(weighed)
    return {
        "schema": EXPORT_SCHEMA,
        "format": form.name,
        "reads": form.reads,
        "formula": form.formula,
        "k": k,
        "tail": tail,
        "steps": dict(sorted(weighed.items())),
        "without_weight": {kind: n for kind, n in sorted(unread.items()) if n},
        "traces": len({h.trace_id for h in heads}),
        "error_classes": dict(
            sorted(Counter(h.error_class for h in heads if h.kind == "hint" and h.error_class).items())
        ),
        "recipe": recipe.name,
        "coefficients": {
            name: (t.coef if not moved(t.coef) else str(t.coef)) for name, t in sorted(recipe.terms.items())
        },
        "loses": [*form.loses, *(lost(run) if form.name != "hf" else ())],
        "licence": licence or "unknown",
        "versions": versions | {"hintdistill": [importlib.metadata.version("hintdistill")]},
        "targets_sha256": hashlib.sha256("\n".join(sorted(h.key for h in heads)).encode()).hexdigest(),
    }


def lost(run: RunRows) -> list[str]:
    """Return the parts of this run's recipe that a format with a single divergence loses, term by term."""
    recipe, said = run.section.effective_recipe, list[str]()
    for name, term in sorted(recipe.terms.items()):
        what = _differs(term)
        if what:
            said.append(f"term {name} ({term.rows}): {', '.join(what)}")
    if recipe.coupling.kind != "none":
        said.append(f"the outcome reward of the recipe's coupling ({recipe.coupling.kind})")
    if run.section.target_source != "stored":
        said.append(
            f"the teacher of the training step ({recipe.teacher.update}) becomes the one that scored the targets"
        )
    return said


def _differs(term: Term) -> list[str]:
    """Return the differences of a term from forward KL to the stored teacher."""
    out = []
    if term.divergence.kind != "fkl":
        out.append(f"{term.divergence.kind} becomes forward KL")
    if len(term.target.loglin) > 1 or term.target.mixture or term.target.anchor or term.target.tilt:
        out.append("a target of several views becomes the stored teacher")
    if term.weights:
        out.append("weights by score are left out")
    if moved(term.coef):
        out.append("a coefficient that changes with the optimiser step keeps its value of step 0")
    if term.temperature != 1.0:
        out.append("temperature becomes 1")
    return out


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card as data and as a README."""
    (folder / CARD).write_text(json.dumps(card, indent=1), encoding="utf-8")
    (folder / README).write_text(readme(card), encoding="utf-8")


def readme(card: dict[str, Any]) -> str:
    """Return the card as a README, with the front matter of a data set on a hub."""
    steps = ", ".join(f"{n} {kind}" for kind, n in card["steps"].items())
    classes = ", ".join(f"{n} {name}" for name, n in card["error_classes"].items()) or "none"
    ids = "all stored ids" if card["k"] is None else f"{card['k']} ids"
    unread = ", ".join(f"{n} {kind}" for kind, n in card["without_weight"].items())
    parts = [
        "---",
        f"license: {card['licence']}",
        "tags: [hintdistill, distillation]",
        "---",
        "",
        f"# Targets of a hintdistill run, for {card['format']}",
        "",
        f"Read by: {card['reads']}. Loss: {card['formula']}.",
        "",
        f"- Steps: {steps}; {card['traces']} traces; error classes of hints: {classes}",
        f"- Per token: {ids}, always including the sampled one; the rest: {card['tail']}",
        f"- Recipe: {card['recipe']}; coefficients "
        + ", ".join(f"{name} {value}" for name, value in card["coefficients"].items()),
        f"- Licence: {card['licence']}"
        + ("; the owner of the traces decides it (`--licence`)" if card["licence"] == "unknown" else ""),
        *([f"- Left out because none of their tokens carries weight: {unread}"] if unread else []),
        *(
            [
                f"- Check: {card['check']['rows']} rows, largest difference {card['check']['worst_nats']:.3g} nats, "
                f"allowed difference {card['check']['bound_nats']:.3g}"
            ]
            if "check" in card
            else []
        ),
        "",
        f"The token ids of `{DATA}` reveal the traces' text to anybody with the tokenizer.",
        "",
        "## What this format loses",
        "",
        *[f"- {what}" for what in card["loses"]],
        "",
        "## What made it",
        "",
        *[f"- {name}: {', '.join(values)}" for name, values in card["versions"].items()],
        f"- targets: SHA-256 of their keys {card['targets_sha256']}",
        "",
    ]
    return "\n".join(parts)
