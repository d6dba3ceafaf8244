"""`hintdistill critique --labels`: run the configured critics on labelled traces and score them against the labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.core.errors import EmptyFunnelError, InputError, ServiceError
from hintdistill.core.storage import write_atomic
from hintdistill.core.types import Critique, Trace
from hintdistill.critics.build import make_critics
from hintdistill.critics.cascade import Said, escalation, settle
from hintdistill.critics.evaluation import Case, evaluate, named_step
from hintdistill.critics.recorded import RecordedCritic
from hintdistill.pipeline import critique
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.dry_run import total_money
from hintdistill.pipeline.labels_hints import lines as hint_lines
from hintdistill.pipeline.labels_hints import repairs
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.prompts import hint_classes
from hintdistill.reporting.spending import PARTS, spending
from hintdistill.traces.formats.annotated import Label, Labelled, read_annotated
from hintdistill.traces.options import Failure
from hintdistill.traces.reading import read_traces

TOLD = {"step", "error_class", "quote", "hint", "confidence", "caused_by", "decisive"}
"""Fields of a finding that are kept in addition to the scores."""


def score_critics(
    config: RunConfig, labels: Path, folder: Path, console: Console, *, trust: bool = False, hints: bool = False
) -> dict[str, Any]:
    """Critique the labelled traces, score the results, and write them to `folder`/evaluation.json.

    `labels` is a file or folder of a known annotated set, or a file of recorded findings about the traces in
    traces.path. Answers are kept in the folder, so that a second call repeats no question.

    Args:
        trust: see `pipeline.run.run`.
        hints: whether the model of run.model also reads the hints of the findings; see `labels_hints.repairs`.

    Raises:
        InputError: `labels` does not exist.
        EmptyFunnelError: there is no labelled trace.
        ServiceError: a critic's server is unreachable; earlier answers are kept.
    """
    with in_use(config, trust):
        return _score_critics(config, labels, folder, console, hints)


def _score_critics(config: RunConfig, labels: Path, folder: Path, console: Console, hints: bool) -> dict[str, Any]:
    ctx = RunContext(config, RunDir(folder), console)
    labelled, unread = _labelled(ctx, labels)
    return score_labelled(ctx, labelled, hints=hints, about={"labels": str(labels), "unread": unread})


def score_labelled(
    ctx: RunContext,
    labelled: Sequence[Labelled],
    *,
    hints: bool = False,
    about: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Critique these traces and score the results, as `score_critics` does after reading them.

    Args:
        about: facts about the traces for the beginning of the document, e.g. their origin.
    """
    config, folder = ctx.config, ctx.rundir.path
    said, asked = _critiques(ctx, [of.trace for of in labelled])
    cases: list[Case] = []
    for of in labelled:
        spoken = [s for s in said[of.trace.id] if isinstance(s, Critique)]
        cases.append(Case(of.trace, of.label, settle(of.trace.id, spoken) if spoken else None, of.source_set))
    prices = config.model_dump(mode="json", include={"critic"})
    spent = spending([row for rows in asked.values() for row in rows], prices, 0)
    result = {
        **about,
        "critics": list(config.critic.use),
        **evaluate(cases, hint_classes(ctx.library)),
        "prompts": {n: ctx.library.hash(n) for n in ctx.library.names()},
        "usage": {n: spent[n] for n in (*PARTS, "money")},
        "cases": [
            {
                "trace": t.id,
                "label": label.model_dump(mode="json", exclude_defaults=True),
                "set": source_set,
                "verdict": c.verdict if c else "failed",
                "named": named_step(c),
                "findings": [f.model_dump(mode="json", include=TOLD) for f in c.findings] if c else [],
                "notes": list(c.notes) if c else [],
                "cost": _cost(asked[t.id], prices),
            }
            for t, label, c, source_set in cases
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "evaluation.json", json.dumps(result, indent=1, ensure_ascii=False))
    if all(c.critique is None for c in cases):
        messages = dict.fromkeys(s.message for of in said.values() for s in of if not isinstance(s, Critique))
        raise ServiceError(
            f"every critic failed on all {len(cases)} labelled traces: {next(iter(messages), 'no critic was asked')}",
            hint=f"{folder / 'evaluation.json'} lists the cases; the same command asks again",
        )
    if hints:
        # after the answers are kept: a model that does not load costs none of them
        result["hints"] = repairs(ctx, cases)
        write_atomic(folder / "evaluation.json", json.dumps(result, indent=1, ensure_ascii=False))
    return result


def score_ahead(config: RunConfig, labels: Path, console: Console, *, trust: bool = False) -> dict[str, Any]:
    """Return an upper bound of the questions of `score_critics` as `traces`, `critics` (see `critique.asked`) and
    `money`; nothing is asked.

    Raises what `score_critics` raises.
    """
    with in_use(config, trust):
        ctx = RunContext(config, RunDir(Path()), console)
        labelled, _ = _labelled(ctx, labels)
        critics = critique.asked(ctx, [of.trace for of in labelled])
        return {"traces": len(labelled), "critics": critics, "money": total_money(critics)}


def _labelled(ctx: RunContext, labels: Path) -> tuple[list[Labelled], int]:
    """Return the labelled traces, at most `traces.limit`, and how many records could not be read."""
    if not labels.exists():
        raise InputError(
            f"{labels} does not exist", hint="--labels names a file or folder of labelled traces, or of findings"
        )
    found, failures = _read(ctx, labels)
    if not found:
        raise EmptyFunnelError(f"no labelled trace under {labels}", hint="; ".join(f.message for f in failures[:3]))
    return found[: ctx.config.traces.limit], len(failures)


def _read(ctx: RunContext, labels: Path) -> tuple[list[Labelled], list[Failure]]:
    if not _is_recorded(labels):
        read = list(read_annotated([labels], ctx.read_options()))
        failures = [r for r in read if isinstance(r, Failure)]
        for failure in failures[:5]:
            ctx.console.warn(f"{failure.source}: {failure.message}")
        return [r for r in read if isinstance(r, Labelled)], failures
    truth = RecordedCritic(labels)
    traces = [t for t in read_traces(ctx.config.traces.path, ctx.read_options()) if isinstance(t, Trace)]
    return [Labelled(trace=t, label=label, source_set=labels.stem) for t, label in _recorded(truth, traces)], []


def _is_recorded(labels: Path) -> bool:
    if not labels.is_file():
        return False
    with labels.open(encoding="utf-8", errors="replace") as file:
        line = next((text for text in file if text.strip()), "")
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return isinstance(row, dict) and isinstance(row.get("trace"), str) and "step" in row


def _recorded(truth: RecordedCritic, traces: list[Trace]) -> Iterator[tuple[Trace, Label]]:
    for trace, outcome in truth.critique(traces):
        assert isinstance(outcome, Critique), outcome
        roots = [f for f in outcome.findings if f.caused_by is None] or list(outcome.findings)
        if not roots:
            yield trace, Label(verdict="none")
            continue
        steps = tuple(f.step for f in outcome.findings)
        yield trace, Label(verdict="findings", step=roots[0].step, steps=steps, error_class=roots[0].error_class)


def _cost(rows: list[dict[str, Any]], prices: dict[str, Any]) -> dict[str, float | None]:
    """Return the tokens, requests and money spent on one trace; money is None if a critic that asked a server has no
    price."""
    spent = spending(rows, prices, 0)
    tokens = spent["prompt_tokens"] + spent["completion_tokens"]
    return {"tokens": tokens, "requests": spent["requests"], "money": spent["money"]}


def _critiques(ctx: RunContext, traces: list[Trace]) -> tuple[dict[str, list[Said]], dict[str, list[dict[str, Any]]]]:
    """Return the critiques of each trace, and each critic's usage for it, as rows for `spending`."""
    section = ctx.config.critic
    said: dict[str, list[Said]] = {t.id: [] for t in traces}
    asked_for: dict[str, list[dict[str, Any]]] = {t.id: [] for t in traces}
    for critic in make_critics(section, ctx.config.run, ctx.library, ctx.rundir.path / "answers.jsonl"):
        asked = [t for t in traces if critic.name != "strong" or escalation(section, t, said[t.id])]
        with ctx.console.progress(f"critique ({critic.name})", len(asked)) as advance:
            meter = critique.Meter(section, critic)
            for trace, outcome in critic.critique(asked):
                said[trace.id].append(outcome)
                if (usage := getattr(outcome, "usage", None)) is not None:
                    asked_for[trace.id].append({"critic": critic.name, "critique": {"usage": usage.model_dump()}})
                advance.says(meter.add(outcome))
                advance(1)
                if not isinstance(outcome, Critique):
                    ctx.console.warn(f"{critic.name}: {outcome.message}")
    return said, asked_for


def spent_lines(result: Mapping[str, Any]) -> list[str]:
    """Return the critics' cost, and the effects of their hints if requested, as lines for a terminal."""
    usage = result["usage"]
    cost = "" if usage["money"] is None else f"; cost {usage['money']:,.4f}"
    line = f"{usage['requests']:,} requests, {usage['prompt_tokens']:,} prompt and {usage['completion_tokens']:,} answer tokens{cost}"
    return [line] * (usage["requests"] > 0) + (hint_lines(result["hints"]) if "hints" in result else [])
