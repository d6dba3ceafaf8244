"""Diagnose one conversation in one call: critic → candidates → inject → rescore → gate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hintdistill.agents.loaded import LoadedModel
from hintdistill.agents.panel import Panel
from hintdistill.agents.ranking import RankedHint, order, targets_of
from hintdistill.config import InjectSection, RescoreSection
from hintdistill.core.errors import HintdistillError
from hintdistill.core.plain import plain
from hintdistill.core.scores import Target
from hintdistill.core.types import Critique, Finding, Injection, Trace, Twin, Verdict
from hintdistill.injection.candidates import choose
from hintdistill.injection.splice import Injector
from hintdistill.injection.twins import TwinBuilder
from hintdistill.pipeline.inject import select
from hintdistill.pipeline.twins import Making, judge
from hintdistill.rescoring.gate import decide


@dataclass(frozen=True)
class ScoredTwin:
    """Hold a changed context in which the step is right, and whether the model still takes the step there."""

    twin: Twin
    target: Target

    def to_dict(self) -> dict[str, Any]:
        """Return the twin as JSON, without its ids."""
        return {
            "edit": plain(self.twin.edit),
            "accepted": self.target.accepted,
            "reasons": list(self.target.reasons),
        }


@dataclass(frozen=True)
class Diagnosed:
    """Hold one error of the conversation, and the hint that would have prevented it."""

    finding: Finding
    hints: tuple[RankedHint, ...] = ()
    """Hints, best first; `hint`, `level`, `odds` and `instead` refer to the first one. Empty if no hint was scored."""
    reasons: tuple[str, ...] = ()
    """Reasons why no hint is accepted: those of the gate for the best hint, or why none was scored (`consequence`,
    `no_hint`, ...)."""
    message: str = ""
    """Message of the error that prevented all hints from being scored; empty if there was none."""
    twin: ScoredTwin | None = None
    twin_reason: str | None = None
    """Reason why there is no twin; see docs/twins.md."""

    @property
    def step(self) -> int:
        """Number of the assistant message, counted from 0 over assistant messages only."""
        return self.finding.step

    @property
    def quote(self) -> str | None:
        """The wrong words of the step."""
        return self.finding.quote

    @property
    def best(self) -> RankedHint | None:
        """The best hint."""
        return self.hints[0] if self.hints else None

    @property
    def hint(self) -> str | None:
        """Text of the best hint."""
        return self.best.hint if self.best else self.finding.hint

    @property
    def level(self) -> int | None:
        """How much of the answer the best hint reveals, 0 to 3; see docs/hints.md."""
        return self.best.target.level if self.best else None

    @property
    def odds(self) -> float:
        """Rise of the log-odds of `instead` under the best hint, nats."""
        return self.best.odds if self.best else 0.0

    @property
    def instead(self) -> str | None:
        """The model's token at the decision token under the best hint."""
        return self.best.instead if self.best else None

    @property
    def accepted(self) -> bool:
        """Whether the gate accepts the best hint, i.e. whether it would have prevented the error."""
        return self.best is not None and self.best.target.accepted

    def to_dict(self, distributions: bool = False) -> dict[str, Any]:
        """Return the finding as JSON; `distributions` is as in `Target.to_dict`."""
        return {
            "step": self.step,
            "error_class": self.finding.error_class,
            "quote": self.quote,
            "hint": self.hint,
            "level": self.level,
            "odds": plain(self.odds),
            "instead": self.instead,
            "accepted": self.accepted,
            "reasons": list(self.reasons),
            "message": self.message,
            "twin": self.twin.to_dict() if self.twin else None,
            "twin_reason": self.twin_reason,
            "finding": plain(self.finding),
            "hints": [h.to_dict(distributions) for h in self.hints],
        }


@dataclass(frozen=True)
class Diagnosis:
    """Hold the findings of a conversation, best first: accepted ones, then the others, each ordered by odds."""

    verdict: Verdict
    findings: tuple[Diagnosed, ...]
    critics: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """Notes of the critics."""
    trace: Trace | None = None
    """The conversation as a trace."""
    step: int | None = None
    """The only step that was examined; None for all steps."""

    @property
    def best(self) -> Diagnosed | None:
        """The best finding with an accepted hint; None if there is none."""
        return next((f for f in self.findings if f.accepted), None)

    def to_dict(self, distributions: bool = False) -> dict[str, Any]:
        """Return the diagnosis as JSON, without the conversation; `distributions` is as in `Target.to_dict`."""
        return {
            "verdict": self.verdict,
            "findings": [f.to_dict(distributions) for f in self.findings],
            "critics": list(self.critics),
            "notes": list(self.notes),
        }


