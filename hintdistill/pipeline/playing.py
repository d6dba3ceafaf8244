"""Play a round's episodes: choose the tasks and the weights, and store the episodes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hintdistill.core.models import model_key
from hintdistill.core.paths import object_content
from hintdistill.core.storage import content_key
from hintdistill.core.types import Trace
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Advance, Console
from hintdistill.pipeline.store import RunDir
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.evaluate import tasks_of
from hintdistill.rollouts.generation import SamplingOptions
from hintdistill.rollouts.measure import describe, options_of, played_from
from hintdistill.rollouts.sampling import Episode, Sampler


@dataclass(frozen=True)
class Playing:
    """Hold the episodes of a round."""

    items: Sequence[Any]
    """The task of each episode, or its position in a recorded trace."""
    key: str
    """Key of everything that the episodes depend on."""
    options: SamplingOptions
    play: Callable[[Sampler, Sequence[Any], int, Advance], Iterator[Episode]]
    """Samples a batch of items; the number is that of the first item."""


class Player:
    """Play episodes of a suite with a student's weights, in this process or on a server that receives the weights."""

    def __init__(self, top: RunContext, suite: TaskSuite) -> None:
        self.top, self.config, self.suite = top, top.config, suite
        self._handed: tuple[Path, Any] | None = None
        """The student whose weights the server has, and the server."""

    @contextmanager
    def ahead(self, number: int, student: Path, folder: Path) -> Iterator[None]:
        """Play the episodes of round `number` in another thread while the body runs, and finish before the context
        ends.

        Meanwhile the server keeps the weights of `student`; the engine of this process is not used. An error in the
        thread is raised at the end of the body; if the body itself raises, complete batches of episodes are kept.
        """
        sampler = self._weights(student)
        with ThreadPoolExecutor(1) as pool:
            playing = pool.submit(self.episodes, number, student, folder, sampler)
            yield
            playing.result()

    def episodes(self, number: int, student: Path, folder: Path, weights: Any = None) -> list[Episode]:
        """Play the episodes of round `number` into `folder`; existing episodes are not played again.

        `weights`: who samples, if already known; in this case no progress bar is shown.
        """
        return self._played(self._playing(number, student), number, student, folder, weights)

    def _playing(self, number: int, student: Path) -> Playing:
        """Return the items to play in a round."""
        sample, options = self.config.rollout.sample, self._options(number)
        assert self.config.rollout.environment is not None
        known = tasks_of(self.suite, sample.split, None, sample.tasks)
        tasks = draw_tasks(known, sample.episodes, number, self.config.run.seed, sample.per_task)
        key = content_key(
            "episode",
            model_key(student).weights,
            object_content(self.config.rollout.environment),
            describe(options),
            sample.backend,
            tasks,
            *self.top.renderer.options_content,
        )

        def play(sampler: Sampler, some: Sequence[str], first: int, advance: Advance) -> Iterator[Episode]:
            return sampler.episodes(self.suite, some, advance, first=first)

        return Playing(tasks, key, options, play)

    def _options(self, number: int) -> SamplingOptions:
        section, seed = self.config.rollout, self.config.run.seed
        return options_of(section, played_from(section), seed * 1000 + number, logprobs=True)

    def _played(self, playing: Playing, number: int, student: Path, folder: Path, weights: Any = None) -> list[Episode]:
        """Sample the missing episodes of a round, and return all of them."""
        folder.mkdir(parents=True, exist_ok=True)
        items, options = playing.items, playing.options
        # the seed draws a batch at a time, so a batch is the unit that is played again
        store = RunDir(folder).store("episodes")
        have = store.by_key()
        keys = [f"{playing.key}-{i}" for i in range(len(items))]
        size = options.batch_size
        owed = [at for at in range(0, len(items), size) if any(k not in have for k in keys[at : at + size])]
        if owed:
            sampler = Sampler(self._weights(student) if weights is None else weights, self.top.renderer, options)
            console = self.top.console if weights is None else Console(quiet=True)
            with console.progress(f"play {number}", len(items)) as advance:
                advance(len(items) - sum(len(keys[at : at + size]) for at in owed))
                for at in owed:
                    played = list(playing.play(sampler, items[at : at + size], at, advance))
                    store.extend([episode_row(k, e) for k, e in zip(keys[at : at + size], played, strict=True)])
            have = store.by_key()
            if self._handed is not None and self.config.rollout.sample.server.sleep:
                # what it holds after it woke is compared again before it samples
                self._handed[1].sleep()
                self._handed = None
        return [episode_of(have[k]) for k in keys]

    def _weights(self, student: Path) -> Any:
        """Return who samples: the weights in this process, or a server that received them."""
        engine = self.top.engine(student)
        if self.config.rollout.sample.backend == "transformers":
            return engine
        from hintdistill.rollouts.server import ServerGenerator

        if self._handed is not None and self._handed[0] == student:
            return self._handed[1]
        section = self.config.rollout.sample.server
        server, self._handed = ServerGenerator(section, engine.max_length), None
        if section.sleep:
            server.wake()
        if section.hand_over == "adapter":
            from hintdistill.rollouts.adapters import adapter_for_server

            gap = server.hand_adapter(adapter_for_server(student, self.top.model_folder), engine, self._probe)
        else:
            gap = server.hand_over(student, engine, self._probe)
        self._handed = student, server
        self.top.console.note(
            f"handed {student} to the server; the server's log-probabilities differ from ours by {gap:.2g} nats per token"
        )
        return server

    @cached_property
    def _probe(self) -> list[list[int]]:
        """Return the contexts on which a server is compared: the openings of a few tasks."""
        out = []
        for task in tasks_of(self.suite, self.config.rollout.sample.split, 4, self.config.rollout.sample.tasks):
            start = self.suite.make().reset(task)
            out.append(self.top.renderer.encode(self.top.renderer.render(start.messages, start.tools, header=True)))
        return out


def draw_tasks(tasks: list[str], n: int, number: int, seed: int, per_task: int = 1) -> list[str]:
    """Draw `n` tasks for a round, anew in each round. No task repeats before all have been drawn, and each drawn task
    comes `per_task` times in a row."""
    rng = random.Random(f"round:{number}:{seed}")
    out: list[str] = []
    while len(out) < n // per_task:
        deck = list(tasks)
        rng.shuffle(deck)
        out += deck[: n // per_task - len(out)]
    return [task for task in out for _ in range(per_task)]


def episode_row(key: str, episode: Episode) -> dict[str, Any]:
    """Convert an episode to a row."""
    trace = episode.trace.model_dump(mode="json", exclude_defaults=True)
    return {"key": key, "task": episode.task, "trace": trace, "failure": episode.failure}


def episode_of(row: Mapping[str, Any]) -> Episode:
    """Convert a row to an episode."""
    return Episode(row["task"], Trace.model_validate(row["trace"]), row["failure"])
