"""The twins of a run: made of the findings that have an injection, after the injections, in the inject stage.

`twins.jsonl` has a row for each such finding: the twins it got, the edits that were dropped on the way with their reasons, or why
there was no edit at all. Rows are keyed by what made them, so that a resumed run makes only what is owed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hintdistill.config import CHECKS
from hintdistill.core.errors import HintdistillError, TwinError
from hintdistill.core.extensions import TWIN_MAKERS
from hintdistill.core.storage import content_key
from hintdistill.core.types import Finding, Injection, Split, Trace, Twin, TwinEdit
from hintdistill.critics.checker import CheckerCritic
from hintdistill.critics.rules import RulesCritic
from hintdistill.critics.twins import refuse_critics_edit
from hintdistill.injection.twin_makers import twin_edits
from hintdistill.injection.twins import TwinBuilder, apply_edit, state_changing_calls
from hintdistill.pipeline import inject, read
from hintdistill.pipeline.context import RunContext

VERSION = 1
"""Raised when the same findings would get other twins."""
Judge = Callable[[Trace, int], Sequence[Finding]]
"""What is wrong with a step of a trace, as far as it can be told without a model."""


@dataclass(frozen=True)
class LoadedTwin:
    """A current twin and where it belongs."""

    key: str
    """Content key of the twin itself, so that an unchanged one keeps its target."""
    trace_key: str
    twin: Twin
    split: Split


def run(ctx: RunContext) -> None:
    """Make the twins that are owed; nothing where `train.twins.per_finding` is 0."""
    section = ctx.config.train.twins
    if section.per_finding == 0:
        if ctx.rundir.index("twins"):
            ctx.rundir.set_index("twins", [])
        return
    store = ctx.rundir.store("twins")
    done, traces = store.by_key(), {key: trace for key, trace, _ in read.load(ctx)}
    checker = None if "checker" not in ctx.config.critic.use else ctx.config.critic.checker
    making = Making(
        TwinBuilder(ctx.renderer), judge(checker), section.per_finding, section.state_changing, ctx.config.run.seed
    )
    makers = [(m.name, m.classes, m.kinds) for m in TWIN_MAKERS.entries()]
    settings = [VERSION, ctx.renderer.key, makers, checker, section.model_dump(mode="json"), ctx.config.run.seed]
    index: list[str] = []
    injections = inject.load(ctx)
    with ctx.console.progress("twins", len(injections)) as advance:
        for loaded in injections:
            key = content_key("twins", loaded.key, *settings)
            index.append(key)
            if key not in done:
                row = making.row(traces[loaded.trace_key], loaded.injection)
                store.append({"key": key, "trace": loaded.trace_key, **row})
            advance(1)
    ctx.rundir.set_index("twins", index)
    _summarise(ctx)


def judge(checker: str | None = None) -> Judge:
    """The judge of edited traces: every deterministic check, and the user's own checker where the run has one."""
    critics: list[RulesCritic | CheckerCritic] = [RulesCritic(CHECKS), *([CheckerCritic(checker)] if checker else [])]

    def findings(trace: Trace, step: int) -> list[Finding]:
        found: list[Finding] = []
        for critic in critics:
            for _, outcome in critic.critique([trace]):
                if isinstance(outcome, HintdistillError):
                    raise TwinError("not_judged", outcome.message)
                found += [f for f in outcome.findings if f.step == step]
        return found

    return findings


