"""Score injections with an engine to make targets: the views of a step, the hint's effect against placebos, and the
gate's decision.

Each placebo is measured like the hint, against the other placebos; the share of placebos that would pass is the gate's
null pass rate. `gate` defines the measurements and the decision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from hintdistill.config import RescoreSection
from hintdistill.core.scores import Placebo, ScoreRequest, Scores, Target
from hintdistill.core.types import Finding, Injection, Split, TargetKind, Twin
from hintdistill.engines import Engine
from hintdistill.injection.rendering import RenderedStep, Renderer
from hintdistill.rescoring.gate import View, decide, first_choice, legal_ids, measure
from hintdistill.rescoring.twins import Original, TwinItem, judge_twin, measure_twin


class HintItem(NamedTuple):
    """Hold an injection to score, and the key of its target."""

    key: str
    injection: Injection
    split: Split


class AnchorItem(NamedTuple):
    """Hold a step without a finding to score (an anchor, or a step of a hold trace), and the key of its target."""

    key: str
    trace_id: str
    step: int
    rendered: RenderedStep
    split: Split
    kind: TargetKind = "anchor"


class Scorer:
    """Turn injections into targets with one engine."""

    def __init__(
        self,
        engine: Engine,
        renderer: Renderer,
        config: RescoreSection,
        prompts: Callable[[Finding], Mapping[str, str]] | None = None,
    ) -> None:
        """Set up the scorer. `prompts` returns the prompts from which a finding came, for the targets' `versions`."""
        self.engine, self.renderer, self.config, self._prompts = engine, renderer, config, prompts

    def score(
        self,
        items: Sequence[HintItem],
        twins: Sequence[TwinItem] = (),
        originals: Mapping[str, Original] | None = None,
    ) -> list[Target]:
        """Score injections in one call of the engine, together with twins of these or other injections.

        Args:
            twins: twins to score with these weights, which must be the initial policy's.
            originals: originals, by key of the hint's target, of twins whose finding is not among `items`.

        Raises:
            ContextLengthError, ScoreError: see `Engine.score`.
        """
        requests: list[ScoreRequest] = []
        for key, injection, _ in items:
            requests += self.requests(key, injection)
        requests += [self.twin_request(t.twin) for t in twins]
        scores = iter(self.engine.score(requests, self.config.top_k))
        out, known = list[Target](), dict(originals or {})
        for key, injection, split in items:
            plain, teacher = next(scores), next(scores)
            out.append(self._target(key, injection, split, plain, teacher, [next(scores) for _ in injection.placebos]))
            known[key] = Original.of(out[-1])
        return out + [self._twin(item, known[item.of], score) for item, score in zip(twins, scores, strict=True)]

    def originals(self, items: Mapping[str, tuple[Injection, int | None]]) -> dict[str, Original]:
        """Score the erring steps in their own contexts, for twins of hints that were scored with other weights.

        Args:
            items: injection and decision token, by key of the hint's target.
        """
        requests = [self.request(i.plain_ids, len(i.step_ids), None, None) for i, _ in items.values()]
        scores = self.engine.score(requests, 1) if requests else []
        return {key: Original(at, s.sampled) for (key, (_, at)), s in zip(items.items(), scores, strict=True)}

    def twins_alone(self, items: Sequence[TwinItem]) -> list[Target]:
        """Return targets of twins whose originals were not scored: the twins are not judged, and the effect of their
        edit is unknown."""
        scores = self.engine.score([self.twin_request(t.twin) for t in items], self.config.top_k)
        return [self._twin(item, Original(None, s.sampled), s) for item, s in zip(items, scores, strict=True)]

    @classmethod
    def twin_request(cls, twin: Twin) -> ScoreRequest:
        """Return a twin's request to the engine: its step in the edited context."""
        return cls.request(twin.plain_ids, len(twin.step_ids), None, None)

    def anchors(self, items: Sequence[AnchorItem]) -> list[Target]:
        """Return the targets of steps without a finding."""
        requests = [
            self.request(item.rendered.context_ids + item.rendered.step_ids, len(item.rendered.step_ids), None, None)
            for item in items
        ]
        return [
            self._anchor(item, score)
            for item, score in zip(items, self.engine.score(requests, self.config.top_k), strict=True)
        ]

    def unhinted(self, key: str, trace_id: str, step: int, rendered: RenderedStep) -> Target:
        """Return the target for an empty hint: teacher and plain are two requests with the same tokens, and
        bit-identical."""
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
            span=(0, len(rendered.step_ids)),
            action_start=rendered.action_start,
            **held_arrays(rendered.context_ids, rendered.step_ids, score),
            fidelity=rendered.fidelity,
            accepted=True,
            tokens=self.renderer.token_texts(rendered.step_ids),
            instead=self._names(score),
            versions=self._versions(),
        )

    def _twin(self, item: TwinItem, original: Original, score: Scores) -> Target:
        twin, top1 = item.twin, first_choice(score)
        reasons = judge_twin(twin, original, score.sampled, top1)
        return Target(
            key=item.key,
            trace_id=twin.trace_id,
            step=twin.finding.step,
            kind="twin",
            split=item.split,
            span=twin.span,
            action_start=twin.action_start,
            **held_arrays(twin.context_ids, twin.step_ids, score),
            error_class=twin.finding.error_class,
            fidelity=twin.fidelity,
            measurement=measure_twin(twin, original, score.sampled, top1),
            accepted=not reasons,
            reasons=reasons,
            tokens=self.renderer.token_texts(twin.step_ids),
            instead=self._names(score),
            versions=self._versions() | {"edit": f"{twin.edit.maker}/{twin.edit.kind}"},
        )

    @classmethod
    def requests(cls, key: str, injection: Injection) -> list[ScoreRequest]:
        """Return an injection's requests to the engine: the plain view, the hinted one, and each placebo."""
        gather = legal_ids(injection)
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
        """Return a request for one sequence whose last `length` tokens are scored."""
        return ScoreRequest(np.array(ids, np.int64), len(ids) - length, len(ids), group, gather)

    def _target(
        self, key: str, injection: Injection, split: Split, plain: Scores, teacher: Scores, placebos: list[Scores]
    ) -> Target:
        views = [View(s, plain) for s in (teacher, *placebos)]
        said = teacher
        if not np.array_equal(plain.topk_ids, teacher.topk_ids):
            plain, teacher = on_common_ids(plain, teacher)
        measurements = [measure(injection, view, [v for v in views[1:] if v is not view]) for view in views]
        at, instead = measurements[0].position, measurements[0].instead_id
        target = Target(
            key=key,
            trace_id=injection.trace_id,
            step=injection.finding.step,
            kind="hint",
            split=split,
            context_ids=np.array(injection.context_ids, np.int64),
            step_ids=np.array(injection.step_ids, np.int64),
            span=injection.span,
            action_start=injection.action_start,
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
            level=injection.level,
            candidate=injection.candidate,
            fidelity=injection.fidelity,
            measurement=measurements[0],
            placebos=tuple(
                Placebo(p.kind, p.text, view.effect, m, None if at is None else view.odds(at, instead or 0))
                for p, view, m in zip(injection.placebos, views[1:], measurements[1:], strict=True)
            ),
            guards=injection.guards,
            tokens=self.renderer.token_texts(injection.step_ids),
            instead=self._instead(said, at, instead),
            legal_ids=np.array(injection.legal.get(at, ()) if at is not None else (), np.int64),
            recorded_gap=_recorded_gap(injection, plain.sampled),
            sampler_logprobs=_sampled_with(injection),
            views={n: (v.insert_at, np.array(v.block_ids, np.int64)) for n, v in injection.views.items()},
            versions=self._versions(injection.finding),
        )
        return decide(target, self.config.gate)

    def _instead(self, said: Scores, at: int | None, instead: int | None) -> tuple[str, ...]:
        """Return the teacher's preferred token at each position; at the decision token, the one whose odds are
        measured."""
        names = list(self._names(said))
        if at is not None and instead is not None:
            names[at] = self.renderer.decode([instead])
        return tuple(names)

    def _names(self, score: Scores) -> tuple[str, ...]:
        return tuple(self.renderer.decode([int(i)]) for i in first_choice(score))

    def _versions(self, finding: Finding | None = None) -> dict[str, str]:
        made = {"weights": self.engine.key, "renderer": self.renderer.key, "engine": type(self.engine).__name__}
        return made if finding is None or self._prompts is None else {**made, **self._prompts(finding)}


