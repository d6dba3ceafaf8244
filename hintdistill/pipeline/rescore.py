"""Score the plain, hinted and placebo views of every injection, of twins, anchors and watched steps (stage 4); each
becomes a row.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

from hintdistill.config import MAX_NULL_PASS_RATE
from hintdistill.core.errors import (
    ConfigError,
    ContextLengthError,
    EmptyFunnelError,
    HintdistillError,
    InputError,
    ServiceError,
    UncheckedTwinError,
)
from hintdistill.core.rows import chunks
from hintdistill.core.scores import Choice, Target, TargetHead
from hintdistill.core.types import Finding
from hintdistill.engines import Engine
from hintdistill.pipeline import hold, read
from hintdistill.pipeline.choices import choices, finding_of
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.precision import note_precision, shortest
from hintdistill.pipeline.to_score import Found, hold_blocks
from hintdistill.prompts import REVISE, hint_name
from hintdistill.rescoring.gate import decide, passing_placebos
from hintdistill.rescoring.scorer import AnchorItem, HintItem, Scorer
from hintdistill.rescoring.store import TargetStore
from hintdistill.rescoring.stored import StoredTargets
from hintdistill.rescoring.twins import Original, TwinItem

T = TypeVar("T", bound=TargetHead)


def run(ctx: RunContext) -> None:
    """Score the items that have no target yet, in blocks of `rescore.part_rows` traces; only one block's items are in
    memory.

    No engine call mixes items of two blocks, so a shard that begins at a block's first trace makes the same calls as
    the whole run, and gets the same bits.

    Raises:
        ServiceError: the engine's server is unreachable; parts written earlier are kept.
        InputError: shards are being merged, but one of them has not scored its items.
    """
    if ctx.shard is None and not ctx.gathers:
        # the whole run plays them, once
        hold.play(ctx)
    found, store = Found(ctx), TargetStore(ctx.rundir.path / "targets")
    keys: dict[str, list[str]] = {"hint": [], "anchor": [], "watch": [], "hold": [], "twin": []}
    with ExitStack() as opened, ctx.console.progress("rescore", read.count(ctx)) as advance:
        work = _Work(ctx, store, opened)
        for block in chunks(read.each(ctx), ctx.config.rescore.part_rows):
            hints = [i for key, _, split in block for i in found.hints(key, split)]
            twins = [i for key, _, split in block for i in found.twins(key, split)]
            anchors = [i for key, trace, split in block for i in found.anchors(key, trace, split)]
            for kind, some in (("hint", hints), ("twin", twins), ("anchor", anchors)):
                keys[kind] += [i.key for i in some]
            work.block(hints)
            batches = batched(hints, anchors, twins, ctx.config.rescore.part_rows, together=work.together)
            owed = sum([work.score(batch) for batch in batches])
            advance(len(block)) if owed else advance.before(len(block))
        for kind, batch in (*_watched(found), *_held(ctx)):
            keys[kind] += [i.key for i in batch]
            work.score(batch)
        work.end()
    _record_failures(ctx, work.failures)
    ctx.rundir.set_index("rescore", [k for some in keys.values() for k in some if k not in work.failures])
    _refresh_decisions(ctx, store, choices(ctx, store, work.findings))
    _summarise(ctx)


def _watched(found: Found) -> Iterator[tuple[str, list[AnchorItem]]]:
    """Yield the steps that are only watched, one trace per call, so that the calls do not depend on the other watched
    traces."""
    for _, of in itertools.groupby(found.watched_of(), key=lambda x: x[1]):
        yield "watch", [item for item, _ in of]


def _held(ctx: RunContext) -> Iterator[tuple[str, list[AnchorItem]]]:
    """Yield the steps of hold traces in calls that contain only steps of one block of hold traces."""
    size = ctx.config.rescore.part_rows
    for block in hold_blocks(ctx, size):
        for batch in chunks(block, size):
            yield "hold", batch


def batched(
    hints: Sequence[HintItem], anchors: Sequence[AnchorItem], twins: Sequence[TwinItem], size: int, *, together: bool
) -> list[list[Any]]:
    """Return the batches for single engine calls, each of at most `size` targets: hints with their twins, then anchors.

    Args:
        together: whether hints and twins are read with the same weights; otherwise the twins follow in separate calls.
            A finding and its twins stay together, so a call may contain more than `size` targets.
    """
    of: dict[str, list[TwinItem]] = {}
    for twin in twins:
        of.setdefault(twin.of, []).append(twin)
    units = [[hint, *(of.pop(hint.key, ()) if together else ())] for hint in hints]
    alone = [[twin] for some in of.values() for twin in some]
    out = list[list[Any]]()
    for kind in (units, [[a] for a in anchors], alone):
        batch: list[Any] = []
        for unit in kind:
            if batch and len(batch) + len(unit) > size:
                out.append(batch)
                batch = []
            batch = batch + unit
        out += [batch] if batch else []
    # an engine's call has the hints first, whose decision tokens their twins are checked at
    return [sorted(b, key=lambda item: isinstance(item, TwinItem)) for b in out]


class _Work:
    """Hold the scorer of each batch, and the information about erring steps against which twins are checked."""

    def __init__(self, ctx: RunContext, store: TargetStore, opened: ExitStack) -> None:
        """Load nothing until an item must be scored; `opened` closes what was loaded."""
        self.ctx, self.store, self._opened = ctx, store, opened
        self.done = store.keys()
        self.failures: dict[str, dict[str, Any]] = {}
        """Reason why an item could not be scored, by key."""
        self.findings: dict[str, str] = {}
        """Key of each hint's finding, if several hints compete for one."""
        # an anchor or a twin holds the student to the initial policy, whoever the teacher is
        self.together = ctx.initial_folder == ctx.teacher_folder
        self._failed = ctx.rundir.rows("failures") if ctx.gathers else None
        self._hints: dict[str, HintItem] = {}
        self._known: dict[str, Original] = {}
        self._shortest: list[HintItem] = []

    @cached_property
    def engine(self) -> Engine:
        """Return the engine with the teacher's weights."""
        return self._opened.enter_context(self.ctx.scoring_engine())

    @cached_property
    def scorer(self) -> Scorer:
        """Return the scorer with the teacher's weights."""
        return Scorer(self.engine, self.ctx.renderer, self.ctx.config.rescoring, _prompt_versions(self.ctx))

    @cached_property
    def holder(self) -> Scorer:
        """Return the scorer with the initial policy's weights."""
        if self.together:
            return self.scorer
        engine = self.ctx.engine(self.ctx.initial_folder)
        return Scorer(engine, self.ctx.renderer, self.ctx.config.rescoring, _prompt_versions(self.ctx))

    def block(self, hints: Sequence[HintItem]) -> None:
        """Begin the next block, which contains these hints."""
        self._hints, self._known = {h.key: h for h in hints}, {}
        self._shortest = shortest([*self._shortest, *hints])
        if self.ctx.config.inject.candidates > 1:
            self.findings |= {h.key: finding_of(h) for h in hints}

    def score(self, batch: Sequence[Any]) -> int:
        """Score the items of a batch that have no target yet, store the targets, and return their number.

        Batches were cut in advance, so that a resumed run gets the same bits.
        """
        owed = [i for i in batch if i.key not in self.done]
        if owed and self._failed is not None:
            for item in owed:
                if (row := self._failed.get(item.key)) is None:
                    raise InputError(f"no shard contains the target {item.key}", hint="a shard is not finished")
                self.failures[item.key] = {k: v for k, v in row.items() if k not in ("key", "stage")}
        elif owed:
            self.store.append(_score(owed, self._scoring(batch), self.failures, self.engine.max_length))
        return len(owed)

    def end(self) -> None:
        """Print how much the engine saved, and the measured precision."""
        if not self.ctx.gathers:
            note_precision(self.ctx, self._shortest)
        engine = self.__dict__.get("engine")
        for note in getattr(engine, "notes", ()):
            self.ctx.console.note(f"rescore: {note}")
        saved = getattr(engine, "saved", None)
        if saved is not None and saved.asked:
            self.ctx.console.note(f"rescore: {saved}")

    def _scoring(self, batch: Sequence[Any]) -> Callable[[Any], list[Target]]:
        """Return the function that scores this kind of batch."""
        if isinstance(batch[0], AnchorItem):
            return self.holder.anchors
        return self._score_hints if isinstance(batch[0], HintItem) else self._score_twins

    def _score_hints(self, items: Sequence[Any]) -> list[Target]:
        """Score hints and their twins with the same weights."""
        hints, twins = [i for i in items if isinstance(i, HintItem)], [i for i in items if isinstance(i, TwinItem)]
        here = {h.key for h in hints}
        self._read({t.of for t in twins} - here - self._known.keys())
        targets = self.scorer.score(hints, twins, self._known)
        self._known |= {t.key: Original.of(t) for t in targets if t.kind == "hint"}
        return targets

    def _score_twins(self, items: Sequence[Any]) -> list[Target]:
        """Score twins with the initial policy if the teacher is another model; it reads the originals too."""
        wanted = {t.of for t in items}
        self._read(wanted - self._known.keys())
        found = {key: (self._hints[key].injection, self._known[key].position) for key in sorted(wanted)}
        return self.holder.score([], items, self.holder.originals(found))

    def _read(self, keys: Set[str]) -> None:
        """Read originals from stored targets. Raises InputError if one is missing."""
        if keys:
            self._known |= {t.key: Original.of(t) for _, t in self.store.open(sorted(keys)).by_part()}


