"""Evaluate the arms of benchmarks/real.py together: the claim, secondary endpoints, the parts of success, the cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.ablation.markdown import table
from benchmarks.realmodel.page import first_nouns, interval_text, nouns_bootstrap, nouns_draws, pairs_right
from hintdistill.core.statistics import Interval, difference, gap_closed, holm

Row = dict[str, Any]
Results = Mapping[str, Sequence[Row]]
"""Jobs by label, a job a seed."""
GAIN, BESIDE, GUARD = 0.40, -0.03, -0.05
"""Bounds of benchmarks/prereg/real.yaml."""
REST = ("unparsable_call", "wrong_city")
"""Classes of errors of a step that does the right thing and says it wrongly."""


def _by_seed(results: Results, label: str) -> dict[int, Row]:
    return {r["seed"]: r for r in results.get(label, ()) if "measured" in r}


def tables_of(
    results: Results, labels: Sequence[str], seeds: Sequence[int], read: str
) -> list[list[list[float]]] | None:
    """Success [seeds, tasks] by label, and that of the hinted initial model for `hinted`; None if a seed of any is missing."""
    out = []
    for label in labels:
        jobs = _by_seed(results, "none" if label == "hinted" else label)
        if any(s not in jobs or (label == "hinted" and "hinted" not in jobs[s]) for s in seeds):
            return None
        rows = [jobs[s]["hinted"] if label == "hinted" else jobs[s]["measured"][read] for s in seeds]
        out.append([[float(r["success"]) for r in of] for of in rows])
    return out


def _nouns(results: Results, read: str) -> list[str]:
    return first_nouns(next(iter(_by_seed(results, "none").values()))["measured"][read])


def pair_tables(results: Results, labels: Sequence[str], seeds: Sequence[int]) -> list[list[list[float]]] | None:
    """Whether both members of each matched pair are right [seeds, pairs], by label; None if a seed of any is missing."""
    jobs = [_by_seed(results, label) for label in labels]
    if any(s not in of for of in jobs for s in seeds):
        return None
    return [[[float(x) for x in pairs_right(of[s]["measured"])] for s in seeds] for of in jobs]


# -- the claim -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Claim:
    """The parts of the claim for an arm and its rival; each None if it is not measured yet."""

    arm: str
    rival: str
    gain: Interval | None
    beside: Interval | None
    """Gain of the arm minus that of the rival."""
    guard: Interval | None
    """Pairs of which both are right: arm minus untrained."""
    floor: float = 1.0
    """Share of the pairs of which the untrained model gets both."""

    @property
    def empty(self) -> bool:
        """Whether the guard could not fail, because the untrained model has no more to lose than the bound allows."""
        return self.guard is not None and self.floor <= -GUARD

    @property
    def parts(self) -> list[tuple[str, bool | None]]:
        """Each part in words, and whether it is met."""
        rounds = (
            f"the gain of {self.arm} is {interval_text(self.gain)}; its lower end must be above {GAIN:.2f}"
            if self.gain
            else None
        )
        rival = (
            f"{self.arm} minus {self.rival} is {interval_text(self.beside)}; its lower end must be at least {BESIDE:.2f}"
            if self.beside
            else None
        )
        pairs = (
            f"the change in pairs solved completely is {interval_text(self.guard)}; it must be at least {GUARD:.2f}"
            if self.guard
            else None
        )
        return [
            (rounds or f"the gain of {self.arm}", None if self.gain is None else self.gain.low > GAIN),
            (rival or f"{self.arm} minus {self.rival}", None if self.beside is None else self.beside.low >= BESIDE),
            (pairs or "the guard of matched pairs", None if self.guard is None else self.guard.mean >= GUARD),
        ]

    def sentence(self) -> str:
        """Return the claim in words: met if every part is met, not met if one is not, else not measured yet."""
        verdicts = [met for _, met in self.parts]
        whole = "not met" if False in verdicts else "not measured yet" if None in verdicts else "met"
        words = {True: "met", False: "not met", None: "not measured yet"}
        if self.empty and whole == "met":
            whole = "met only formally"
        return (
            f"The claim is **{whole}**: "
            + "; ".join(f"{text} ({words[met]})" for text, met in self.parts)
            + (
                f". The guard could not fail, because the untrained model solves only {self.floor:.2f} of the pairs completely."
                if self.empty
                else "."
            )
        )


def _gain_over(arm: Any, rival: Any, before: Any, hinted: Any) -> Any:
    return gap_closed(arm, before, hinted) - gap_closed(rival, before, hinted)


def claim_of(results: Results, seeds: Sequence[int], arm: str, rival: str, read: str) -> Claim:
    """The claim as announced, for an arm and its rival."""
    gain = tables_of(results, [arm, "none", "hinted"], seeds, read)
    beside = tables_of(results, [arm, rival, "none", "hinted"], seeds, read)
    guard = pair_tables(results, [arm, "none"], seeds)
    nouns = _nouns(results, read) if gain else []
    pair_nouns = first_nouns(_by_seed(results, "none")[seeds[0]]["measured"]["found"]) if guard else []
    return Claim(
        arm,
        rival,
        nouns_bootstrap(gap_closed, nouns, *gain) if gain else None,
        nouns_bootstrap(_gain_over, nouns, *beside) if beside else None,
        nouns_bootstrap(difference, pair_nouns, *guard) if guard else None,
        float(np.mean(guard[1])) if guard else 1.0,
    )


# -- secondary endpoints -------------------------------------------------------------------------------------------------


def p_value(draws: np.ndarray) -> float:
    """Two-sided p of a difference of zero, from its bootstrap draws: twice the share on the rarer side, zero counted on both."""
    n = len(draws)
    side = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    return min(1.0, 2 * (side + 1) / (n + 1))


def secondary_table(
    results: Results, endpoints: Sequence[tuple[str, str, str]], seeds: Sequence[int], read: str
) -> str:
    """Paired differences of the secondary endpoints; Holm over all that are announced, a missing one counts as p = 1."""
    found: list[tuple[Interval, float] | None] = []
    for arm, other, measure in endpoints:
        pairs = measure == "pairs"
        tables = pair_tables(results, [arm, other], seeds) if pairs else tables_of(results, [arm, other], seeds, read)
        if tables is None:
            found.append(None)
            continue
        nouns = first_nouns(next(iter(_by_seed(results, arm).values()))["measured"]["found" if pairs else read])
        estimate, draws = nouns_draws(difference, nouns, *tables)
        low, high = np.percentile(draws, [2.5, 97.5])
        found.append((Interval(estimate, float(low), float(high)), p_value(draws)))
    adjusted = holm([1.0 if f is None else f[1] for f in found])
    lines = [
        [
            f"{arm} minus {other}",
            measure,
            *(("not measured yet", "–", "–") if f is None else (interval_text(f[0]), _p(f[1]), _p(p))),
        ]
        for (arm, other, measure), f, p in zip(endpoints, found, adjusted, strict=True)
    ]
    return table(["secondary endpoint", "measured on", "difference (95 %)", "p", "p, Holm"], lines)


def _p(p: float) -> str:
    return "< .001" if p < 0.001 else f"{p:.3f}"


# -- what success is made of ---------------------------------------------------------------------------------------------


def factors(rows: Sequence[Row]) -> tuple[float, float, float]:
    """P(every decision right), P(rest right | decisions right), and their product, which is the success.

    A decision is what a step does: a call or a sentence, and which tool. The rest is how it is said (see `REST`), and whether
    the episode then ends in time. Without an episode whose decisions are right the second is not a number.
    """
    decided = [r["success"] or r["error"] is None or r["error"] in REST for r in rows]
    right = [r["success"] for r, d in zip(rows, decided, strict=True) if d]
    rest = float(np.mean(right)) if right else float("nan")
    return float(np.mean(decided)), rest, float(np.mean([r["success"] for r in rows]))


def factor_table(results: Results, read: str) -> str:
    """The factors of success by arm, over the seeds that are done."""
    lines = []
    for label in results:
        rows = [r for j in _by_seed(results, label).values() for r in j["measured"][read]]
        if rows:
            decision, rest, success = factors(rows)
            lines.append(
                [label, str(len(rows)), f"{decision:.2f}", "–" if np.isnan(rest) else f"{rest:.2f}", f"{success:.2f}"]
            )
    head = ["arm", "n", "decisions right", "rest right, if the decisions are right", f"success on {read}"]
    return table(head, lines)


def curve_table(results: Results, drifts: Results, rates: Mapping[str, tuple[str, float]], read: str) -> str:
    """Success over drift, an arm's rates in order: a row a job whose drift is read.

    Args:
        rates: arm and learning rate by label.
    """
    lines = []
    for label in sorted(rates, key=lambda k: (rates[k][0], rates[k][1], k)):
        moved, jobs = {d["seed"]: d for d in drifts.get(label, ())}, _by_seed(results, label)
        for seed in sorted(set(moved) & set(jobs)):
            d, rows = moved[seed], jobs[seed]["measured"]
            success, pairs = np.mean([r["success"] for r in rows[read]]), np.mean(pairs_right(rows))
            kl = " / ".join(f"{d[k]:.3f}" for k in ("kl_p50", "kl_p95", "kl_p99"))
            arm, rate = rates[label]
            lines.append(
                [arm, label, f"{rate:g}", str(seed), f"{success:.2f}", f"{pairs:.2f}", kl, f"{d['flips']:.3f}"]
            )
    head = [
        "arm",
        "job",
        "rate",
        "seed",
        f"success on {read}",
        "both of a pair",
        "KL p50 / p95 / p99",
        "first choices changed",
    ]
    return table(head, lines)
