"""The rounds of `rollout.source: replay`: the current student acts once at steps of recorded traces; no environment is
needed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from hintdistill.core.errors import EmptyFunnelError, HintdistillError
from hintdistill.core.models import model_key
from hintdistill.core.storage import content_key
from hintdistill.core.types import Trace
from hintdistill.pipeline import read
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.playing import Player, Playing
from hintdistill.pipeline.progress import Advance
from hintdistill.rollouts.measure import describe
from hintdistill.rollouts.replay import Prefix, draw_positions, fresh_steps
from hintdistill.rollouts.sampling import Episode, Sampler

PROBES = 4
"""Contexts on which a server is compared after receiving new weights."""


class Replayer(Player):
    """Let a student act once at steps of the recorded traces, which are read into the loop's own folder."""

    def __init__(self, top: RunContext) -> None:
        """Store the arguments; the traces are read later."""
        self.top, self.config, self._handed = top, top.config, None

    @cached_property
    def _recorded(self) -> tuple[list[str], list[int]]:
        """Return the row keys of the recorded traces in reading order, and the number of the student's steps in each.

        Raises:
            InputError, ConfigError: see `read.run`.
            EmptyFunnelError: there is no trace, or no step at which the student could act.
        """
        read.run(self.top)
        keys, steps = list[str](), list[int]()
        for key, trace, _ in read.each(self.top):
            keys.append(key)
            steps.append(len(trace.own_steps))
        if not sum(steps):
            raise EmptyFunnelError("no recorded trace has a student's step at which to act")
        return keys, steps

    def _playing(self, number: int, student: Path) -> Playing:
        keys, steps = self._recorded
        options, sample = self._options(number), self.config.rollout.sample
        positions = draw_positions(steps, sample.episodes, number, self.config.run.seed)
        places = [(keys[trace], step) for trace, step in positions]
        own = self.top.renderer.options_content
        key = content_key("replay", model_key(student).weights, describe(options), sample.backend, places, *own)

        def play(sampler: Sampler, some: Sequence[tuple[str, int]], first: int, advance: Advance) -> Iterator[Episode]:
            opened = read.open_traces(self.top)
            prefixes = [self._prefix(opened(key), step) for key, step in some]
            fitting = [p for p in prefixes if isinstance(p, Prefix)]
            fresh = fresh_steps(sampler, fitting, first, advance)
            for prefix in prefixes:
                yield next(fresh) if isinstance(prefix, Prefix) else prefix

        return Playing(places, key, options, play)

    def _prefix(self, trace: Trace, number: int) -> Prefix | Episode:
        """Return the student's context at one of its steps in a trace, or a failed episode if it cannot be rendered."""
        step = trace.own_steps[number]
        try:
            return Prefix(trace, step, self.top.renderer.step(trace, step).context_ids)
        except HintdistillError as error:
            return Episode(trace.task_id or trace.id, trace, error.message)

    @cached_property
    def _probe(self) -> list[list[int]]:
        keys, steps = self._recorded
        opened = read.open_traces(self.top)
        acting = (k for k, n in zip(keys, steps, strict=True) if n)
        some = [self._prefix(opened(k), 0) for k in itertools.islice(acting, PROBES)]
        return [list(p.context_ids) for p in some if isinstance(p, Prefix)]
