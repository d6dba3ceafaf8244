"""Measure a critic on traces whose erring step is labelled.

Erring and clean traces are reported separately, because a benchmark of mostly clean runs favours a critic that finds
nothing. The step that counts is the one that the critic calls decisive, or else its earliest root error. Every rate
comes with its 95 % interval (Wilson 1927) and with the rates of two guesses: a random step, and the best constant
(always step k, or always the k-th from the end).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from hintdistill.core.types import Critique, Trace
from hintdistill.critics.cascade import roots
from hintdistill.injection.quotes import is_in_step
from hintdistill.traces.formats.annotated import Label

Z = 1.959963984540054
SURE = (0.0, 0.5, 0.7, 0.9)
"""Confidence thresholds at which the precision of root findings is reported."""


class Case(NamedTuple):
    """Hold a trace, its label, and the critic's verdict; None if the critic failed."""

    trace: Trace
    label: Label
    critique: Critique | None
    source_set: str = ""


def rate(hits: int, n: int) -> dict[str, Any]:
    """Return a share with its 95 % Wilson interval; None if the denominator is zero."""
    if n == 0:
        return {"hits": 0, "n": 0, "rate": None, "low": None, "high": None}
    p, z2 = hits / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return {"hits": hits, "n": n, "rate": p, "low": max(0.0, centre - half), "high": min(1.0, centre + half)}


def named_step(critique: Critique | None) -> int | None:
    """Return the step that a critique blames: the one marked as decisive, else its earliest root error."""
    if critique is None:
        return None
    named = frozenset(f.step for f in critique.findings if f.decisive) or roots(critique)
    return min(named) if named else None


def evaluate(cases: Sequence[Case], known: Collection[str] = ()) -> dict[str, Any]:
    """Return the scores over labelled traces; see the module's docstring.

    `known` holds the error classes that a critic is asked to use. A label with another class is not scored by class,
    because the critic cannot match it.
    """
    erring = [c for c in cases if c[1].verdict == "findings"]
    clean = [c for c in cases if c[1].verdict == "none"]
    foreign = [c for c in cases if c[1].verdict == "not_student"]
    classes = sorted({label.error_class for _, label, _, _ in erring})
    return {
        "traces": {"erring": len(erring), "clean": len(clean), "not_student": len(foreign)},
        "erring": _erring(erring, known),
        "clean": {
            "false_alarm": rate(sum(_verdict(c) == "findings" for c in clean), len(clean)),
            "abstained": rate(sum(_verdict(c) == "abstain" for c in clean), len(clean)),
        },
        "not_student": {
            "blamed_the_student": rate(sum(_blames(c) for c in foreign), len(foreign)),
            "said_so": rate(sum(_said_so(c) for c in foreign), len(foreign)),
        },
        "failed": rate(sum(c[2] is None for c in cases), len(cases)),
        "by_class": {name: _erring([c for c in erring if c[1].error_class == name], known) for name in classes},
        "by_set": {
            name: {**_erring(of, known), **guessing(of)}
            for name in sorted({c.source_set for c in erring})
            if (of := [c for c in erring if c.source_set == name])
        },
        "precision": _precision(erring),
        **_said(cases),
        "guessing": guessing(erring),
    }


def _said(cases: Sequence[Case]) -> dict[str, Any]:
    """Count the quotes that occur in their step, and the findings of each class."""
    found = [(c.trace, f) for c in cases if c.critique is not None for f in c.critique.findings]
    quoted = [is_in_step(f, trace.step(f.step)) for trace, f in found if f.quote]
    return {
        "quotes": rate(sum(quoted), len(quoted)),
        "named_classes": dict(Counter(f.error_class for _, f in found).most_common()),
    }


def _precision(erring: Sequence[Case]) -> dict[str, Any]:
    """Return, for each confidence threshold, the share of root findings at or above it that name a labelled step."""
    said = [
        (f.confidence, f.step in (label.steps or (label.step,)))
        for _, label, critique, _ in erring
        for f in (critique.findings if critique is not None else ())
        if f.caused_by is None
    ]
    return {
        f"{least:g}": rate(sum(hit for sure, hit in said if sure >= least), sum(sure >= least for sure, _ in said))
        for least in SURE
    }


def _blames(case: Case) -> bool:
    """Return whether the critic blames the student: it has findings, and does not mark all of them as not decisive."""
    found = case.critique.findings if case.critique is not None else ()
    return any(f.decisive is not False for f in found)


def _said_so(case: Case) -> bool:
    if case.critique is None:
        return False
    return case.critique.verdict == "not_student" or (bool(case.critique.findings) and not _blames(case))


