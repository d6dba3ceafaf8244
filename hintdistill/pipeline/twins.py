"""The twins of a run: made in the inject stage, after the injections, for every finding that has one.

`twins.jsonl` has a row for each such finding: its twins, the dropped edits with their reasons, or the reason why there
was no edit at all. Rows are keyed by their inputs, so that a resumed run makes only the missing ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hintdistill.config import CHECKS
from hintdistill.core.errors import HintdistillError, TwinError
from hintdistill.core.extensions import TWIN_MAKERS
from hintdistill.core.paths import object_content
from hintdistill.core.storage import content_key
from hintdistill.core.types import Finding, Injection, Split, Trace, Twin, TwinEdit
from hintdistill.critics.checker import CheckerCritic
from hintdistill.critics.rules import RulesCritic
from hintdistill.critics.twins import refuse_critics_edit
from hintdistill.injection.twin_makers import twin_edits
from hintdistill.injection.twins import TwinBuilder, apply_edit, state_changing_calls
from hintdistill.pipeline import inject, read
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.twin_contexts import combined

VERSION = 1
"""Version of the twins; raised when the same findings would get different twins."""
Judge = Callable[[Trace, int], Sequence[Finding]]
"""Returns the errors at a step of a trace that can be found without a model."""


@dataclass(frozen=True)
class LoadedTwin:
    """Hold a current twin with its trace and finding."""

    key: str
    """Content key of the twin alone, so that an unchanged twin keeps its target."""
    trace_key: str
    twin: Twin
    split: Split


def run(ctx: RunContext) -> None:
    """Make the missing twins; do nothing if `train.twins.per_finding` is 0."""
    section = ctx.config.train.twins
    if section.per_finding == 0:
        if ctx.rundir.index("twins"):
            ctx.rundir.set_index("twins", [])
        return
    store = ctx.rundir.store("twins")
    done, trace_of = ctx.rundir.rows("twins"), read.open_traces(ctx)
    checker = None if "checker" not in ctx.config.critic.use else ctx.config.critic.checker
    environment = ctx.config.rollout.environment
    making = Making(
        TwinBuilder(ctx.renderer),
        judge(checker, environment),
        section.per_finding,
        section.state_changing,
        ctx.config.run.seed,
    )
    makers = [(m.name, m.classes, m.kinds) for m in TWIN_MAKERS.entries()]
    judges = [object_content(spec) for spec in (checker, environment) if spec]
    # what a twin weighs in training makes no other twin
    asked = section.model_dump(mode="json", exclude={"weight"})
    settings = [VERSION, ctx.renderer.key, makers, judges, asked, ctx.config.run.seed]
    index: list[str] = []
    injected = ctx.rundir.grouped("inject", "injections")
    with store.batched() as write, ctx.console.progress("twins", read.count(ctx)) as advance:
        for trace_key, split in read.keys(ctx):
            members = inject.loaded(injected.of(trace_key), split)
            # the twins of a trace may share a context, so that each depends on all of its findings
            keys = [content_key("twins", m.key, [other.key for other in members], *settings) for m in members]
            index += keys
            if any(key not in done for key in keys):
                rows = making.rows(trace_of(trace_key), [m.injection for m in members])
                owed = [(k, row) for k, row in zip(keys, rows, strict=True) if k not in done]
                write([{"key": key, "trace": trace_key, **row} for key, row in owed])
            advance(1)
    ctx.rundir.set_index("twins", index)
    _summarise(ctx)


def judge(checker: str | None = None, environment: str | None = None) -> Judge:
    """Return the judge of edited traces: every deterministic check, the user's own checker, and the environment's
    checker.

    Args:
        checker: `path/to/file.py:function`, as in `critic.checker`.
        environment: as in `rollout.environment`; its `check` is called.

    Raises:
        ConfigError: one of them cannot be loaded.
    """
    critics: list[RulesCritic | CheckerCritic] = [RulesCritic(CHECKS), *([CheckerCritic(checker)] if checker else [])]
    checks: list[Callable[[Trace], Sequence[Finding]]] = [partial(_findings, critic) for critic in critics]
    if environment:
        from hintdistill.rollouts.evaluate import load_suite

        checks.append(load_suite(environment).check)

    def findings(trace: Trace, step: int) -> list[Finding]:
        found: list[Finding] = []
        for check in checks:
            try:
                found += [f for f in check(trace) if f.step == step]
            except Exception as error:
                raise TwinError("not_judged", f"a check raised {type(error).__name__}: {error}") from error
        return found

    return findings


def _findings(critic: RulesCritic | CheckerCritic, trace: Trace) -> Sequence[Finding]:
    """Return a critic's findings. Raises the error that kept it from judging."""
    ((_, outcome),) = critic.critique([trace])
    if isinstance(outcome, HintdistillError):
        raise outcome
    return outcome.findings


