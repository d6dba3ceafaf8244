"""The verdict of a report: one sentence and at most six figures, regressions first.

It is computed only from the report document, so that the page, the terminal and a shared report agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

State = Literal["worse", "look", "unknown", "good"]
ORDER: tuple[State, ...] = ("worse", "look", "unknown", "good")
"""The order of figures on the page: regressions first."""
MARKS: Mapping[State, str] = {"worse": "WORSE", "look": "LOOK", "unknown": "NOT MEASURED", "good": "ok"}
"""How a state is marked in words, so that it can be read without colour."""
STILL_LIKELY = 0.5
"""The error of a trained finding counts as still likely if its probability after training is at least this."""
RAISED = 0.05
"""A trained finding whose error has become more probable by more than this is a regression; a mean that has moved by
less counts as hardly changed."""
MAX_OFF_TARGET_KL = 0.1
"""The bound in nats per token if the run's configuration has none (`rollout.stop.max_off_target_kl`)."""


@dataclass(frozen=True)
class Figure:
    """Hold one figure of a verdict."""

    title: str
    value: str
    """The value in a few words."""
    lines: tuple[str, ...]
    """The rows behind it, one line each, the worst first."""
    state: State
    anchor: str
    """Id on the page of the rows from which the figure is computed."""
    worse: tuple[str, ...] = ()
    """What has become worse, for the sentence."""


@dataclass(frozen=True)
class Verdict:
    """Hold the verdict of a report."""

    sentence: str
    figures: tuple[Figure, ...]

    @property
    def worse(self) -> int:
        """Return the number of figures that show a regression."""
        return sum(f.state == "worse" for f in self.figures)


def verdict(document: Mapping[str, Any]) -> Verdict:
    """Compute the verdict of a report document (see docs/report.md), including shared ones and those of older
    releases."""
    near, tasks = _splits(document)
    figures = [
        _played("near-misses", near, "near-misses"),
        _played("tasks", tasks, "environment"),
        _off_target(document),
        _still_likely(document),
        _tripwires(document),
        _left_open(document),
    ]
    figures.sort(key=lambda f: ORDER.index(f.state))
    return Verdict(_sentence(document, figures), tuple(figures))


