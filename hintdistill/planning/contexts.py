"""`hintdistill contexts render`: print the texts that the teacher's views would read above each step, made and spliced
as in a run.

The stages that need no weights run in a temporary folder, with the critics that ask no model; results that the run
folder already contains are taken from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.stages import run_stages
from hintdistill.pipeline.store import RunDir, scratch_copy
from hintdistill.planning.workload import FREE


@dataclass(frozen=True)
class Preview:
    """Hold the texts that a run's teacher would read."""

    maker: str
    """The context maker of the teacher's own context."""
    steps: list[dict[str, Any]]
    """One mapping per shown step: `trace`, `step`, `error_class`, and either `hint` with `placement`, `tokens`,
    `guards` and `views`, or `reason` and `message`."""
    counted: dict[str, int]
    """The number of steps in the run with a context, and of those without one by reason."""


def preview(config: RunConfig, trace: str | None = None, step: int | None = None, limit: int = 3) -> Preview:
    """Make the contexts of a run's steps, and return some of them.

    Args:
        trace: return only steps of the trace with this id.
        step: return only this step.
        limit: return at most this many steps.

    Raises:
        HintdistillError: a stage from read to inject raised it.
    """
    with scratch_copy(config.run.dir) as folder:
        have = RunDir(folder).index("critique") is not None
        use = config.critic.use if have else tuple(c for c in config.critic.use if c in FREE) or ("rules",)
        settings = config.model_copy(update={"critic": config.critic.model_copy(update={"use": use})})
        ctx = RunContext(settings, RunDir.create(folder, settings, resume=True), Console(quiet=True))
        try:
            run_stages(ctx, until="inject", skip=("critique",) if have else ())
            rows = list(ctx.rundir.each("inject", "injections"))
        finally:
            ctx.rundir.close()
    shown = [s for s in map(_said, rows) if (trace in (None, s["trace"])) and (step in (None, s["step"]))]
    counted = Counter(str(_said(row).get("reason", "context")) for row in rows)
    return Preview(str(settings.injecting.hint), shown[:limit], dict(counted))


def _said(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of the inject stage in the form in which it is shown."""
    made = row.get("injection")
    finding = made["finding"] if made else row["finding"]
    about = {
        "trace": made["trace_id"] if made else row["trace_id"],
        "step": finding["step"],
        "error_class": finding["error_class"],
    }
    if made is None:
        failed = row.get("failure") or {"reason": row["skipped"], "message": ""}
        return {**about, **failed}
    return {
        **about,
        "hint": made["hint"],
        "placement": "/".join(filter(None, (made["placement"], made.get("role")))),
        "tokens": len(made["block_ids"]),
        "guards": list(made.get("guards", ())),
        "views": {name: view["text"] for name, view in made.get("views", {}).items()},
    }


def lines(found: Preview) -> Iterator[str]:
    """Yield the preview as text, line by line."""
    for s in found.steps:
        yield f"trace {s['trace']}, step {s['step']} ({s['error_class']})"
        if "reason" in s:
            yield f"  no context: {s['reason']}. {s['message']}"
            continue
        yield f"  {found.maker}, {s['placement']}, {s['tokens']} tokens"
        yield from (f"  guard: {g}" for g in s["guards"])
        yield from (f"  | {line}" for line in s["hint"].splitlines())
        for name, text in s["views"].items():
            yield f"  {name}"
            yield from (f"  | {line}" for line in text.splitlines())
    of = found.counted
    without = ", ".join(f"{n} {reason}" for reason, n in of.items() if reason != "context")
    yield f"{of.get('context', 0)} steps have a context" + (f"; without one: {without}" if without else "")