def held_arrays(context_ids: Sequence[int], step_ids: Sequence[int], score: Scores) -> dict[str, Any]:
    """Return the arrays of a target without a hint, by name: its teacher is the plain view itself."""
    return {
        "context_ids": np.array(context_ids, np.int64),
        "step_ids": np.array(step_ids, np.int64),
        "support_ids": score.topk_ids,
        "teacher_logprobs": score.topk_logprobs,
        "plain_logprobs": score.topk_logprobs,
        "teacher_tail": score.tail_logprob,
        "plain_tail": score.tail_logprob,
        "teacher_sampled": score.sampled,
        "plain_sampled": score.sampled,
    }


def on_common_ids(a: Scores, b: Scores) -> tuple[Scores, Scores]:
    """Return two views of one step on their common ids, for engines without `gather`; the other ids join the tails.

    A missing probability is never guessed: the support shrinks instead. Both views always have the sampled id.
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
    return replace(score, topk_ids=ids, topk_logprobs=logprobs, tail_logprob=tails, top1=first_choice(score))


def _sampled_with(injection: Injection) -> np.ndarray:
    """Return the recorded log-probabilities if they belong to exactly these tokens, float32 [T]; else empty."""
    recorded = injection.recorded_logprobs
    fits = recorded is not None and injection.fidelity == "ids" and len(recorded) == len(injection.step_ids)
    return np.array(recorded if fits else (), np.float32)


def _recorded_gap(injection: Injection, plain: np.ndarray) -> float | None:
    recorded = injection.recorded_logprobs
    if recorded is None or len(recorded) != len(plain):
        return None
    return float(np.abs(np.array(recorded) - plain).mean())