def _prompt_versions(ctx: RunContext) -> Callable[[Finding], dict[str, str]]:
    """Return the prompts behind a finding's hint, each with its hash: the critic's, and the hint template if the critic
    gave no hint."""
    sections = {"llm": ctx.config.critic.llm, "strong": ctx.config.critic.strong}

    def versions(finding: Finding) -> dict[str, str]:
        names = {}
        if finding.critic in sections:
            revised = finding.revised_from is not None
            names["critic_prompt"] = REVISE if revised else sections[finding.critic].asked_prompt
        if finding.hint is None:
            names["hint_template"] = hint_name(finding.error_class)
        return {what: f"{name} {ctx.library.hash(name)}" for what, name in names.items() if ctx.library.has(name)}

    return versions


def _score(
    batch: list[Any], score: Callable[[Any], list[Target]], failures: dict[str, dict[str, Any]], max_length: int
) -> list[Target]:
    """Score a batch; if that fails, score its items one by one, so that a bad row loses only itself."""
    fitting = []
    for item in batch:
        if (longest := _longest(item)) > max_length:
            text = f"the step needs {longest} tokens with its hint, but the model has {max_length} positions"
            failures[item.key] = _failure(item, ContextLengthError(text))
        elif isinstance(item, TwinItem) and (not item.of or item.of in failures):
            text = "its finding's hint, against which the twin is checked, was not scored"
            failures[item.key] = _failure(item, UncheckedTwinError(text))
        else:
            fitting.append(item)
    try:
        return score(fitting) if fitting else []
    except (ServiceError, ConfigError):
        # not this batch's fault: what was written is kept, and the rest is owed
        raise
    except HintdistillError as error:
        if len(fitting) == 1:
            failures[fitting[0].key] = _failure(fitting[0], error)
            return []
    return [t for item in fitting for t in _score([item], score, failures, max_length)]


