"""The arms: from one round's traces to the rows that are trained on. Nothing else differs between arms, one of them aside.

| arm | rows |
|---|---|
| hint | the critic's hint above the erring step, gate on: the method |
| placebo | a generic hint in its place |
| wrong_hint | the hint of another error class in its place |
| random_step | the same hint above a step without an error |
| full_trace | all hints of a trace in its system prompt, loss on every step of it (SDPO-like, arXiv 2601.20802) |
| sft_success | cross-entropy on every step of successful episodes: it sees the success label |
| sft_corrected | cross-entropy on steps that the hinted student sampled in place of erring ones, if the critic has no objection |
| hint_outcome | `hint` beside an outcome reward on every step of the same rollouts, (L_RL + L_D)/2; it sees the success label too |
| stale, foreign, llm_critic | `hint` on traces of the round before, on another policy's traces, with another critic |
| step:p, alarm:p, hint:p | `hint` with a critic that is wrong that often, gate on or off |

The controls have the gate off, since it would reject what they are made of. Every arm has the same anchors, as many
optimiser steps, and at most as many rows; rows are drawn without regard to what they hold.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.ablation import critic_noise
from hintdistill.config import InjectSection, RescoreSection, RunConfig
from hintdistill.config.rollout import parse_noise
from hintdistill.core.errors import HintdistillError
from hintdistill.core.scores import Target
from hintdistill.core.types import Critique, Finding, Injection, Trace
from hintdistill.injection.hints import hint_text, seed_of
from hintdistill.injection.splice import Injector, QuoteFound, StepSite
from hintdistill.pipeline import critique, inject, read, rescore
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.stages import run_stages
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.scorer import Scorer
from hintdistill.rollouts.hinted import play_hinted
from hintdistill.rollouts.measure import options_of
from hintdistill.rollouts.sampling import Episode, Sampler

DISTILLED = ("hint", "hint_outcome", "stale", "foreign", "llm_critic")
CONTROLS = ("placebo", "wrong_hint", "random_step")
NO_GATE = {"enabled": False}


@dataclass(frozen=True)
class RoundData:
    """One round's traces, read and critiqued, before an arm makes its rows of them."""

    ctx: RunContext
    episodes: Sequence[Episode]
    traces: Sequence[Trace]
    critiques: Mapping[str, Critique]
    """By trace id."""
    salt: str
    """Seeds every draw of this round."""
    anchors_per_trace: int
    """Clean steps per trace that are held in place."""

    @property
    def found(self) -> critic_noise.Found:
        """The root findings that may go on."""
        section = self.ctx.config.critic
        return [
            (trace, finding)
            for trace in self.traces
            if trace.id in self.critiques
            for finding, skipped in inject.select(
                self.critiques[trace.id], section.max_per_trace, section.min_confidence
            )
            if skipped is None
        ]

    @property
    def wrong(self) -> dict[str, set[int]]:
        """Steps with a finding, by trace id."""
        return critic_noise.erring_steps(self.critiques)


def critiqued(ctx: RunContext, episodes: Sequence[Episode], salt: str, anchors_per_trace: int) -> RoundData:
    """Read and critique a round's traces in its own run folder."""
    run_stages(ctx, until="critique")
    loaded, by_key = read.load(ctx), critique.load(ctx)
    critiques = {t.id: by_key[k] for k, t, _ in loaded if k in by_key}
    return RoundData(ctx, episodes, [t for _, t, _ in loaded], critiques, salt, anchors_per_trace)


def targets_of(arm: str, data: RoundData, folder: Path) -> list[Target]:
    """The targets of an arm, anchors included, before rows are drawn from them.

    Args:
        folder: where a run folder of the arm's own may be made.
    """
    if arm in DISTILLED:
        return [*rescored(data.ctx), *anchors(data)]
    if arm == "full_trace":
        return [*full_trace(data), *anchors(data, erring_traces=False)]
    if arm == "sft_success":
        good = [e.trace for e in data.episodes if e.failure is None and (e.trace.reward or 0.0) > 0.5]
        return [*sft(data, [(t, k) for t in good for k in range(len(t.step_indices))]), *anchors(data)]
    if arm == "sft_corrected":
        return [*sft(data, corrected_steps(data)), *anchors(data)]
    return _disturbed(arm, data, folder)


def rescored(ctx: RunContext) -> list[Target]:
    """Inject and rescore in the context's run folder."""
    run_stages(ctx, first="inject", until="rescore")
    return list(rescore.load(ctx))