def _erring(cases: Sequence[Case], known: Collection[str]) -> dict[str, Any]:
    n = len(cases)
    far = [(named_step(c.critique), c.label) for c in cases]
    nameable = [c for c in cases if not known or c.label.error_class in known]
    authored = [(named, labelled) for c in cases for named, labelled in [_authors(c)] if labelled is not None]
    found = [(step, label) for step, label in far if step is not None]
    return {
        "exact": rate(sum(step == label.step for step, label in found), n),
        "within_one": rate(sum(abs(step - (label.step or 0)) <= 1 for step, label in found), n),
        "any_labelled_step": rate(sum(step in label.steps for step, label in found), n),
        "any_root": rate(sum(c.label.step in _steps(c, roots_only=True) for c in cases), n),
        "any_finding": rate(sum(c.label.step in _steps(c, roots_only=False) for c in cases), n),
        "agent": rate(sum(named == labelled for named, labelled in authored), len(authored)),
        "class": rate(sum(_class_at(c) for c in nameable), len(nameable)),
        "missed": rate(sum(_verdict(c) in ("none", "not_student") for c in cases), n),
        "abstained": rate(sum(_verdict(c) == "abstain" for c in cases), n),
    }


def _steps(case: Case, *, roots_only: bool) -> frozenset[int]:
    if case.critique is None:
        return frozenset()
    return roots(case.critique) if roots_only else frozenset(f.step for f in case.critique.findings)


def _authors(case: Case) -> tuple[str | None, str | None]:
    """Return the agents that wrote the named step and the labelled step, if the messages name their agents."""
    named, label = named_step(case.critique), case.label.step
    n = len(case.trace.step_indices)
    wrote = [None if k is None or k >= n else case.trace.step(k).name for k in (named, label)]
    return wrote[0], wrote[1]


def _class_at(case: Case) -> bool:
    _, label, critique, _ = case
    return critique is not None and any(
        f.step == label.step and f.error_class == label.error_class for f in critique.findings
    )


def _verdict(case: Case) -> str:
    return "failed" if case[2] is None else case[2].verdict


def guessing(erring: Sequence[Case]) -> dict[str, Any]:
    """Return the exact-step rates of a random step and of the best constant guess on the same traces."""
    if not erring:
        return {"random": None, "best_constant": None, "constant": None}
    counts = [(label.step or 0, len(trace.step_indices)) for trace, label, _, _ in erring]
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
    """Return the result as lines for a terminal."""
    e, guess = result["erring"], result["guessing"]
    out = [
        f"{result['traces']['erring']} erring, {result['traces']['clean']} clean, {result['traces']['not_student']} "
        "with another party's error"
    ]
    for name, at in (
        ("exact step", "exact"),
        ("within one step", "within_one"),
        ("any labelled step", "any_labelled_step"),
        ("any root finding", "any_root"),
        ("any finding", "any_finding"),
        ("agent", "agent"),
        ("missed", "missed"),
        ("abstained", "abstained"),
    ):
        if e[at]["n"] or at != "agent":
            out.append(f"  {name:<20}{_shown(e[at])}")
    if guess["random"] is not None:
        out.append(f"  {'random step':<20}{guess['random']:6.1%}")
        out.append(f"  {'best constant':<20}{guess['best_constant']:6.1%}  ({guess['constant']})")
    out.append(f"  {'false alarms, clean':<20}{_shown(result['clean']['false_alarm'])}")
    out.append(f"  {'blamed for another':<20}{_shown(result['not_student']['blamed_the_student'])}")
    out.append(f"  {'failed':<20}{_shown(result['failed'])}")
    if result["quotes"]["n"]:
        out.append(f"  {'quotes found':<20}{_shown(result['quotes'])}")
    if result["named_classes"]:
        out.append(f"  {'classes named':<20}" + ", ".join(f"{n} {c}" for c, n in result["named_classes"].items()))
    out += [f"  {'precision ≥ ' + least:<20}{_shown(r)}" for least, r in result["precision"].items() if r["n"]]
    if len(result["by_set"]) > 1:
        for name, c in result["by_set"].items():
            out.append(
                f"  {name}: exact {_shown(c['exact'])}, within one {_shown(c['within_one'])}, "
                f"random {c['random']:.1%}, {c['constant']} {c['best_constant']:.1%}"
            )
    out += [
        f"  {name}: exact {_shown(c['exact'])}, class {_shown(c['class'])}"
        for name, c in result["by_class"].items()
        if len(result["by_class"]) > 1
    ]
    return out


def _shown(r: Mapping[str, Any]) -> str:
    return "   —" if r["n"] == 0 else f"{r['rate']:6.1%}  [{r['low']:.1%}, {r['high']:.1%}]  {r['hits']}/{r['n']}"
