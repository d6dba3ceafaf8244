"""Measure how well the gate tells working hints from useless ones; choose thresholds on one half, test once on the other.

    python benchmarks/gate.py collect CONFIG OUT.jsonl --checker FILE:FUNCTION [--wordings FILE:FUNCTION] [--limit N] [key=value …]
    python benchmarks/gate.py calibrate OUT.jsonl [--held OTHER.jsonl …]
    python benchmarks/gate.py read OUT.jsonl … [--half test|calibration|all]

`collect` reads and critiques the traces of an ordinary configuration, and writes one row per finding and arm: each candidate
hint (`inject.candidates`, and the texts of `--wordings`), the placebos of two draws, and two kinds of hints that are wrong (a
confident one for another listed tool; the right one above a neighbouring clean step). Candidates and wrong hints are decoded
greedily as well, as is the step without a hint; a step is *repaired* if the checker finds nothing in it. So are placebos that the
gate lets pass: one that repairs the step is a hint by accident. Findings that OUT.jsonl has already are not measured again.

`calibrate` divides the findings of each file by noun (the finding's fact `thing`, or the first part of the task's name) into two
halves, each class in both, and tries a grid of thresholds on the calibration halves alone: of those that let at most 10 % of the
generic placebos, of the answer-free shuffled ones and of all of them together pass, the one that accepts most of the hints that
repair; of several files, the worst counts. With these thresholds each test half, and every `--held` file whole, is read once.
`fall_alone` is the gate of before: the decision token falls by 1 nat, and by more than under any placebo.
`read` does the reading with the thresholds of the configuration's defaults.

A finding counts for the choice among candidates if several of them have the same level: `winner` is the repair rate of the one
with the largest odds, `random` that of all of them.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hintdistill.config import GateCheck, GateSection
from hintdistill.config.file import load_config
from hintdistill.core.errors import HintdistillError
from hintdistill.core.importing import load_object
from hintdistill.core.scores import Measurement, Target
from hintdistill.core.storage import write_atomic
from hintdistill.core.types import Finding, Injection, PlaceboKind, Trace
from hintdistill.injection.hints import placebo_texts, seed_of
from hintdistill.injection.levels import words_of
from hintdistill.injection.splice import Injector
from hintdistill.pipeline import critique, read
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.corrections import corrected_step
from hintdistill.pipeline.inject import select
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.stages import run_stages
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.variants import scorer_of
from hintdistill.rescoring.gate import judge
from hintdistill.rescoring.scorer import HintItem
from hintdistill.rollouts.generation import SamplingOptions
from hintdistill.rollouts.sampling import Sampler

Checker = Callable[[Trace], Sequence[Finding]]
Row = dict[str, Any]
NULLS = ("generic", "shuffled_answer_free")
"""Kinds of placebo that the bound is on."""
MOST = 0.10
GRID = {
    "min_odds_nats": (0.5, 1.0, 1.5, 2.0, 2.5, 3.0),
    "min_odds_margin_nats": (0.5, 1.0, 1.5, 2.0, 3.0),
    "min_drop_nats": (0.0, 0.25, 0.5),
    "min_legal_gain": (0.0, 0.1, 0.2, 0.3),
}


# -- collect -----------------------------------------------------------------------------------------------------------


def arms_of(
    injector: Injector, trace: Trace, finding: Finding, wordings: Sequence[str], clean: Sequence[int]
) -> list[tuple[str, Injection]]:
    """Return the injections of a finding by arm, all with the placebos of its first hint, which are therefore read once."""
    first, *others = injector.candidates(trace, finding)
    placebos = [(p.kind, p.text) for p in first.placebos]
    texts = [(f"hint:{i.candidate}", i.hint) for i in others]
    texts += [(f"hint:wording{n}", text) for n, text in enumerate(wordings)]
    if (tool := _other_tool(trace, finding, first.hint)) is not None:
        texts.append(("other_tool", f"The right tool here is {tool}."))
    out = [(f"hint:{first.candidate or 'critic'}", first)]
    for arm, text in texts:
        if text not in {i.hint for _, i in out}:
            out.append((arm, injector.with_placebos(trace, finding, text, placebos)))
    for k in [k for k in clean if abs(k - finding.step) == 1][:1]:
        moved = Finding(step=k, error_class=finding.error_class, hint=first.hint, critic=finding.critic)
        out.append(("one_off", injector.inject(trace, moved)))
    twice = placebo_texts(trace, finding, first.hint, injector.library, [*injector.kinds, *injector.kinds])
    out.append(("draw2", injector.with_placebos(trace, finding, first.hint, twice[len(injector.kinds) :])))
    return out


def _other_tool(trace: Trace, finding: Finding, hint: str) -> str | None:
    """A listed tool that is neither called nor named by the hint or by the finding's facts; drawn by the finding."""
    said = set(words_of(hint)) | {c.name.casefold() for c in trace.step(finding.step).tool_calls}
    said |= set(words_of(json.dumps(finding.facts, ensure_ascii=False)))
    left = sorted(n for n in trace.tool_schemas if n.casefold() not in said)
    return left[seed_of("other tool", trace.id, finding.step) % len(left)] if left else None