def _longest(item: HintItem | AnchorItem | TwinItem) -> int:
    if isinstance(item, TwinItem):
        return len(item.twin.plain_ids)
    if isinstance(item, HintItem):
        blocks = [len(item.injection.block_ids), *(len(p.block_ids) for p in item.injection.placebos)]
        blocks += [len(v.block_ids) for v in item.injection.views.values()]
        return len(item.injection.plain_ids) + max(blocks)
    return len(item.rendered.context_ids) + len(item.rendered.step_ids)


def _failure(item: HintItem | AnchorItem | TwinItem, error: HintdistillError) -> dict[str, Any]:
    if not isinstance(item, AnchorItem):
        made = item.twin if isinstance(item, TwinItem) else item.injection
        trace_id, step = made.trace_id, made.finding.step
    else:
        trace_id, step = item.trace_id, item.step
    return {"trace_id": trace_id, "step": step, "reason": error.reason, "message": error.message}


def _record_failures(ctx: RunContext, failures: dict[str, dict[str, Any]]) -> None:
    store = ctx.rundir.store("failures")
    have = store.by_key()
    store.extend([{"key": k, "stage": "rescore", **f} for k, f in failures.items() if k not in have])
    ctx.rundir.set_index("failures", list(failures))
    for message in list(dict.fromkeys(f["message"] for f in failures.values()))[:3]:
        ctx.console.warn(message)