def diagnose_trace(
    trace: Trace,
    step: int | None,
    loaded: LoadedModel,
    panel: Panel,
    *,
    inject: InjectSection,
    config: RescoreSection,
    twins: bool,
) -> Diagnosis:
    """Diagnose a conversation; see `api.diagnose`."""
    critique = panel.critique(trace)
    wanted = tuple(f for f in critique.findings if step is None or f.step == step)
    found = Critique(trace_id=trace.id, verdict="findings" if wanted else "none", findings=wanted)
    chosen = select(found, panel.section.max_per_trace, panel.section.min_confidence)
    with loaded.turn:
        with loaded.lock:
            cases = [_case(loaded, panel, trace, finding, why, (inject, config, twins)) for finding, why in chosen]
        scored = _score(loaded, cases, config)
    ordered = sorted(scored, key=lambda d: (not d.accepted, not d.hints, -d.odds))
    verdict = critique.verdict if critique.verdict != "findings" else found.verdict
    return Diagnosis(verdict, tuple(ordered), critique.critics, critique.notes, trace, step)


@dataclass
class _Case:
    """Hold a finding during the diagnosis: its injections, or why there are none."""

    finding: Finding
    reasons: tuple[str, ...] = ()
    message: str = ""
    injections: Sequence[Injection] = ()
    twin: Twin | None = None
    twin_reason: str | None = None


def _case(
    loaded: LoadedModel,
    panel: Panel,
    trace: Trace,
    finding: Finding,
    skipped: str | None,
    settings: tuple[InjectSection, RescoreSection, bool],
) -> _Case:
    inject, config, twins = settings
    if skipped is None and finding.step >= len(trace.step_indices):
        return _Case(finding, ("no_such_step",), f"the critic names step {finding.step}")
    if skipped is None and trace.step(finding.step).cut:
        skipped = "cut_step"
    if skipped is not None:
        return _Case(finding, (skipped,))
    injector = Injector(loaded.renderer, panel.library, inject, config.placebos)
    try:
        case = _Case(finding, injections=injector.candidates(trace, finding))
    except HintdistillError as error:
        return _Case(finding, (error.reason,), error.message)
    if twins:
        row = Making(TwinBuilder(loaded.renderer), judge(panel.section.checker), 1, False, 0).row(
            trace, case.injections[0]
        )
        made, dropped = row["twins"], row["dropped"]
        case.twin = Twin.model_validate(made[0]) if made else None
        case.twin_reason = None if made else row.get("reason") or (dropped[0]["reason"] if dropped else "no_edit")
    return case


def _score(loaded: LoadedModel, cases: Sequence[_Case], config: RescoreSection) -> list[Diagnosed]:
    """Return the findings with their hints, all scored in one call of the engine."""
    injections = [i for case in cases for i in case.injections]
    first, twins = 0, list[tuple[int, Twin]]()
    for case in cases:
        if case.twin is not None:
            twins.append((first, case.twin))
        first += len(case.injections)
    targets, held = targets_of(loaded, injections, config, twins) if injections else ([], [])
    of_hints, of_twins = iter(targets), iter(held)
    out = []
    for case in cases:
        mine = _chosen([next(of_hints) for _ in case.injections], config)
        ranked = order([RankedHint(i.hint, t) for i, t in zip(case.injections, mine, strict=True)])
        ranked.sort(key=lambda r: r.target.choice not in ("only", "best"))
        reasons = case.reasons or (ranked[0].target.reasons if ranked else ())
        twin = ScoredTwin(case.twin, next(of_twins)) if case.twin is not None else None
        out.append(Diagnosed(case.finding, tuple(ranked), reasons, case.message, twin, case.twin_reason))
    return out


def _chosen(targets: Sequence[Target], config: RescoreSection) -> list[Target]:
    """Return the candidates of one finding with their ranks."""
    from dataclasses import replace

    rows = [
        (t.key, t.level or 0, (t.measurement.odds or 0.0) if t.measurement else 0.0, not t.reasons) for t in targets
    ]
    choice = choose({"finding": rows}) if rows else {}
    return [decide(replace(t, choice=choice[t.key]), config.gate) for t in targets]