@dataclass(frozen=True)
class Making:
    """Makes the twins of findings under one configuration."""

    builder: TwinBuilder
    judge: Judge
    per_finding: int
    state_changing: bool
    seed: int

    def row(self, trace: Trace, injection: Injection) -> dict[str, Any]:
        """What a finding came to: `twins` and `dropped`, or `reason` where it has no edit."""
        finding = injection.finding
        row: dict[str, Any] = {
            "trace_id": trace.id,
            "finding": finding.model_dump(mode="json", exclude_defaults=True),
            "twins": [],
            "dropped": [],
        }
        try:
            edits = twin_edits(trace, finding, self.seed)
        except TwinError as error:
            return row | {"reason": error.reason, "message": error.message}
        start, end = injection.span
        span = (start + injection.step_offset, end + injection.step_offset)
        contexts: set[tuple[int, ...]] = set()
        for edit in edits:
            if len(row["twins"]) == self.per_finding:
                break
            try:
                twin = self.twin(trace, finding, edit, span)
                if twin.context_ids in contexts:
                    raise TwinError("same_as_another", "another edit of this finding gives the same context")
            except HintdistillError as error:
                said = edit.model_dump(mode="json", exclude_defaults=True)
                row["dropped"].append({"edit": said, "reason": error.reason, "message": error.message})
                continue
            contexts.add(twin.context_ids)
            row["twins"].append(twin.model_dump(mode="json", exclude_defaults=True))
        return row

    def twin(self, trace: Trace, finding: Finding, edit: TwinEdit, span: tuple[int, int]) -> Twin:
        """One twin, checked as text.

        Raises:
            TwinError: see `TwinBuilder.build`; the edit licenses a state-changing call (`state_changing`), or a check still
                finds an error at the step (`finds_error`).
            TemplateError, SpliceError: the step cannot be rendered.
        """
        edited, step = apply_edit(trace, finding.step, edit)
        by_critic = edit.maker not in TWIN_MAKERS
        if by_critic:
            refuse_critics_edit(trace, edited, edit)
        guarded = by_critic or not self.state_changing
        if guarded and (calls := state_changing_calls(trace, edited, step)):
            raise TwinError("state_changing", f"the step calls {', '.join(calls)}, which may change something")
        if found := self.judge(edited, step):
            raise TwinError("finds_error", f"{found[0].error_class} under the edit: {found[0].evidence}")
        return self.builder.build(trace, finding, edit, span)


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers about rows of twins: by class findings, covered findings and twins; by kind twins; by reason what was dropped."""
    classes: dict[str, Counter[str]] = {}
    kinds: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    none: Counter[str] = Counter()
    for row in rows:
        name = row["finding"]["error_class"]
        mine = classes.setdefault(name, Counter())
        mine.update(findings=1, covered=bool(row["twins"]), twins=len(row["twins"]))
        kinds.update(f"{name}/{t['edit']['kind']}" for t in row["twins"])
        dropped.update(f"{name}/{d['edit']['kind']}/{d['reason']}" for d in row["dropped"])
        if "reason" in row:
            none[f"{name}/{row['reason']}"] += 1
    return {
        "findings": len(rows),
        "covered": sum(c["covered"] for c in classes.values()),
        "twins": sum(c["twins"] for c in classes.values()),
        "classes": {n: {k: classes[n][k] for k in ("findings", "covered", "twins")} for n in sorted(classes)},
        "kinds": dict(sorted(kinds.items())),
        "dropped": dict(sorted(dropped.items())),
        "no_edit": dict(sorted(none.items())),
    }


def _summarise(ctx: RunContext) -> None:
    said = counts(ctx.rundir.current("twins", "twins"))
    classes = ", ".join(f"{n} {c['covered']}/{c['findings']}" for n, c in said["classes"].items())
    reasons: Counter[str] = Counter()
    for part in (said["dropped"], said["no_edit"]):
        for name, n in part.items():
            reasons[name.rpartition("/")[2]] += n
    left = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
    ctx.console.note(
        f"twins: {said['twins']} of {said['covered']} of {said['findings']} findings ({classes})"
        + (f"; dropped: {left}" if left else "")
    )
    if said["findings"] and not said["twins"]:
        ctx.console.warn("no finding has a twin: nothing holds its step where it is right; twins.jsonl has the reasons")


def load(ctx: RunContext) -> list[LoadedTwin]:
    """The current twins, in the order of their traces and findings."""
    splits = {key: split for key, _, split in read.load(ctx)}
    out = []
    for row in ctx.rundir.current("twins", "twins"):
        for made in row["twins"]:
            twin = Twin.model_validate(made)
            out.append(LoadedTwin(content_key("twin", made), row["trace"], twin, splits[row["trace"]]))
    return out