def split_rows(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return each split of the environment with the id of its first row on the page; near-misses share one id."""
    names = list((document.get("environment") or {}).get("splits", {}))
    first = next((n for n in names if is_near_miss(n)), None)
    return [(n, "near-misses" if n == first else f"split-{i}") for i, n in enumerate(names, 1)]


def is_near_miss(split: str) -> bool:
    """Return whether a split of the environment is a family of near-misses, according to its name:
    `near_miss_unknown_tool`."""
    return split.lower().replace("-", "_").startswith("near_miss")


def fell(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Return whether success fell by more than chance: the 95 % interval of the difference of two shares is below zero.

    Source: Agresti and Caffo 2000 (one success and one failure are added to each side). Episodes are treated as
    independent, which is conservative for tasks that are played twice.
    """
    shares = []
    for x in (before, after):
        n = x["episodes"] + 2
        p = (x["success_rate"] * x["episodes"] + 1) / n
        shares.append((p, p * (1 - p) / n))
    (p, vp), (q, vq) = shares
    return q - p + 1.96 * math.sqrt(vp + vq) < 0


def _splits(document: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    splits = (document.get("environment") or {}).get("splits", {})
    near = {name: by for name, by in splits.items() if is_near_miss(name)}
    return near, {name: by for name, by in splits.items() if name not in near}


def _played(title: str, splits: Mapping[str, Any], anchor: str) -> Figure:
    """Return success before and after training by split; a split is worse if success fell by more than chance."""
    both = {name: by for name, by in splits.items() if by.get("before") and by.get("after")}
    if not both:
        return Figure(title, "not measured before and after", (), "unknown", "environment")
    worse = [name for name, by in both.items() if fell(by["before"], by["after"])]
    changes = sorted(both.items(), key=lambda item: _change(item[1]))
    lines = tuple(
        f"{_short(name)}: success {_percent(by['before']['success_rate'])} → {_percent(by['after']['success_rate'])} "
        f"of {by['after']['episodes']}{' (worse)' if name in worse else ''}"
        for name, by in changes
    )
    missing = tuple(f"{_short(name)}: not played before and after" for name in splits if name not in both)
    fallen = sum(_change(by) < 0 for by in both.values()) - len(worse)
    value = f"{len(worse)} of {len(both)} worse" if worse else f"none of {len(both)} worse"
    value += f", {fallen} fell within chance" if fallen else ""
    state: State = "worse" if worse else "unknown" if missing else "look" if fallen else "good"
    return Figure(title, value, lines + missing, state, anchor, tuple(_short(n) for n, _ in changes if n in worse))


def _change(by: Mapping[str, Any]) -> float:
    return float(by["after"]["success_rate"] - by["before"]["success_rate"])


def _short(split: str) -> str:
    """Return a family of near-misses without the words that are already in the figure's title."""
    family = split[len("near_miss") :].lstrip("_-") if is_near_miss(split) else ""
    return f"family {family}" if family.isdigit() else family or split


def _off_target(document: Mapping[str, Any]) -> Figure:
    sets = document.get("off_target") or {}
    if not sets:
        return Figure("off-target KL", "not measured", (), "unknown", "environment")
    stop = ((document["run"].get("config") or {}).get("rollout") or {}).get("stop") or {}
    bound = stop.get("max_off_target_kl") or MAX_OFF_TARGET_KL
    ordered = sorted(sets.items(), key=lambda item: -item[1]["kl_per_token"])
    worse = [name for name, m in ordered if m["kl_per_token"] > bound]
    lines = tuple(
        f"{name}: {m['kl_per_token']:.5f} nats per token, {_percent(m['top1_flip_rate'])} of top tokens changed"
        f"{f' (above {bound:g})' if name in worse else ''}"
        for name, m in ordered
    )
    value = f"at most {ordered[0][1]['kl_per_token']:.5f} nats per token"
    return Figure("off-target KL", value, lines, "worse" if worse else "good", "off-target", tuple(worse))


def _still_likely(document: Mapping[str, Any]) -> Figure:
    title = "errors still likely after training"
    trained, read, held = 0, list[tuple[float, float]](), list[tuple[float, float]]()
    for f in document["findings"]:
        trained += bool(f["trained"])
        again = _read_again(f)
        read += again if f["trained"] else []
        held += again if f["split"] == "holdout" and f["accepted"] else []
    if not read:
        return Figure(title, "nothing trained, or not measured", (), "unknown", "findings")
    likely = sum(after >= STILL_LIKELY for _, after in read)
    raised = sum(after - before > RAISED for before, after in read)
    lines, worse = [f"trained: {likely} of {len(read)} at {STILL_LIKELY:g} or more"], []
    if len(read) < trained:
        lines.append(f"{trained - len(read)} trained findings have no decision token that was measured again")
    if raised:
        lines.append(f"{raised} more likely than before training, by over {RAISED:g}")
        worse.append(f"{raised} trained findings are more likely than before")
    if held:
        n = sum(after >= STILL_LIKELY for _, after in held)
        lines.append(f"held out, accepted: {n} of {len(held)} at {STILL_LIKELY:g} or more")
    _, p = _measured_on(document)
    if p["after"] is not None and p["before"] is not None and p["after"] - p["before"] > RAISED:
        worse.append(f"mean {p['before']:.3f} → {p['after']:.3f}")
    state: State = "worse" if worse else "look" if likely or len(read) < trained else "good"
    return Figure(title, f"{likely} of {len(read)} trained findings", tuple(lines), state, "findings", tuple(worse))


def _read_again(finding: Mapping[str, Any]) -> list[tuple[float, float]]:
    """Return the probability of the decision token before and after training, if it was measured again."""
    decision = finding.get("decision")
    return [] if not decision or decision["after"] is None else [(decision["before"], decision["after"])]


def _measured_on(document: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Return the findings on which the effect of training is reported, and its mean probabilities: held-out traces,
    else accepted findings."""
    effects = document["effects"]
    held = effects["by_split"]["holdout"]["error_probability"]
    if held["after"] is not None:
        return "held-out traces", held
    return "accepted findings", effects["accepted"]["error_probability"]


def _tripwires(document: Mapping[str, Any]) -> Figure:
    crossed = (document.get("train") or {}).get("tripwires")
    if crossed is None:
        why = "nothing trained" if not document.get("train") else "no metrics of the training"
        return Figure("tripwires", why, (), "unknown", "training")
    lines = tuple(f"{c['tripwire']} at step {c['step']}: {c['value']:.4g}, bound {c['bound']:g}" for c in crossed)
    return Figure(
        "tripwires",
        f"{len(crossed)} crossed",
        lines,
        "worse" if crossed else "good",
        "training",
        tuple(dict.fromkeys(c["tripwire"] for c in crossed)),
    )


def _left_open(document: Mapping[str, Any]) -> Figure:
    """Return critiques that may succeed in another attempt, and findings that could not be scored; intentional skips
    are listed."""
    f = document["funnel"]
    owed = f["critique"].get("owed")
    n, word = (sum(_counts(f["critique"]["failed"]).values()), "failed") if owed is None else (owed, "owed")
    lost = _counts(f["inject"]["failed"])
    for reason, times in _counts(f["rescore"]["failed"]).items():
        lost[reason] = lost.get(reason, 0) + times
    lines = [f"{n} critiques {word}"]
    lines += [f"could not be scored: {k} {reason}" for reason, k in sorted(lost.items(), key=lambda item: -item[1])]
    lines += [f"skipped by the settings: {k} {reason}" for reason, k in _counts(f["inject"]["skipped"]).items()]
    value = f"{n} critiques {word}, {sum(lost.values())} findings could not be scored"
    anchor = "unscored" if document.get("unscored") else "funnel"
    return Figure("left open", value, tuple(lines), "look" if n or lost else "good", anchor)


def _counts(found: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers among the entries: a shared document has None in place of anything else."""
    return {name: n for name, n in found.items() if n is not None}


def _sentence(document: Mapping[str, Any], figures: Sequence[Figure]) -> str:
    """Return the sentence: the effect of training on the error, then what became worse."""
    worse = [f"{f.title} ({', '.join(f.worse)})" for f in figures if f.state == "worse"]
    unknown = [f.title for f in figures if f.state == "unknown"]
    said = _effect(document)
    if worse:
        return f"{said}, but there is a regression: {_listed(worse)}."
    if unknown:
        return f"{said}; no measurement is worse beyond chance; not measured: {_listed(unknown)}."
    return f"{said}, and no measurement is worse beyond chance."


def _effect(document: Mapping[str, Any]) -> str:
    rescored, trained = document["funnel"]["rescore"], document["funnel"]["train"]["hints"]
    if not trained:
        return f"Nothing was trained ({rescored['accepted']} of {rescored['scored']} hints were accepted)"
    on, p = _measured_on(document)
    if p["before"] is None or p["after"] is None:
        return f"Training on {trained} hints was not measured"
    change = p["after"] - p["before"]
    verb = "lowered" if change < -RAISED else "raised" if change > RAISED else "hardly changed"
    kind = "placebo hints" if document["run"]["hint"] == "placebo" else "hints"
    figures = f"{p['before']:.3f} → {p['after']:.3f}"
    return f"Training on {trained} {kind} {verb} the probability of the error on {on} ({figures})"


def _listed(words: Iterable[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
