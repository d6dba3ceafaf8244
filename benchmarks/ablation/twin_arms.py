"""The arms of the benchmark of twins: the steps that each holds in addition to the same hints and anchors.

| arm | held, as many in every arm, at the same weight |
|---|---|
| none | nothing; the anchors weigh as much as anchors and held steps together do elsewhere |
| twins | the erring step in the changed context in which it is right, as the product makes and checks it |
| anchors | further clean steps of the same traces, at random |
| near_episodes | steps of the initial policy's own right episodes on near-miss tasks, the step and token that a twin would hold |
| undone | the erring step in its own, unchanged context |
| random_edit | the erring step under an edit of equal length that makes nothing right: another tool takes a made-up name |
| other_finding | the erring step under an edit that was made for another finding |
| decoded | what the initial policy says in the twin's context, in place of the erring step |
| half_classes, half_kinds | twins of these error classes, or of these kinds of edit, only |

Arms that are made of twins are made of the same twins, drawn by the seed alone, so that they have the same classes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.ablation.arms import RoundData
from benchmarks.ablation.twin_settings import SUITE, TwinsConfig
from hintdistill.core.errors import HintdistillError, TwinError
from hintdistill.core.importing import load_object
from hintdistill.core.scores import Target
from hintdistill.core.types import Finding, Replacement, Trace, Twin, TwinEdit
from hintdistill.injection.hints import seed_of
from hintdistill.injection.quotes import locate, tokens_in
from hintdistill.injection.recorded import changed
from hintdistill.injection.rendering import RenderedStep
from hintdistill.injection.splice import StepSite
from hintdistill.injection.twins import TwinBuilder
from hintdistill.pipeline.to_score import twin_items
from hintdistill.pipeline.variants import anchors, scorer_of
from hintdistill.rescoring.scorer import AnchorItem, held_arrays
from hintdistill.rollouts.measure import options_of
from hintdistill.rollouts.sampling import Sampler

Held = tuple[Twin, Target]
"""A twin and its target."""


@dataclass(frozen=True)
class Round:
    """The material from which an arm makes its held rows."""

    config: TwinsConfig
    data: RoundData
    targets: Sequence[Target]
    """Rescored in this round: hints and twins."""

    def checked_twins(self) -> list[Held]:
        """The twins whose step the initial policy still takes, in an order drawn by the salt."""
        accepted = {t.key: t for t in self.targets if t.kind == "twin" and t.accepted}
        found = [(i.twin, accepted[i.key]) for i in twin_items(self.data.ctx) if i.key in accepted]
        found.sort(key=lambda pair: pair[1].key)
        random.Random(seed_of("twins", self.data.salt)).shuffle(found)
        return found

    @property
    def traces(self) -> dict[str, Trace]:
        """By id."""
        return {t.id: t for t in self.data.traces}


def held_rows(arm: str, source: Round) -> list[Target]:
    """The arm's held targets of this round, in the order in which they are drawn; all have the kind `twin`."""
    wanted, t = source.config.twins.held, source.config.twins
    twins = source.checked_twins()
    if arm == "none":
        return []
    if arm == "twins":
        return [target for _, target in twins]
    if arm == "half_classes":
        return [target for twin, target in twins if twin.finding.error_class in t.half_classes]
    if arm == "half_kinds":
        return [target for twin, target in twins if twin.edit.kind in t.half_kinds]
    if arm == "anchors":
        return further_anchors(source)
    made: dict[str, Callable[[Round, Sequence[Held]], Iterator[Target]]] = {
        "near_episodes": near_episodes,
        "undone": undone,
        "random_edit": random_edits,
        "other_finding": others_edits,
        "decoded": decoded,
    }
    return list(made[arm](source, twins[:wanted]))


def drawn(pool: Sequence[Target], number: int) -> list[Target]:
    """The first `number` of a pool, repeated in rounds under keys of their own where there are too few."""
    out = []
    for i in range(number if pool else 0):
        again, at = divmod(i, len(pool))
        out.append(replace(pool[at], key=f"{pool[at].key}#{again}") if again else pool[at])
    return out


def kinds_of(targets: Sequence[Target]) -> dict[str, int]:
    """Count twins by class and kind of edit."""
    return dict(Counter(f"{t.error_class or '-'}/{t.versions.get('edit', '-').rpartition('/')[2]}" for t in targets))


# -- steps that are held -----------------------------------------------------------------------------------------------


