"""`hintdistill critique --labels`: the configured critics on labelled traces, scored against the labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.core.errors import EmptyFunnelError, InputError
from hintdistill.core.storage import write_atomic
from hintdistill.core.types import Critique, Trace
from hintdistill.critics.build import make_critics
from hintdistill.critics.cascade import Said, escalation, settle
from hintdistill.critics.evaluation import Case, evaluate
from hintdistill.critics.recorded import RecordedCritic
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.traces.formats.annotated import Label, Labelled, read_annotated
from hintdistill.traces.options import Failure
from hintdistill.traces.reading import read_traces


def score_critics(
    config: RunConfig, labels: Path, folder: Path, console: Console, *, trust: bool = False
) -> dict[str, Any]:
    """Critique the labelled traces and score the outcome; written to `folder`/evaluation.json.

    `labels` is a file or folder of a known annotated set, or a file of recorded findings about the traces that
    traces.path names. Answers are kept in the folder, so that a second call asks nothing twice.

    Args:
        trust: see `pipeline.run.run`.

    Raises:
        InputError: nothing at `labels`.
        EmptyFunnelError: no labelled trace.
        ServiceError: a critic's server is gone; what it answered before is kept.
    """
    if not labels.exists():
        raise InputError(
            f"no labels at {labels}", hint="--labels names a file or folder of labelled traces, or of findings"
        )
    with in_use(config, trust):
        return _score_critics(config, labels, folder, console)


def _score_critics(config: RunConfig, labels: Path, folder: Path, console: Console) -> dict[str, Any]:
    ctx = RunContext(config, RunDir(folder), console)
    labelled, failures = _read(ctx, labels)
    limit = config.traces.limit
    labelled = labelled[:limit] if limit is not None else labelled
    if not labelled:
        raise EmptyFunnelError(f"no labelled trace under {labels}", hint="; ".join(f.message for f in failures[:3]))
    said = _critiques(ctx, [trace for trace, _ in labelled])
    cases: list[Case] = []
    for trace, label in labelled:
        spoken = [s for s in said[trace.id] if isinstance(s, Critique)]
        cases.append((trace, label, settle(trace.id, spoken) if spoken else None))
    usage = [c.usage for _, _, c in cases if c is not None]
    result = {
        "labels": str(labels),
        "critics": list(config.critic.use),
        "unread": len(failures),
        **evaluate(cases),
        "usage": {n: sum(getattr(u, n) for u in usage) for n in ("requests", "prompt_tokens", "completion_tokens")},
        "cases": [
            {
                "trace": t.id,
                "label": label.model_dump(mode="json", exclude_defaults=True),
                "verdict": c.verdict if c else "failed",
                "steps": [f.step for f in c.findings] if c else [],
                "notes": list(c.notes) if c else [],
            }
            for t, label, c in cases
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "evaluation.json", json.dumps(result, indent=1, ensure_ascii=False))
    return result


def _read(ctx: RunContext, labels: Path) -> tuple[list[tuple[Trace, Label]], list[Failure]]:
    if not _is_recorded(labels):
        read = list(read_annotated([labels], ctx.read_options()))
        failures = [r for r in read if isinstance(r, Failure)]
        for failure in failures[:5]:
            ctx.console.warn(f"{failure.source}: {failure.message}")
        return [(r.trace, r.label) for r in read if isinstance(r, Labelled)], failures
    truth = RecordedCritic(labels)
    traces = [t for t in read_traces(ctx.config.traces.path, ctx.read_options()) if isinstance(t, Trace)]
    return list(_recorded(truth, traces)), []


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


def _critiques(ctx: RunContext, traces: list[Trace]) -> dict[str, list[Said]]:
    section = ctx.config.critic
    said: dict[str, list[Said]] = {t.id: [] for t in traces}
    for critic in make_critics(section, ctx.config.run, ctx.library, ctx.rundir.path / "answers.jsonl"):
        asked = [t for t in traces if critic.name != "strong" or escalation(section, t, said[t.id])]
        with ctx.console.progress(f"critique ({critic.name})", len(asked)) as advance:
            for trace, outcome in critic.critique(asked):
                said[trace.id].append(outcome)
                advance(1)
                if not isinstance(outcome, Critique):
                    ctx.console.warn(f"{critic.name}: {outcome.message}")
    return said
