"""Injection + Engine → Target: what the hint did, compared with placebos, and whether it has earned its place.

The hint effect of a sampled token is negative for *any* change of context, because the step was sampled without it. So
it is read where the teacher changes course (the decision token), over the quote against the rest of the step, and
against hints that should do nothing in the same place. Each placebo is measured the same way against the others; the
share of placebos that would pass is the gate's null pass rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np

from hintdistill.config import GateSection, RescoreSection
from hintdistill.core.scores import Measurement, Placebo, ScoreRequest, Scores, Target, TargetHead
from hintdistill.core.types import Finding, Injection, Split, TargetKind
from hintdistill.engines import Engine
from hintdistill.injection.rendering import RenderedStep, Renderer

T = TypeVar("T", bound=TargetHead)

NEGLIGIBLE = math.log(0.05)
"""A quoted token below this log-probability under the hint is not `raised`, whatever it was before."""


class HintItem(NamedTuple):
    """An injection to score, and the key of its target."""

    key: str
    injection: Injection
    split: Split


class AnchorItem(NamedTuple):
    """A step without a finding to score, and the key of its target: an anchor, or a step of a hold trace."""

    key: str
    trace_id: str
    step: int
    rendered: RenderedStep
    split: Split
    kind: TargetKind = "anchor"


@dataclass(frozen=True)
class _View:
    """One view's scores beside the plain ones."""

    effect: np.ndarray
    top1: np.ndarray
    gathered: np.ndarray


class Scorer:
    """Turns injections into targets with one engine."""

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        config: RescoreSection,
        prompts: Callable[[Finding], Mapping[str, str]] | None = None,
    ) -> None:
        """`prompts` says which prompts a finding came from, for the targets' `versions`."""
        self.engine, self.renderer, self.config, self._prompts = engine, renderer, config, prompts

    def score(self, items: Sequence[HintItem]) -> list[Target]:
        """Score injections in one call of the engine.

        Raises:
            ContextLengthError, ScoreError: see `Engine.score`.
        """
        requests: list[ScoreRequest] = []
        for key, injection, _ in items:
            requests += self.requests(key, injection)
        scores = iter(self.engine.score(requests, self.config.top_k))
        out = []
        for key, injection, split in items:
            plain, teacher = next(scores), next(scores)
            out.append(self._target(key, injection, split, plain, teacher, [next(scores) for _ in injection.placebos]))
        return out

    def anchors(self, items: Sequence[AnchorItem]) -> list[Target]:
        """Targets of steps without a finding."""
        requests = [
            self.request(item.rendered.context_ids + item.rendered.step_ids, len(item.rendered.step_ids), None, None)
            for item in items
        ]
        return [
            self._anchor(item, score)
            for item, score in zip(items, self.engine.score(requests, self.config.top_k), strict=True)
        ]

    def unhinted(self, key: str, trace_id: str, step: int, rendered: RenderedStep) -> Target:
        """The target of no hint at all: teacher and plain are two requests of the same tokens, bit-identical."""
        request = self.request(rendered.context_ids + rendered.step_ids, len(rendered.step_ids), key, None)
        plain, teacher = self.engine.score([request, request], self.config.top_k)
        anchor = self._anchor(AnchorItem(key, trace_id, step, rendered, "train"), plain)
        return replace(
            anchor,
            teacher_logprobs=teacher.topk_logprobs,
            teacher_tail=teacher.tail_logprob,
            teacher_sampled=teacher.sampled,
            insert_at=len(rendered.context_ids),
        )

    def _anchor(self, item: AnchorItem, score: Scores) -> Target:
        key, trace_id, step, rendered, split, kind = item
        return Target(
            key=key,
            trace_id=trace_id,
            step=step,
            kind=kind,
            split=split,
            context_ids=np.array(rendered.context_ids, np.int64),
            step_ids=np.array(rendered.step_ids, np.int64),
            span=(0, len(rendered.step_ids)),
            support_ids=score.topk_ids,
            teacher_logprobs=score.topk_logprobs,
            plain_logprobs=score.topk_logprobs,
            teacher_tail=score.tail_logprob,
            plain_tail=score.tail_logprob,
            teacher_sampled=score.sampled,
            plain_sampled=score.sampled,
            fidelity=rendered.fidelity,
            accepted=True,
            tokens=self.renderer.token_texts(rendered.step_ids),
            instead=self._names(score),
            versions=self._versions(),
        )

    @classmethod
    def requests(cls, key: str, injection: Injection) -> list[ScoreRequest]:
        """What an injection asks of the engine: the plain view, the hinted one, and each placebo."""
        gather = _legal_ids(injection)
        length = len(injection.step_ids)
        return [
            cls.request(injection.plain_ids, length, key, gather),
            cls.request(injection.hinted_ids, length, key, gather),
            *(
                cls.request(injection.with_block(p.insert_at, p.block_ids), length, None, gather)
                for p in injection.placebos
            ),
        ]

    @staticmethod
    def request(ids: Sequence[int], length: int, group: str | None, gather: np.ndarray | None) -> ScoreRequest:
        """One sequence of which the last `length` tokens are scored."""
        return ScoreRequest(np.array(ids, np.int64), len(ids) - length, len(ids), group, gather)

    def _target(
        self, key: str, injection: Injection, split: Split, plain: Scores, teacher: Scores, placebos: list[Scores]
    ) -> Target:
        base = _gathered(plain)
        top1 = teacher
        if not np.array_equal(plain.topk_ids, teacher.topk_ids):
            plain, teacher = on_common_ids(plain, teacher)
        views = [_View(s.sampled - plain.sampled, _top1(s), _gathered(s)) for s in (top1, *placebos)]
        measurements = [
            measure(injection, plain.sampled, base, view, [v for v in views[1:] if v is not view]) for view in views
        ]
        at = measurements[0].position
        target = Target(
            key=key,
            trace_id=injection.trace_id,
            step=injection.finding.step,
            kind="hint",
            split=split,
            context_ids=np.array(injection.context_ids, np.int64),
            step_ids=np.array(injection.step_ids, np.int64),
            span=injection.span,
            support_ids=teacher.topk_ids,
            teacher_logprobs=teacher.topk_logprobs,
            plain_logprobs=plain.topk_logprobs,
            teacher_tail=teacher.tail_logprob,
            plain_tail=plain.tail_logprob,
            teacher_sampled=teacher.sampled,
            plain_sampled=plain.sampled,
            insert_at=injection.insert_at,
            block_ids=np.array(injection.block_ids, np.int64),
            error_class=injection.finding.error_class,
            hint=injection.hint,
            fidelity=injection.fidelity,
            measurement=measurements[0],
            placebos=tuple(
                Placebo(p.kind, p.text, view.effect, m)
                for p, view, m in zip(injection.placebos, views[1:], measurements[1:], strict=True)
            ),
            guards=injection.guards,
            tokens=self.renderer.token_texts(injection.step_ids),
            instead=self._names(top1),
            legal_ids=np.array(injection.legal.get(at, ()) if at is not None else (), np.int64),
            recorded_gap=_recorded_gap(injection, plain.sampled),
            sampler_logprobs=_sampled_with(injection),
            versions=self._versions(injection.finding),
        )
        return decide(target, self.config.gate)

    def _names(self, score: Scores) -> tuple[str, ...]:
        return tuple(self.renderer.decode([int(i)]) for i in _top1(score))

    def _versions(self, finding: Finding | None = None) -> dict[str, str]:
        made = {"weights": self.engine.key, "renderer": self.renderer.key, "engine": type(self.engine).__name__}
        return made if finding is None or self._prompts is None else {**made, **self._prompts(finding)}