def rows_of(
    number: int, trace: Trace, finding: Finding, arms: Sequence[tuple[str, Injection]], targets: Sequence[Target]
) -> Iterator[Row]:
    """The rows of a finding: its arms, and the placebos of its first hint in each draw."""
    base = {"finding": number, "trace": trace.id, "step": finding.step, "class": finding.error_class}
    base["noun"] = finding.facts.get("thing") or (trace.task_id or trace.id).split(".")[0]
    for (arm, injection), target in zip(arms, targets, strict=True):
        assert target.measurement is not None
        if arm != "draw2":
            yield {
                **base,
                "arm": arm,
                "level": injection.level,
                "text": injection.hint,
                "guards": list(injection.guards),
                "m": asdict(target.measurement),
            }
        if arm in ("draw2", arms[0][0]):
            for p in target.placebos:
                yield {
                    **base,
                    "arm": p.kind,
                    "text": p.text,
                    "guards": [],
                    "m": asdict(p.measurement),
                    "of_hint": p.odds,
                }


def collect(args: argparse.Namespace) -> None:
    """Write the rows of every finding that is not there yet."""
    config = load_config(args.config, args.overrides)
    checker = load_object(args.checker, "--checker", "checker")
    wordings = load_object(args.wordings, "--wordings", "function") if args.wordings else lambda trace, finding: ()
    lines = args.out.read_text(encoding="utf-8").splitlines() if args.out.is_file() else []
    known = {(r["trace"], r["step"]) for r in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder:
        rundir = RunDir.create(Path(folder) / "run", config, resume=False)
        ctx = RunContext(config, rundir, Console())
        run_stages(ctx, until="critique")
        found = list(enumerate(_findings(ctx)[: args.limit]))
        owed = [(n, *f) for n, f in found if (f[0].id, f[1].step) not in known]
        injector = Injector(ctx.renderer, ctx.library, config.inject, config.rescore.placebos)
        scorer, decoder = scorer_of(ctx), _Decoder(ctx, checker, args.max_new_tokens)
        for at in range(0, len(owed), 16):
            batch, items, laid = [], [], []
            for n, trace, finding, clean in owed[at : at + 16]:
                try:
                    arms = arms_of(injector, trace, finding, wordings(trace, finding), clean)
                except HintdistillError as error:
                    print(f"{trace.id}:{finding.step}: {error.message}", file=sys.stderr)
                    continue
                batch.append((n, trace, finding, arms))
                items += [HintItem(f"{n}:{arm}", i, "train") for arm, i in arms]
            scored = iter(scorer.score(items))
            for n, trace, finding, arms in batch:
                rows = list(rows_of(n, trace, finding, arms, [next(scored) for _ in arms]))
                laid.append((trace, rows, [*arms, *_passing(injector, trace, finding, rows)]))
            decoder.decode(laid)
            lines += [json.dumps(r, ensure_ascii=False) for _, rows, _ in laid for r in rows]
            write_atomic(args.out, "".join(f"{line}\n" for line in lines))
            print(f"{min(at + 16, len(owed))} of {len(owed)} findings", file=sys.stderr, flush=True)
        rundir.close()


def _passing(
    injector: Injector, trace: Trace, finding: Finding, rows: Sequence[Row]
) -> Iterator[tuple[str, Injection]]:
    """The placebos that the gate lets pass, each as if it were the hint."""
    for n, row in enumerate(rows):
        if row["arm"] in get_args(PlaceboKind) and accepted(row, GateSection()):
            yield f"placebo:{n}", injector.with_placebos(trace, finding, row["text"], ())


def _findings(ctx: RunContext) -> list[tuple[Trace, Finding, list[int]]]:
    """Root findings with their trace and its clean steps; in an order that mixes nouns and classes."""
    critiques, section, out = critique.load(ctx), ctx.config.critic, []
    for key, trace, _ in read.load(ctx):
        if key not in critiques:
            continue
        wrong = {f.step for f in critiques[key].findings} | trace.given_steps
        clean = [k for k in range(len(trace.step_indices)) if k not in wrong]
        chosen = select(critiques[key], section.max_per_trace, section.min_confidence, section.select)
        out += [(trace, f, clean) for f, skipped in chosen if skipped is None and f.step not in trace.given_steps]
    return sorted(out, key=lambda x: seed_of("gate", x[0].id, x[1].step))


class _Decoder:
    """Decodes steps greedily under a hint and says whether the checker finds nothing in them."""

    def __init__(self, ctx: RunContext, checker: Checker, max_new_tokens: int) -> None:
        self.options = SamplingOptions(temperature=0.0, max_new_tokens=max_new_tokens, batch_size=32)
        self.sampler = Sampler(ctx.engine(ctx.teacher_folder), ctx.renderer, self.options)
        self.checker = checker

    def decode(self, laid: Sequence[tuple[Trace, list[Row], Sequence[tuple[str, Injection]]]]) -> None:
        """Set `repaired` in the rows of hints, and in that of the first hint `plain_repaired`."""
        asked: list[tuple[Row, str, Trace, Injection, Sequence[int]]] = []
        for trace, rows, arms in laid:
            by_arm = {r["arm"]: r for r in rows} | {f"placebo:{n}": r for n, r in enumerate(rows)}
            asked.append((rows[0], "plain_repaired", trace, arms[0][1], arms[0][1].context_ids))
            for arm, injection in arms:
                if arm.startswith(("placebo:", "hint:")) or arm == "other_tool":
                    asked.append((by_arm[arm], "repaired", trace, injection, injection.hinted_context_ids))
        for at in range(0, len(asked), self.options.batch_size):
            batch = asked[at : at + self.options.batch_size]
            steps = self.sampler.generate([ids for *_, ids in batch], at)
            for (row, name, trace, injection, _), ids in zip(batch, steps, strict=True):
                step = injection.finding.step
                corrected, _ = corrected_step(self.sampler, trace, step, injection.context_ids, ids)
                row[name] = corrected is not None and not any(f.step == step for f in self.checker(corrected))


# -- thresholds --------------------------------------------------------------------------------------------------------


def half_of(row: Row) -> str:
    """The half of a finding, by its noun alone, so that no noun is in both."""
    return ("calibration", "test")[hashlib.sha256(f"gate half {row['noun']}".encode()).digest()[0] % 2]


def accepted(row: Row, gate: GateSection) -> bool:
    """Whether the gate accepts this row in a hint's place."""
    return not judge(Measurement(**row["m"]), row["guards"], gate)


def rate(rows: Sequence[Row], gate: GateSection) -> float | None:
    """Share of rows that the gate accepts; None without any."""
    return float(np.mean([accepted(r, gate) for r in rows])) if rows else None


def working(rows: Sequence[Row]) -> list[Row]:
    """Hints that repair the step when decoded, where it does not come out right without them."""
    spoiled = {r["finding"] for r in rows if r.get("plain_repaired")}
    return [r for r in rows if r["arm"].startswith("hint:") and r["repaired"] and r["finding"] not in spoiled]


def gates() -> Iterator[GateSection]:
    """Every setting of the grid."""
    for values in itertools.product(*GRID.values()):
        yield GateSection.model_validate(dict(zip(GRID, values, strict=True)))


def calibrate(files: Sequence[Sequence[Row]]) -> GateSection:
    """The setting that accepts most hints that repair within the bounds, the worst of several files; ties go to the stricter one."""
    good = [working(rows) for rows in files]
    nulls = [of for rows in files for of in _nulls(rows)]
    best: tuple[float, float, GateSection] | None = None
    for gate in gates():
        worst = max(rate(n, gate) or 0.0 for n in nulls)
        if worst > MOST:
            continue
        score = (min(rate(g, gate) or 0.0 for g in good), -worst, gate)
        if best is None or score[:2] > best[:2]:
            best = score
    if best is None:
        sys.exit("no setting of the grid keeps the placebos within the bound")
    return best[2]


def _nulls(rows: Sequence[Row]) -> list[list[Row]]:
    """The sets of placebos that a bound is on: each of two kinds, and all of them together."""
    kinds = [[r for r in rows if r["arm"] == kind] for kind in NULLS]
    return [*kinds, [r for r in rows if r["arm"] in get_args(PlaceboKind)]]


def fall_alone(row: Row) -> bool:
    """Whether the earlier gate accepts this row."""
    m = {**row["m"], "odds": None} | ({} if row["m"]["flips"] else {"position": None})
    return not judge(
        Measurement(**m), row["guards"], GateSection(min_drop_nats=1.0, min_legal_gain=0.0, checks=get_args(GateCheck))
    )


def auc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """Probability that a positive is above a negative, ties a half."""
    if not len(positive) or not len(negative):
        return None
    a, b = np.asarray(positive)[:, None], np.asarray(negative)[None]
    return float((a > b).mean() + 0.5 * (a == b).mean())


def read_half(rows: Sequence[Row], gate: GateSection) -> dict[str, Any]:
    """Everything that is reported of some rows under a gate."""
    good = working(rows)
    nulls = [r for r in rows if r["arm"] in NULLS]
    hints = [r for r in rows if r["arm"].startswith("hint:")]
    useless = [r for r in hints if not r["repaired"]]
    by_arm: dict[str, list[Row]] = defaultdict(list)
    for r in rows:
        by_arm[r["arm"]].append(r)

    def odds(of: Sequence[Row], name: str = "odds") -> list[float]:
        return [(-1 if name == "effect" else 1) * r["m"][name] for r in of]

    def margin(of: Sequence[Row]) -> list[float]:
        return [r["m"]["odds"] - r["m"]["placebo_odds"] for r in of]

    thresholds: Sequence[float] = np.quantile(margin([*good, *nulls]), np.linspace(0, 1, 11)).tolist() if good else []
    return {
        "findings": len({r["finding"] for r in rows}),
        "repaired_without_a_hint": float(np.mean([r["plain_repaired"] for r in rows if "plain_repaired" in r])),
        "hints_that_repair": {"n": len(good), "accepted": rate(good, gate)},
        "placebos": {"n": len(every := _nulls(rows)[-1]), "accepted": rate(every, gate)},
        "fall_alone": {
            name: float(np.mean([fall_alone(r) for r in of]))
            for name, of in (("hints", good), ("placebos", every))
            if of
        },
        "hints_that_do_not": {"n": len(useless), "accepted": rate(useless, gate)},
        "by_level": {
            level: {"n": len(of), "repair": float(np.mean([r["repaired"] for r in of])), "accepted": rate(of, gate)}
            for level in range(4)
            if (of := [r for r in hints if r["level"] == level])
        },
        "by_class": {
            c: {"n": len(of), "accepted": rate(of, gate)}
            for c in sorted({r["class"] for r in good})
            if (of := [r for r in good if r["class"] == c])
        },
        "by_arm": {
            arm: {"n": len(of), "accepted": rate(of, gate)}
            | ({"repair": float(np.mean(told))} if (told := [r["repaired"] for r in of if "repaired" in r]) else {})
            for arm, of in sorted(by_arm.items())
        },
        "auc": {
            "odds": auc(odds(good), odds(nulls)),
            "odds_over_placebos": auc(margin(good), margin(nulls)),
            "fall": auc(odds(good, "effect"), odds(nulls, "effect")),
            "odds_among_hints": auc(odds(good), odds(useless)),
        },
        "roc_odds_over_placebos": [
            [
                round(float(t), 2),
                float(np.mean(np.array(margin(nulls)) >= t)),
                float(np.mean(np.array(margin(good)) >= t)),
            ]
            for t in thresholds
        ],
        "choice": choice(hints),
    }


def choice(hints: Sequence[Row]) -> dict[str, Any]:
    """Decoded repair of the candidate with the largest odds against that of all of its level, by level."""
    groups: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for r in hints:
        groups[r["finding"], r["level"]].append(r)
    out = {}
    for level in range(4):
        several = [g for (_, at), g in groups.items() if at == level and len(g) > 1]
        if several:
            winners = [max(g, key=lambda r: r["m"]["odds"])["repaired"] for g in several]
            everyone = [float(np.mean([r["repaired"] for r in g])) for g in several]
            out[str(level)] = {
                "findings": len(several),
                "winner": float(np.mean(winners)),
                "random": float(np.mean(everyone)),
            }
    return out


def load(paths: Sequence[Path]) -> list[Row]:
    """The rows of some files; findings of different files stay apart."""
    return [
        {**json.loads(line), "finding": (n, json.loads(line)["finding"])}
        for n, path in enumerate(paths)
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def main() -> None:
    """Collect, calibrate or read; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    one = sub.add_parser("collect")
    one.add_argument("config"), one.add_argument("out", type=Path)
    one.add_argument("--checker", required=True), one.add_argument("--wordings")
    one.add_argument("--limit", type=int), one.add_argument("--max-new-tokens", type=int, default=64)
    two = sub.add_parser("calibrate")
    two.add_argument("files", type=Path, nargs="+"), two.add_argument("--held", type=Path, nargs="*", default=[])
    three = sub.add_parser("read")
    three.add_argument("files", type=Path, nargs="+")
    three.add_argument("--half", choices=("test", "calibration", "all"), default="all")
    args, overrides = parser.parse_known_args()
    args.overrides = overrides
    if overrides and args.command != "collect":
        parser.error(f"unrecognised: {' '.join(overrides)}")
    if args.command == "collect":
        return collect(args)
    if args.command == "read":
        rows = load(args.files)
        chosen = [r for r in rows if args.half in ("all", half_of(r))]
        print(json.dumps(read_half(chosen, GateSection())))
        return None
    files = {p.stem: load([p]) for p in args.files}
    half = {h: {n: [r for r in rows if half_of(r) == h] for n, rows in files.items()} for h in ("calibration", "test")}
    gate = calibrate(list(half["calibration"].values()))
    read_of = {name: {h: read_half(half[h][name], gate) for h in half} for name in files}
    held = {p.stem: read_half(load([p]), gate) for p in args.held}
    print(json.dumps({"thresholds": {k: getattr(gate, k) for k in GRID}, **read_of, "held": held}))
    return None


if __name__ == "__main__":
    main()