def _disturbed(arm: str, data: RoundData, folder: Path) -> list[Target]:
    """Arms that are the method on other findings: those are written to a file and take the critic's place."""
    library, found = data.ctx.library, data.found
    gate = False
    changes: dict[str, Any] = {}
    if arm == "placebo":
        changes["inject"] = {"hint": "placebo"}
    elif arm == "wrong_hint":
        found = critic_noise.wrong_hints(found, library, 1.0, data.salt)
    elif arm == "random_step":
        found = critic_noise.other_steps(found, data.traces, data.wrong, library, 1.0, data.salt)
    else:
        kind, share, gate = parse_noise(arm)
        if kind == "hint":
            found = critic_noise.wrong_hints(found, library, share, data.salt)
        elif kind == "step":
            found = critic_noise.other_steps(found, data.traces, data.wrong, library, share, data.salt)
        else:
            found = critic_noise.false_alarms(found, data.traces, data.wrong, library, share, data.salt)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"trace": t.id, **f.model_dump(mode="json", exclude_defaults=True)} for t, f in found]
    (folder / "findings.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    config = _with(data.ctx.config, folder, gate, changes)
    rundir = RunDir.create(folder / "run", config, resume=True)
    try:
        ctx = RunContext(config, rundir, data.ctx.console, data.ctx.engines)
        own = critiqued(ctx, data.episodes, data.salt, data.anchors_per_trace)
        # a control keeps the true critic's anchors; a wrong critic is wrong about them as well
        return [*rescored(ctx), *anchors(data if arm in CONTROLS else own)]
    finally:
        rundir.close()


def _with(config: RunConfig, folder: Path, gate: bool, changes: Mapping[str, Any]) -> RunConfig:
    data = config.model_dump(mode="json")
    # several findings may now stand at one trace; how many the critic may have was decided before
    data["critic"] |= {"use": ["recorded"], "max_per_trace": 64, "min_confidence": 0.0}
    data["critic"]["recorded"] = {"path": str(folder / "findings.jsonl")}
    if not gate:
        data["rescore"]["gate"] |= NO_GATE
    for name, values in changes.items():
        data[name] |= values
    return RunConfig.model_validate(data)


# -- rows that no hint stage makes -----------------------------------------------------------------------------------------


def scorer_of(data: RoundData) -> Scorer:
    """The teacher's scorer with the gate off: what is scored here is not judged."""
    config = data.ctx.config.rescore
    ungated = RescoreSection.model_validate(config.model_dump() | {"gate": config.gate.model_dump() | NO_GATE})
    return Scorer(data.ctx.engine(data.ctx.teacher_folder), data.ctx.renderer, ungated)


def anchors(data: RoundData, erring_traces: bool = True) -> list[Target]:
    """Steps without a finding, a few per trace, held to the initial policy."""
    per_trace = data.anchors_per_trace
    chosen = []
    for trace in data.traces:
        wrong = data.wrong.get(trace.id, set())
        clean = [k for k in range(len(trace.step_indices)) if k not in wrong]
        if trace.id not in data.critiques or (wrong and not erring_traces):
            continue
        rng = random.Random(seed_of("anchor", data.salt, trace.id))
        chosen += [(trace, k) for k in rng.sample(clean, min(per_trace, len(clean)))]
    return _plain_targets(data, chosen, "anchor")


def _plain_targets(data: RoundData, steps: Sequence[tuple[Trace, int]], name: str) -> list[Target]:
    items = []
    for trace, k in steps:
        try:
            rendered = data.ctx.renderer.step(trace, k)
        except HintdistillError as error:
            data.ctx.console.warn(f"{name}: {error.message}")
            continue
        items.append((f"{name}:{trace.id}:{k}", trace.id, k, rendered, "train"))
    scorer, size = scorer_of(data), data.ctx.config.rescore.part_rows
    return [t for at in range(0, len(items), size) for t in scorer.anchors(items[at : at + size])]  # type: ignore[arg-type]


def sft(data: RoundData, steps: Sequence[tuple[Trace, int]]) -> list[Target]:
    """Cross-entropy on steps as they were sampled: forward KL from the distribution that is certain of each token."""
    return [as_sampled(t) for t in _plain_targets(data, steps, "sft")]


def as_sampled(target: Target) -> Target:
    """The target whose teacher is certain of the sampled tokens; forward KL from it is cross-entropy."""
    hit = target.support_ids == target.step_ids[:, None]
    if not hit.any(1).all():
        raise ValueError("the sampled id is in the support of every position")
    return replace(
        target,
        kind="hint",
        accepted=True,
        teacher_logprobs=np.where(hit, np.float32(0), np.float32(-np.inf)),
        teacher_tail=np.full(len(target.step_ids), -np.inf, np.float32),
        teacher_sampled=np.zeros(len(target.step_ids), np.float32),
    )


def corrected_steps(data: RoundData) -> list[tuple[Trace, int]]:
    """Steps that the hinted student sampled in place of erring ones; those the critic finds fault with are left out."""
    ctx = data.ctx
    options = options_of(ctx.config.rollout, ctx.config.rollout.sample.temperature, seed_of(data.salt) % 2**31)
    # one step is enough, so the episode ends after it
    sampler = Sampler(ctx.engine(ctx.model_folder), ctx.renderer, replace(options, max_steps=1))
    injector = Injector(ctx.renderer, ctx.library, ctx.config.inject, ctx.config.rescore.placebos)
    known = {
        id_: Critique(trace_id=id_, verdict="findings", findings=tuple(f for t, f in data.found if t.id == id_))
        for id_ in {t.id for t, _ in data.found}
    }
    played = play_hinted(
        sampler,
        suite_of(ctx),
        [Episode(t.task_id or t.id, t) for t in data.traces],
        lambda _: known,
        injector,
        passes=1,
    )
    judged = judge(ctx)([c.episode.trace for c in played.corrected])
    out = []
    for c in played.corrected:
        verdict = judged.get(c.episode.trace.id)
        if (
            verdict is not None
            and c.step < len(c.episode.trace.step_indices)
            and not any(f.step == c.step for f in verdict.findings)
        ):
            out.append((c.episode.trace, c.step))
    return out


def suite_of(ctx: RunContext) -> Any:
    """The environment of the configuration."""
    from hintdistill.rollouts.evaluate import load_suite

    assert ctx.config.rollout.environment is not None
    return load_suite(ctx.config.rollout.environment)


def judge(ctx: RunContext) -> Any:
    """The configured critics as a function from traces to critiques by trace id."""
    from hintdistill.critics import merge

    critics = critique.critics(ctx)

    def ask(traces: Sequence[Trace]) -> dict[str, Critique]:
        said: dict[str, list[Critique]] = {}
        for critic in critics:
            for trace, outcome in critic.critique(traces):
                if isinstance(outcome, Critique):
                    said.setdefault(trace.id, []).append(outcome)
        return {id_: merge(id_, critiques) for id_, critiques in said.items()}

    return ask


def full_trace(data: RoundData, erring_steps_only: bool = False) -> list[Target]:
    """Every step of every erring trace (or only those with a finding), the trace's hints in the system prompt."""
    by_trace: dict[str, list[Finding]] = {}
    for trace, finding in data.found:
        by_trace.setdefault(trace.id, []).append(finding)
    items = []
    for trace in data.traces:
        findings = by_trace.get(trace.id, [])
        if not findings:
            continue
        hint = " ".join(dict.fromkeys(hint_text(trace, f, data.ctx.library) for f in findings))
        for k in range(len(trace.step_indices)):
            own = next((f for f in findings if f.step == k), None)
            if own is None and erring_steps_only:
                continue
            try:
                injection = in_system_prompt(data, trace, k, hint, own)
            except HintdistillError as error:
                data.ctx.console.warn(f"full_trace: {error.message}")
                continue
            items.append((f"full:{trace.id}:{k}", injection, "train"))
    scorer, size = scorer_of(data), data.ctx.config.rescore.part_rows
    return [t for at in range(0, len(items), size) for t in scorer.score(items[at : at + size])]  # type: ignore[arg-type]


def in_system_prompt(data: RoundData, trace: Trace, step: int, hint: str, own: Finding | None) -> Injection:
    """The hint at the end of the trace's system prompt, token-exact.

    Raises:
        SpliceError: there is no system prompt, or the template does not print it verbatim.
    """
    from hintdistill.core.errors import SpliceError
    from hintdistill.injection.splice import _insertion_point

    renderer = data.ctx.renderer
    site = StepSite(trace, step, renderer)
    opening = site.opening
    if not opening.before or opening.before[0].role != "system":
        raise SpliceError(f"trace {trace.id} has no system prompt to put a hint in")
    first, block = opening.before[0], InjectSection().format_of("observation").replace("{hint}", hint)
    longer = first.model_copy(update={"content": (first.content or "") + block})
    hinted = renderer.render((longer, *opening.before[1:]), opening.tools, header=False)
    char = _insertion_point(opening.bare + opening.trailer, hinted, block)
    if char is None:
        raise SpliceError("the template does not print the system prompt verbatim")
    at, _ = renderer.splice_point(site.rendered.context_ids, opening.text, char)
    span: tuple[int, int] = (0, len(site.rendered.step_ids))
    quote_found: QuoteFound = "whole_step"
    if own is not None:
        span, quote_found = Injector(renderer, data.ctx.library, data.ctx.config.inject)._span(site, own)
    finding = own or Finding(step=step, error_class="none", hint=hint)
    return Injection(
        trace_id=trace.id,
        finding=finding,
        hint=hint,
        context_ids=site.rendered.context_ids,
        insert_at=at,
        block_ids=tuple(renderer.encode(block)),
        step_ids=site.rendered.step_ids,
        span=span,
        quote_found=quote_found,
        fidelity=site.rendered.fidelity,
        placement="message",
        role="system",
        notes=("in_system_prompt",),
    )