def on_common_ids(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    """Two views of one step on the ids both know, for engines without `gather`; what only one knows joins its tail.

    A probability the other view did not give is never guessed: the support shrinks instead. The sampled id is always
    known to both.
    """
    shared = [np.intersect1d(x[x >= 0], y[y >= 0]) for x, y in zip(a.topk_ids, b.topk_ids, strict=True)]
    ids = np.full((len(shared), max(map(len, shared))), -1, np.int64)
    for t, row in enumerate(shared):
        ids[t, : len(row)] = row
    return _restricted(a, ids), _restricted(b, ids)


def _restricted(score: Scores, ids: np.ndarray) -> Scores:
    logprobs = np.full(ids.shape, -np.inf, np.float32)
    tails = np.empty(len(ids), np.float32)
    for t, row in enumerate(ids):
        keep = np.isin(score.topk_ids[t], row[row >= 0])
        order = np.argsort(score.topk_ids[t][keep])
        logprobs[t, : keep.sum()] = score.topk_logprobs[t][keep][order]
        left = np.concatenate([score.topk_logprobs[t][~keep], score.tail_logprob[t : t + 1]]).astype(np.float64)
        tails[t] = np.logaddexp.reduce(left)
    return replace(score, topk_ids=ids, topk_logprobs=logprobs, tail_logprob=tails, top1=_top1(score))


def measure(
    injection: Injection, plain: np.ndarray, plain_gathered: np.ndarray, view: _View, placebos: Sequence[_View]
) -> Measurement:
    """Measure one hinted view against the plain one and against placebos.

    Args:
        plain: float32 [T], plain log-probabilities of the sampled tokens.
        plain_gathered: float32 [T, G], plain log-probabilities of the gathered ids.
    """
    start, end = injection.span
    step_ids = np.array(injection.step_ids)
    leaves = np.flatnonzero(view.top1[start:end] != step_ids[start:end])
    position = int(leaves[0]) + start if len(leaves) else None
    quoted = view.effect[start:end][(view.effect + plain)[start:end] > NEGLIGIBLE]
    has_quote = injection.quote_found != "whole_step"
    return Measurement(
        position=position,
        instead_id=None if position is None else int(view.top1[position]),
        effect=0.0 if position is None else float(view.effect[position]),
        plain_logprob=0.0 if position is None else float(plain[position]),
        max_raise=float(max(0.0, quoted.max())) if has_quote and len(quoted) else 0.0,
        specificity=_contrast(view.effect, start, end)
        - float(np.mean([_contrast(p.effect, start, end) for p in placebos] or [0.0])),
        legal_mass_gain=_legal_gain(injection, position, plain_gathered, view.gathered),
        best_placebo=0.0 if position is None else min((float(p.effect[position]) for p in placebos), default=0.0),
    )


def judge(m: Measurement, guards: Sequence[str], gate: GateSection) -> tuple[str, ...]:
    """Why a hint is rejected, in the order of the checks; empty when it is accepted."""
    reasons: list[str] = []
    if "leak" in gate.checks and any(g.startswith("leak") for g in guards):
        reasons.append("leak")
    if "dialect" in gate.checks and any(g.startswith("dialect") for g in guards):
        reasons.append("dialect")
    if "words" in gate.checks:
        reasons += [name for name in ("illegal", "vacuous") if any(g.startswith(name) for g in guards)]
    if m.position is None:
        return (*reasons, "no_effect")
    if math.exp(m.plain_logprob) < gate.min_student_probability:
        return (*reasons, "not_this_students_error")
    if m.effect > -gate.min_drop_nats:
        reasons.append("no_effect")
    if m.effect >= m.best_placebo:
        reasons.append("not_below_placebo")
    if "specific" in gate.checks and m.specificity >= 0:
        reasons.append("not_specific")
    if "legal_gain" in gate.checks and m.legal_mass_gain is not None and m.legal_mass_gain <= 0:
        reasons.append("mass_to_illegal")
    if m.max_raise > gate.max_raise_nats:
        reasons.append("primed")
    return tuple(reasons)


def decide(target: T, gate: GateSection) -> T:
    """The target with the gate's decision. With the gate disabled everything is accepted, reasons kept."""
    if target.measurement is None:
        return target
    reasons = judge(target.measurement, target.guards, gate)
    return replace(target, accepted=not reasons or not gate.enabled, reasons=reasons)


def null_pass_rate(targets: Iterable[Target], gate: GateSection) -> float | None:
    """Share of placebos that the gate would accept in the hint's place; None without placebos."""
    passed = [found for t in targets for found in placebos_pass(t, gate)]
    return sum(passed) / len(passed) if passed else None


def placebos_pass(target: Target, gate: GateSection) -> list[bool]:
    """Of each placebo of a target, whether the gate would accept it in the hint's place."""
    return [not judge(p.measurement, (), gate) for p in target.placebos]


def _contrast(effect: np.ndarray, start: int, end: int) -> float:
    rest = np.concatenate([effect[:start], effect[end:]])
    return float(effect[start:end].mean() - (rest.mean() if len(rest) else 0.0))


def _legal_ids(injection: Injection) -> np.ndarray | None:
    ids = sorted({i for allowed in injection.legal.values() for i in allowed})
    return np.array(ids, np.int64) if ids else None


def _legal_gain(injection: Injection, position: int | None, plain: np.ndarray, hinted: np.ndarray) -> float | None:
    allowed = injection.legal.get(position) if position is not None else None
    if not allowed or not hinted.shape[1]:
        # no schema speaks of this position, or the engine cannot be asked about chosen ids
        return None
    ids = _legal_ids(injection)
    assert ids is not None
    columns = np.searchsorted(ids, np.array(allowed, np.int64))
    return float(np.exp(hinted[position, columns]).sum() - np.exp(plain[position, columns]).sum())


def _gathered(score: Scores) -> np.ndarray:
    return score.gathered if score.gathered is not None else np.zeros((len(score.sampled), 0), np.float32)


def _top1(score: Scores) -> np.ndarray:
    if score.top1 is not None:
        return score.top1
    return score.topk_ids[np.arange(len(score.topk_ids)), score.topk_logprobs.argmax(1)]


def _sampled_with(injection: Injection) -> np.ndarray:
    """The recorded log-probabilities where they speak of exactly these tokens, float32 [T]; else empty."""
    recorded = injection.recorded_logprobs
    fits = recorded is not None and injection.fidelity == "ids" and len(recorded) == len(injection.step_ids)
    return np.array(recorded if fits else (), np.float32)


def _recorded_gap(injection: Injection, plain: np.ndarray) -> float | None:
    recorded = injection.recorded_logprobs
    if recorded is None or len(recorded) != len(plain):
        return None
    return float(np.abs(np.array(recorded) - plain).mean())