def further_anchors(source: Round) -> list[Target]:
    """Clean steps of the round's traces, in an order drawn by the salt; the caller leaves out those that are anchors anyway."""
    found = sorted(anchors(source.data, 8), key=lambda t: t.key)
    random.Random(seed_of("further anchors", source.data.salt)).shuffle(found)
    return [replace(t, kind="twin", key=f"further:{t.key}") for t in found]


def near_episodes(source: Round, twins: Sequence[Held]) -> Iterator[Target]:
    """Right episodes of the initial policy on near-miss tasks of the families that makers use, as many per class as twins."""
    suite, ctx = load_object(f"{SUITE}:EditedToolworld", "suite", "suite")(), source.data.ctx
    for error_class, number in sorted(Counter(twin.finding.error_class for twin, _ in twins).items()):
        tasks = _near_tasks(source, error_class, 2 * number)
        options = options_of(ctx.config.rollout, 1.0, seed_of("near", source.data.salt) % 2**31)
        found = 0
        for episode in Sampler(ctx.engine(ctx.initial_folder), ctx.renderer, options).episodes(suite, tasks):
            right = episode.failure is None and (episode.trace.reward or 0.0) > 0.5 and not suite.check(episode.trace)
            if right and found < number:
                found += 1
                yield _held_in_episode(source, episode.trace, error_class)


def _near_tasks(source: Round, error_class: str, number: int) -> list[str]:
    """Near-miss tasks of a class, of entities that training may use; the families in turn."""
    suite = {
        n: load_object(f"{SUITE}:{n}", "suite", "name")
        for n in ("PROVOKED", "MAKER_FAMILIES", "draw_task", "rollout_kinds")
    }
    families = [f.partition(".")[2] for f in suite["MAKER_FAMILIES"] if f.startswith(f"{error_class}.")]
    rng = random.Random(seed_of("near tasks", source.data.salt, error_class))
    draw, kinds, fixed = suite["draw_task"], suite["rollout_kinds"](), suite["PROVOKED"][error_class]
    return [f"{draw(rng, 'old', kinds, **fixed)}.{families[i % len(families)]}" for i in range(number)]


def _held_in_episode(source: Round, trace: Trace, error_class: str) -> Target:
    """The step at which the habit would err: the last one of a trace where it states a result, else the first."""
    step = len(trace.step_indices) - 1 if error_class == "ignored_error" else 0
    site = StepSite(trace, step, source.data.ctx.renderer)
    message, span = trace.step(step), (0, len(site.rendered.step_ids))
    if message.tool_calls:
        call = message.tool_calls[0]
        in_name = error_class != "wrong_argument"
        quote = call.name if in_name else next(iter(call.arguments or {call.name: 0}))
        finding = Finding(
            step=step, error_class=error_class, quote=quote, quote_in="tool_name" if in_name else "arguments", call=0
        )
        found = locate(finding, site.text, message)
        span = (found and tokens_in(found[0], site.spans)) or span
    target = _scored(source, f"near:{trace.id}", trace.id, step, site.rendered)
    return replace(target, span=span, error_class=error_class)


def undone(source: Round, twins: Sequence[Held]) -> Iterator[Target]:
    """The twin's step in the context that it erred in."""
    for twin, target in twins:
        rendered = source.data.ctx.renderer.step(source.traces[twin.trace_id], twin.finding.step)
        scored = _scored(source, f"undone:{target.key}", twin.trace_id, twin.finding.step, rendered)
        yield replace(scored, span=twin.span, error_class=twin.finding.error_class)


def random_edits(source: Round, twins: Sequence[Held]) -> Iterator[Target]:
    """The twin's step where another listed tool has a made-up name, as many tokens long as what the twin's edit put in."""
    builder, renderer = TwinBuilder(source.data.ctx.renderer), source.data.ctx.renderer
    for twin, target in twins:
        trace = source.traces[twin.trace_id]
        original = renderer.step(trace, twin.finding.step).context_ids
        start, _, end = changed(original, twin.context_ids)
        rng = random.Random(seed_of("random edit", target.key))
        used = {c.name for m in trace.messages for c in m.tool_calls}
        others = [i for i, s in enumerate(trace.tools) if s["function"]["name"] not in used]
        rng.shuffle(others)
        for at in others:
            old = f'"name": "{trace.tools[at]["function"]["name"]}"'
            new = f'"name": "{_word(rng, renderer.encode, max(1, min(end - start, 40)))}"'
            edit = TwinEdit(
                kind="random", maker="benchmark", replacements=(Replacement(where="tools", index=at, old=old, new=new),)
            )
            made = _rebuilt(source, builder, twin, edit, target)
            if made is not None:
                yield made
                break