def _refresh_decisions(ctx: RunContext, store: TargetStore, chosen: Mapping[str, Choice]) -> None:
    """Rewrite rows whose gate or choice among hints has changed since they were written, because other trainers read
    them."""
    gate = ctx.config.rescoring.gate

    def judged(target: T) -> T:
        return decide(replace(target, choice=chosen.get(target.key, target.choice)), gate)

    for part in store.parts():
        if any(head != judged(head) for head in store.heads(part)):
            # the same keys give the same name, so the new part takes the old one's place in one rename
            store.append([judged(t) for t in store.read_part(part)])


def load(ctx: RunContext) -> StoredTargets:
    """Return the current targets, hints before anchors and twins, as judged by the current gate; their arrays stay on
    disk.

    Raises:
        InputError: a part is corrupt or was written by another program or version, or a target is missing; the message
            names it.
    """
    keys = ctx.rundir.index("rescore") or []
    return TargetStore(ctx.rundir.path / "targets").open(keys, ctx.config.rescoring.gate)


def _summarise(ctx: RunContext) -> None:
    stored = load(ctx)
    targets = stored.of_kind("hint")
    gate = ctx.config.rescoring.gate
    accepted = sum(t.accepted for t in targets.heads)
    reasons = Counter(r for t in targets.heads if not t.accepted for r in t.reasons)
    ctx.console.note(
        f"rescore: {len(targets)} hints scored, {accepted} accepted, {len(targets) - accepted} rejected{_why(reasons)}"
    )
    _summarise_twins(ctx, stored)
    null = passing_placebos((t for _, t in targets.by_part()), gate)
    passed, n = (sum(of[i] for of in null.values()) for i in (0, 1))
    if n and passed / n > MAX_NULL_PASS_RATE:
        kinds = ", ".join(f"{kind} {of[0]} of {of[1]}" for kind, of in sorted(null.items(), key=lambda kv: -kv[1][0]))
        ctx.console.warn(
            f"{passed / n:.0%} of the placebos would pass the gate (bound {MAX_NULL_PASS_RATE:.0%}): {kinds}"
        )


def _why(reasons: Counter[str]) -> str:
    """Return the most common reasons as text; they may add up to more than the number rejected, since a target can have
    several."""
    return (
        f" (reasons, one or more each: {', '.join(f'{n} {r}' for r, n in reasons.most_common(4))})" if reasons else ""
    )


def _summarise_twins(ctx: RunContext, stored: StoredTargets) -> None:
    found = list(stored.of_kind("twin").heads)
    if not found:
        return
    kept = [t for t in found if t.accepted]
    reasons = Counter(r for t in found if not t.accepted for r in t.reasons)
    by_class = Counter(t.error_class or "" for t in kept)
    ctx.console.note(
        f"rescore: {len(found)} twins scored, {len(kept)} kept, {len(found) - len(kept)} rejected{_why(reasons)}"
    )
    ctx.console.note(
        f"rescore: kept twins by class: {', '.join(f'{n} {c}' for c, n in by_class.most_common()) or 'none'}"
    )


def require_accepted(ctx: RunContext, stored: StoredTargets | None = None) -> None:
    """Raise an error before training if there is nothing to train on; `stored` are the current targets, if already
    open.

    Raises:
        EmptyFunnelError: there is no accepted hint, or this student would hardly make most of the errors.
    """
    targets = list((load(ctx) if stored is None else stored).of_kind("hint").heads)
    reasons = Counter(r for t in targets for r in t.reasons)
    foreign = reasons["not_this_students_error"]
    if targets and foreign > len(targets) / 2:
        raise EmptyFunnelError(
            f"{foreign} of {len(targets)} findings are errors this student would hardly make (decision token below "
            f"{ctx.config.rescoring.gate.min_student_probability:g})",
            hint="the traces come from another model; train the model that produced them, or sample fresh "
            "traces from this one",
        )
    if not any(t.accepted and t.split == "train" for t in targets):
        why = ", ".join(f"{n} {r}" for r, n in reasons.most_common()) or "no finding reached the gate"
        raise EmptyFunnelError(
            f"no accepted hint to train on ({why})",
            hint=f"hintdistill show {ctx.rundir.path} lists each hint with its reason; reword the templates "
            "in prompts/hints, or let an LLM critic write the hints (critic.use=[llm])",
        )