@dataclass(frozen=True)
class Making:
    """Make the twins of findings under one configuration."""

    builder: TwinBuilder
    judge: Judge
    per_finding: int
    state_changing: bool
    seed: int

    def rows(self, trace: Trace, injections: Sequence[Injection]) -> list[dict[str, Any]]:
        """Return the rows of all findings of one trace, see `row`; their twins share a context if possible."""
        rows = [self.row(trace, injection) for injection in injections]
        for n in range(self.per_finding):
            some = [row for row in rows if len(row["twins"]) > n]
            if len(some) > 1:
                twins = [Twin.model_validate(row["twins"][n]) for row in some]
                shared = combined(trace, twins, lambda t, edit: self.twin(trace, t.finding, edit, t.span))
                for row, twin in zip(some, shared, strict=True):
                    row["twins"][n] = twin.model_dump(mode="json", exclude_defaults=True)
        return rows

    def row(self, trace: Trace, injection: Injection) -> dict[str, Any]:
        """Return the row of a finding: `twins` and `dropped`, or `reason` if it has no edit."""
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
        """Return one twin that passed all checks of its text.

        Raises:
            TwinError: see `TwinBuilder.build`; also if the edit permits a state-changing call (`state_changing`), or a
                check still finds an error at the step (`finds_error`).
            TemplateError, SpliceError: the step cannot be rendered.
        """
        edited, step = apply_edit(trace, finding.step, edit)
        by_critic = edit == finding.twin
        if by_critic:
            refuse_critics_edit(trace, edited, edit)
        guarded = by_critic or not self.state_changing
        if guarded and (calls := state_changing_calls(trace, edited, step)):
            raise TwinError("state_changing", f"the step calls {', '.join(calls)}, which may change something")
        if found := self.judge(edited, step):
            why = f": {found[0].evidence}" if found[0].evidence else ""
            raise TwinError("finds_error", f"{found[0].error_class} under the edit{why}")
        return self.builder.build(trace, finding, edit, span)


def counts(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return counts of findings, of those with a twin (`covered`) and of twins, in total and by error class.

    Each class also lists its twins by kind of edit, its dropped edits by kind and reason, and its findings without an
    edit by reason.
    """
    classes: dict[str, dict[str, Any]] = {}
    for row in rows:
        name = row["finding"]["error_class"]
        mine = classes.setdefault(
            name, {"findings": 0, "covered": 0, "twins": 0, "kinds": {}, "dropped": {}, "no_edit": {}}
        )
        mine["findings"] += 1
        mine["covered"] += bool(row["twins"])
        mine["twins"] += len(row["twins"])
        for twin in row["twins"]:
            _add(mine["kinds"], twin["edit"]["kind"])
        for left in row["dropped"]:
            _add(mine["dropped"].setdefault(left["edit"]["kind"], {}), left["reason"])
        if "reason" in row:
            _add(mine["no_edit"], row["reason"])
    totals = {key: sum(c[key] for c in classes.values()) for key in ("findings", "covered", "twins")}
    return totals | {"classes": dict(sorted(classes.items()))}


def _add(table: dict[str, int], name: str) -> None:
    table[name] = table.get(name, 0) + 1


def _summarise(ctx: RunContext) -> None:
    said = counts(ctx.rundir.each("twins", "twins"))
    classes = ", ".join(f"{name} {c['covered']}/{c['findings']}" for name, c in said["classes"].items())
    reasons: Counter[str] = Counter()
    for of_class in said["classes"].values():
        for table in (*of_class["dropped"].values(), of_class["no_edit"]):
            reasons.update(table)
    left = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
    ctx.console.note(
        f"twins: {said['twins']} for {said['covered']} of {said['findings']} findings ({classes})"
        + (f"; dropped: {left}" if left else "")
    )
    if said["findings"] and not said["twins"]:
        ctx.console.warn(
            "no finding has a twin, so nothing holds the steps in contexts where they are right; "
            "twins.jsonl lists the reasons"
        )


def loaded(rows: Iterable[Mapping[str, Any]], split: Split) -> list[LoadedTwin]:
    """Return the twins in the rows of a trace."""
    return [
        LoadedTwin(content_key("twin", made), row["trace"], Twin.model_validate(made), split)
        for row in rows
        for made in row["twins"]
    ]


def load(ctx: RunContext) -> list[LoadedTwin]:
    """Return the current twins, in the order of their traces and findings, all in memory."""
    rows = ctx.rundir.grouped("twins", "twins")
    return [twin for key, split in read.keys(ctx) for twin in loaded(rows.of(key), split)]