def _word(rng: random.Random, encode: Callable[[str], list[int]], tokens: int) -> str:
    """A made-up word of about so many tokens."""
    word = ""
    while len(encode(word)) < tokens:
        word += rng.choice("bdfgklmnprstvz") + rng.choice("aeiou")
    return word


def others_edits(source: Round, twins: Sequence[Held]) -> Iterator[Target]:
    """The twin's step under what another finding's edit adds to its context: a tool, or words in the same role's message."""
    builder = TwinBuilder(source.data.ctx.renderer)
    every = [twin for twin, _ in source.checked_twins() if any(not r.old for r in twin.edit.replacements)]
    for twin, target in twins:
        rng = random.Random(seed_of("other edit", target.key))
        told = (twin.finding.error_class, twin.finding.quote)
        candidates = [
            o for o in every if o.trace_id != twin.trace_id and (o.finding.error_class, o.finding.quote) != told
        ]
        for other in rng.sample(candidates, min(8, len(candidates))):
            edit = transplanted(other, source.traces[other.trace_id], source.traces[twin.trace_id], twin.finding.step)
            made = None if edit is None else _rebuilt(source, builder, twin, edit, target)
            if made is not None:
                yield made
                break


def transplanted(other: Twin, its: Trace, trace: Trace, step: int) -> TwinEdit | None:
    """Add what an edit adds to another trace in the same places; None if that trace has no such place."""
    before, moved = trace.before(step), []
    for r in (r for r in other.edit.replacements if not r.old):
        index = min(r.index, len(trace.tools))
        if r.where == "message":
            role = its.messages[r.index].role
            index = max((i for i, m in enumerate(before) if m.role == role), default=-1)
            if index < 0:
                return None
        moved.append(r.model_copy(update={"index": index}))
    return TwinEdit(kind=other.edit.kind, replacements=tuple(moved), maker="benchmark") if moved else None


def decoded(source: Round, twins: Sequence[Held]) -> Iterator[Target]:
    """In the twin's context, the step that the initial policy samples there."""
    ctx = source.data.ctx
    options = options_of(ctx.config.rollout, 1.0, 0)
    sampler = Sampler(ctx.engine(ctx.initial_folder), ctx.renderer, options)
    said = sampler.generate([twin.context_ids for twin, _ in twins], seed_of("decoded", source.data.salt) % 2**31)
    for (twin, target), ids in zip(twins, said, strict=True):
        same = tuple(ids) == twin.step_ids
        scored = _ids_scored(source, f"decoded:{target.key}", target, (twin.context_ids, tuple(ids)))
        yield replace(
            scored, span=twin.span if same else (0, len(ids)), versions={**scored.versions, "edit": f"same/{same}"}
        )


# -- scoring -----------------------------------------------------------------------------------------------------------


def _rebuilt(source: Round, builder: TwinBuilder, twin: Twin, edit: TwinEdit, target: Target) -> Target | None:
    """The twin's step under another edit; None where that edit cannot be made."""
    try:
        made = builder.build(source.traces[twin.trace_id], twin.finding, edit, twin.span)
    except (TwinError, HintdistillError):
        return None
    scored = _ids_scored(source, f"{edit.kind}:{target.key}", target, (made.context_ids, made.step_ids))
    return replace(scored, span=twin.span, versions={**scored.versions, "edit": f"benchmark/{edit.kind}"})


def _ids_scored(source: Round, key: str, like: Target, ids: tuple[Sequence[int], Sequence[int]]) -> Target:
    """A held step given by its ids alone."""
    request = scorer_of(source.data.ctx).request((*ids[0], *ids[1]), len(ids[1]), None, None)
    score = source.data.ctx.engine(source.data.ctx.initial_folder).score(
        [request], source.data.ctx.config.rescore.top_k
    )[0]
    return replace(
        like,
        key=key,
        **held_arrays(*ids, score),
        tokens=source.data.ctx.renderer.token_texts(ids[1]),
        instead=(),
        measurement=None,
    )


def _scored(source: Round, key: str, trace_id: str, step: int, rendered: RenderedStep) -> Target:
    """A held step of a trace, by the initial policy."""
    item: Any = AnchorItem(key, trace_id, step, rendered, "train")
    return replace(scorer_of(source.data.ctx).anchors([item])[0], kind="twin")
