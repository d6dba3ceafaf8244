"""The tables of benchmarks/real.py, made from its results alone."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation.markdown import table
from hintdistill.core.statistics import Interval, difference, gap_closed, mean_of

Row = dict[str, Any]
DRAWS = 4000


def nouns_bootstrap(statistic: Callable[..., Any], nouns: Sequence[str], *tables: Any) -> Interval:
    """A statistic of the means of tables [seeds, tasks], its interval over seeds and nouns, all tables resampled alike."""
    estimate, draws = nouns_draws(statistic, nouns, *tables)
    if np.isnan(draws).all():
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Interval(estimate, float(low), float(high))


def nouns_draws(statistic: Callable[..., Any], nouns: Sequence[str], *tables: Any) -> tuple[float, np.ndarray]:
    """The statistic itself, and its value [DRAWS] on resampled seeds and nouns; see `nouns_bootstrap`."""
    rng = np.random.default_rng(0)
    arrays = [np.atleast_2d(np.asarray(t, float)) for t in tables]
    names, at = np.unique(np.asarray(nouns), return_inverse=True)
    seeds = len(arrays[0])
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) / seeds
    weight = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), DRAWS)[:, at].astype(float)
    weight /= weight.sum(1, keepdims=True)
    draws = np.asarray(statistic(*(((by_seed @ a) * weight).sum(1) for a in arrays)), float)
    return float(statistic(*(a.mean() for a in arrays))), draws


def first_nouns(rows: Sequence[Row]) -> list[str]:
    return [r["nouns"][0] for r in rows]


def share(rows: Sequence[Row], key: str = "success") -> str:
    return f"{np.mean([r[key] for r in rows]):.2f}" if rows else "–"


def interval_text(interval: Interval) -> str:
    return f"{interval.mean:.2f} ({interval.low:.2f} to {interval.high:.2f})"


# -- what the untrained model does -------------------------------------------------------------------------------------

ARMS = {
    "base": "no hint",
    "level0": "level 0: a principle",
    "level1": "level 1: names the missing thing",
    "level2": "level 2: the call's tool",
    "placebo": "placebo",
    "redraw": "none, drawn once more",
}


def read_cells(folder: Path) -> dict[tuple[str, str], Row]:
    """The cells that are measured, by (split, arm); of several sizes the largest."""
    out: dict[tuple[str, str], Row] = {}
    for path in sorted(folder.glob("*.json")):
        cell = json.loads(path.read_text(encoding="utf-8"))
        key = (cell["split"], cell["arm"])
        if key not in out or out[key]["n"] < cell["n"]:
            out[key] = cell
    return out


def base_table(cells: Mapping[tuple[str, str], Row]) -> str:
    """Success by split and arm; by whether one thing is asked for or several; hinted minus base, paired, over nouns."""
    lines = []
    for split in ("unseen", "validation", "near", "clean"):
        base = cells.get((split, "base"))
        for arm, said in ARMS.items():
            cell = cells.get((split, arm))
            if cell is None or base is None:
                continue
            rows = cell["episodes"]
            pair = [[r["success"] for r in of] for of in (rows, base["episodes"])]
            gained = "" if arm == "base" else interval_text(nouns_bootstrap(difference, first_nouns(rows), *pair))
            own = nouns_bootstrap(mean_of, first_nouns(rows), pair[0])
            several = [r for r in rows if len(r["nouns"]) > 1]
            single = [r for r in rows if len(r["nouns"]) == 1]
            lines.append([split, said, str(len(rows)), interval_text(own), gained, share(single), share(several)])
    head = ["split", "hint", "n", "success (95 %)", "minus no hint", "one thing", "several things"]
    return table(head, lines)


def shape_table(cells: Mapping[tuple[str, str], Row]) -> str:
    """Summarise the plain episodes: steps played, places of errors, clean steps around the first error, first errors by class."""
    lines = []
    for (split, arm), cell in sorted(cells.items()):
        if arm != "base":
            continue
        rows = cell["episodes"]
        erring = [r for r in rows if r["error"]]
        both = [r for r in erring if r["clean_before"] and r["clean_after"]]
        at, classes = _counted(str(r["error_at"]) for r in erring), _counted(r["error"] for r in erring)
        share = f"{len(both)} of {len(erring)}" + (f" ({len(both) / len(erring):.2f})" if erring else "")
        median = f"{np.median([r['steps'] for r in rows]):g}"
        cut = str(sum(bool(r["failure"]) for r in rows))
        lines.append([split, str(len(rows)), median, share, at, classes, cut])
    head = ["split", "n", "median steps", "clean step before and after", "first error at step", "first errors", "cut"]
    return table(head, lines)


def repair_table(cells: Mapping[tuple[str, str], Row]) -> str:
    """Decoded repair by class and arm: repaired of tried, over all splits that are measured."""
    counted: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    arms = [a for a in ARMS if a != "base" and any(k[1] == a for k in cells)]
    for (_, arm), cell in cells.items():
        for r in cell.get("repairs", ()):
            counted[r["class"]][arm].append(r["repaired"])
    lines = [
        [c, *(f"{sum(of[a])} of {len(of[a])}" if of[a] else "–" for a in arms)] for c, of in sorted(counted.items())
    ]
    return table(["error class", *(ARMS[a] for a in arms)], lines)


def _counted(names: Any) -> str:
    found: dict[str, int] = defaultdict(int)
    for name in names:
        found[name] += 1
    return ", ".join(f"{k} {v}" for k, v in sorted(found.items(), key=lambda kv: (-kv[1], kv[0])))


# -- what it learns ----------------------------------------------------------------------------------------------------


def pairs_right(measured: Mapping[str, Sequence[Row]]) -> list[bool]:
    by_number = [{r["task"].split(".", 1)[1]: r["success"] for r in measured[s]} for s in ("found", "last")]
    return [by_number[0][k] and by_number[1][k] for k in by_number[0]]


def arms_table(results: Mapping[str, Sequence[Row]], read: str) -> str:
    """Success, gain, pairs and clean tasks by arm, over the seeds that are done; `results` are jobs by label."""
    none = {r["seed"]: r for r in results.get("none", ())}
    lines = []
    for label, jobs in results.items():
        done = [j for j in jobs if "measured" in j]
        if not done:
            continue
        success = [[r["success"] for r in j["measured"][read]] for j in done]
        nouns = first_nouns(done[0]["measured"][read])
        gain = "–"
        seeds = [j["seed"] for j in done]
        if label != "none" and all(s in none and "hinted" in none[s] for s in seeds):
            before = [[r["success"] for r in none[s]["measured"][read]] for s in seeds]
            hinted = [[r["success"] for r in none[s]["hinted"]] for s in seeds]
            gain = interval_text(nouns_bootstrap(gap_closed, nouns, success, before, hinted))
        pairs = [x for j in done for x in pairs_right(j["measured"])]
        clean = [r for j in done for r in j["measured"].get("clean", ())]
        distinct = ", ".join(f"{k} {v}" for k, v in done[0].get("distinct", {}).items())
        lines.append(
            [
                label,
                ", ".join(str(s) for s in seeds),
                interval_text(nouns_bootstrap(mean_of, nouns, success)),
                gain,
                f"{np.mean(pairs):.2f}",
                share(clean),
                distinct,
            ]
        )
    head = ["arm", "seeds", f"success on {read} (95 %)", "gain (95 %)", "both of a pair", "clean", "distinct rows"]
    return table(head, lines)


def coverage_table(shared: Sequence[Row]) -> str:
    """By error class: findings of all seeds, hints accepted, twins accepted."""
    classes = sorted({c for s in shared for c in s["findings"]})

    def total(key: str, name: str) -> str:
        return str(sum(s[key].get(name, 0) for s in shared))

    lines = [[c, total("findings", c), total("accepted", c), total("twins_accepted", c)] for c in classes]
    return table(["error class", "findings", "hints accepted", "twins accepted"], lines)


def makers_table(more: Sequence[Row], shared: Sequence[Row]) -> str:
    """By error class, on the seeds of `shared_twins`: findings, those with a checked twin before and after, edits by kind."""
    seeds = {m["seed"] for m in more}
    before = Counter[str]()
    for row in shared:
        before.update(row["twins_accepted"] if row["seed"] in seeds else {})
    lines = []
    for name in sorted({c for m in more for c in m["findings"]}):
        findings, after = (sum(m[key].get(name, 0) for m in more) for key in ("findings", "covered"))
        kinds = Counter[str]()
        for m in more:
            kinds.update(m["twins"]["classes"].get(name, {}).get("kinds", {}))
        made = ", ".join(f"{kind} {n}" for kind, n in sorted(kinds.items()))
        kept = sum(m["twins_accepted"].get(name, 0) for m in more)
        lines.append([name, str(findings), str(before[name]), str(after), f"{kept} of {kinds.total()}", made or "–"])
    head = ["error class", "findings", "with a checked twin, before", "after", "twins kept", "edits by kind"]
    named = ", ".join(str(s) for s in sorted(seeds))
    return f"Twins by all makers, up to three of a finding (seeds {named}):\n\n{table(head, lines)}"
