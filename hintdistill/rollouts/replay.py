"""Sample one fresh step at a step of a recorded trace, without an environment.

The student reads the recorded agent's context, and acts once. The messages above are given: they are neither critiqued
nor trained on. The recorded step and what followed it are kept with the trace for a critic: they show how the
environment answers, but not its answer to the fresh step.

This follows ReOPD (arXiv 2607.04763).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from hintdistill.core.extra_keys import CONTINUATION
from hintdistill.core.types import Message, Trace
from hintdistill.injection.hints import seed_of
from hintdistill.rollouts.generation import Sampled
from hintdistill.rollouts.sampling import CUT, Episode, Sampler

OF = "replayed"
"""Key in a fresh trace's `extra` that holds the recorded trace and its step."""


@dataclass(frozen=True)
class Prefix:
    """Hold a recorded trace up to a step at which the student acts."""

    trace: Trace
    step: int
    context_ids: tuple[int, ...]

    @property
    def task(self) -> str:
        """Return the task of the recorded trace."""
        return self.trace.task_id or self.trace.id


def draw_positions(steps: Sequence[int], n: int, number: int, seed: int) -> list[tuple[int, int]]:
    """Draw `n` positions for a round, anew in each round and uniformly over steps; none repeats before all have been
    drawn.

    Args:
        steps: the number of the student's own steps in each recorded trace.

    Returns:
        The index of the trace, and the index of the step among its own steps.
    """
    rng = random.Random(f"replay:{number}:{seed}")
    every = [(trace, k) for trace, count in enumerate(steps) for k in range(count)]
    out: list[tuple[int, int]] = []
    while every and len(out) < n:
        deck = list(every)
        rng.shuffle(deck)
        out += deck[: n - len(out)]
    return out


def fresh_steps(
    sampler: Sampler, prefixes: Sequence[Prefix], first: int = 0, progress: Callable[[int], None] | None = None
) -> Iterator[Episode]:
    """Sample one step after each prefix, in order and in batches; a prefix without room for a step gives a failed
    episode.

    Args:
        first: index of the first prefix, if these are the rest of a longer list; a multiple of the batch size.
    """
    options = sampler.options
    for start in range(0, len(prefixes), options.batch_size):
        batch = prefixes[start : start + options.batch_size]
        most = sampler.generator.max_length - options.max_new_tokens
        fitting = [p for p in batch if len(p.context_ids) <= most]
        seed = seed_of(options.seed, first + start, 0)
        contexts = [p.context_ids for p in fitting]
        sampled = sampler.generator.generate(contexts, sampler.stop, options, seed) if contexts else []
        steps = iter(sampled)
        for i, prefix in enumerate(batch):
            name = f"{prefix.trace.id}@{prefix.step}#{first + start + i}"
            if len(prefix.context_ids) <= most:
                yield _episode(sampler, prefix, name, next(steps))
            else:
                why = f"the context of {len(prefix.context_ids)} tokens leaves no room for a step"
                yield Episode(prefix.task, _trace(sampler, prefix, name, ()), why)
            if progress:
                progress(1)


def _episode(sampler: Sampler, prefix: Prefix, name: str, step: Sampled) -> Episode:
    if not step.ids:
        return Episode(prefix.task, _trace(sampler, prefix, name, ()), "nothing was sampled")
    return Episode(prefix.task, _trace(sampler, prefix, name, (sampler.message(prefix.context_ids, step),)))


def _trace(sampler: Sampler, prefix: Prefix, name: str, fresh: tuple[Message, ...]) -> Trace:
    recorded, at = prefix.trace, prefix.trace.step_indices[prefix.step]
    above = [m.model_copy(update={"given": True}) if m.role == "assistant" else m for m in recorded.messages[:at]]
    followed = [m.model_dump(mode="json", include=_READ, exclude_defaults=True) for m in recorded.messages[at:]]
    cut = {CUT: "the step was cut"} if any(m.cut for m in fresh) else {}
    return Trace(
        id=name,
        messages=(*above, *fresh),
        tools=recorded.tools,
        task_id=recorded.task_id,
        model=sampler.generator.key,
        template=recorded.template,
        tool_effects=recorded.tool_effects,
        extra={OF: [recorded.id, prefix.step], CONTINUATION: followed, **cut},
    )


_READ = {"role", "content", "reasoning", "tool_calls", "name"}
"""Fields of a message that a critic reads."""
