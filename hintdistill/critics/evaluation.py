"""How good a critic is, on traces whose erring step is labelled.

Erring and clean traces are reported apart: a benchmark of mostly clean runs flatters a critic that finds nothing. The
step a critic names is its earliest root error. Every rate comes with its 95 % interval (Wilson 1927) and stands beside
what guessing gives: a random step, and the best constant (always step k, or always the k-th from the end).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hintdistill.core.types import Critique, Trace
from hintdistill.critics.cascade import roots
from hintdistill.traces.formats.annotated import Label

Case = tuple[Trace, Label, Critique | None]
"""A trace, its label, and what the critic says; None where it failed."""
Z = 1.959963984540054


def rate(hits: int, n: int) -> dict[str, Any]:
    """A share and its 95 % Wilson interval; None where there is nothing to count."""
    if n == 0:
        return {"hits": 0, "n": 0, "rate": None, "low": None, "high": None}
    p, z2 = hits / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return {"hits": hits, "n": n, "rate": p, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}


def named_step(critique: Critique | None) -> int | None:
    """The step a critique calls the error: its earliest root."""
    named = roots(critique) if critique is not None else frozenset()
    return min(named) if named else None


def evaluate(cases: Sequence[Case]) -> dict[str, Any]:
    """Scores over labelled traces; see the module."""
    erring = [c for c in cases if c[1].verdict == "findings"]
    clean = [c for c in cases if c[1].verdict == "none"]
    foreign = [c for c in cases if c[1].verdict == "not_student"]
    classes = sorted({label.error_class for _, label, _ in erring})
    return {
        "traces": {"erring": len(erring), "clean": len(clean), "not_student": len(foreign)},
        "erring": _erring(erring),
        "clean": {
            "false_alarm": rate(sum(_verdict(c) == "findings" for c in clean), len(clean)),
            "abstained": rate(sum(_verdict(c) == "abstain" for c in clean), len(clean)),
        },
        "not_student": {
            "blamed_the_student": rate(sum(_verdict(c) == "findings" for c in foreign), len(foreign)),
            "said_so": rate(sum(_verdict(c) == "not_student" for c in foreign), len(foreign)),
        },
        "failed": rate(sum(c[2] is None for c in cases), len(cases)),
        "by_class": {name: _erring([c for c in erring if c[1].error_class == name]) for name in classes},
        "guessing": guessing(erring),
    }


def _erring(cases: Sequence[Case]) -> dict[str, Any]:
    n = len(cases)
    far = [(named_step(critique), label) for _, label, critique in cases]
    found = [(step, label) for step, label in far if step is not None]
    return {
        "exact": rate(sum(step == label.step for step, label in found), n),
        "within_one": rate(sum(abs(step - (label.step or 0)) <= 1 for step, label in found), n),
        "any_labelled_step": rate(sum(step in label.steps for step, label in found), n),
        "class": rate(sum(_class_at(c) for c in cases), n),
        "missed": rate(sum(_verdict(c) in ("none", "not_student") for c in cases), n),
        "abstained": rate(sum(_verdict(c) == "abstain" for c in cases), n),
    }


def _class_at(case: Case) -> bool:
    _, label, critique = case
    return critique is not None and any(
        f.step == label.step and f.error_class == label.error_class for f in critique.findings
    )


def _verdict(case: Case) -> str:
    return "failed" if case[2] is None else case[2].verdict


def guessing(erring: Sequence[Case]) -> dict[str, Any]:
    """Exact-step rates of a random step and of the best constant guess on the same traces."""
    if not erring:
        return {"random": None, "best_constant": None, "constant": None}
    counts = [(label.step or 0, len(trace.step_indices)) for trace, label, _ in erring]
    guesses: dict[str, int] = {}
    for step, n in counts:
        for name in (f"step {step}", f"step {step - n}"):
            guesses[name] = guesses.get(name, 0) + 1
    best = max(guesses, key=lambda name: guesses[name])
    return {
        "random": sum(1 / n for _, n in counts) / len(counts),
        "best_constant": guesses[best] / len(counts),
        "constant": f"always {best}",
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """The result as lines for a terminal."""
    e, guess = result["erring"], result["guessing"]
    out = [
        f"{result['traces']['erring']} erring, {result['traces']['clean']} clean, "
        f"{result['traces']['not_student']} with another's error"
    ]
    for name, at in (
        ("exact step", "exact"),
        ("within one step", "within_one"),
        ("any labelled step", "any_labelled_step"),
        ("missed", "missed"),
        ("abstained", "abstained"),
    ):
        out.append(f"  {name:<20}{_shown(e[at])}")
    if guess["random"] is not None:
        out.append(f"  {'random step':<20}{guess['random']:6.1%}")
        out.append(f"  {'best constant':<20}{guess['best_constant']:6.1%}  ({guess['constant']})")
    out.append(f"  {'false alarms, clean':<20}{_shown(result['clean']['false_alarm'])}")
    out.append(f"  {'blamed for another':<20}{_shown(result['not_student']['blamed_the_student'])}")
    out.append(f"  {'failed':<20}{_shown(result['failed'])}")
    out += [
        f"  {name}: exact {_shown(c['exact'])}, class {_shown(c['class'])}"
        for name, c in result["by_class"].items()
        if len(result["by_class"]) > 1
    ]
    return out


def _shown(r: Mapping[str, Any]) -> str:
    return "   —" if r["n"] == 0 else f"{r['rate']:6.1%}  [{r['low']:.1%}, {r['high']:.1%}]  {r['hits']}/{r['n']}"
