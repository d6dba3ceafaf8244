"""Sample episodes in batches, with token ids as input and output.

Each turn continues the ids of the previous turn: context, sampled ids, then the tokens that the template prints for the
environment's answer. Sampled text is never tokenised again as long as the template only appends; if it rewrites
history, the next context is a fresh rendering, as a chat server would send it.

An episode can also be continued from the middle with a hint above one step: the environment is played again up to that
step (it must give the same answers), the step is sampled in the hinted context, and the steps after it without the
hint. This is used to measure the hinted student, and to sample its corrected steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hintdistill.core.errors import EnvironmentFailure, HintdistillError
from hintdistill.core.types import Message, SampledFrom, ToolEffect, Trace
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.injection.hints import seed_of
from hintdistill.injection.rendering import Renderer
from hintdistill.rollouts.environment import TaskSuite, effects_of
from hintdistill.rollouts.generation import Generator, Sampled, SamplingOptions, TransformersGenerator
from hintdistill.rollouts.greetings import with_greetings_given
from hintdistill.rollouts.guard import GuardedEnvironment
from hintdistill.rollouts.parsing import PARSERS

__all__ = ["Branch", "Episode", "Sampler", "SamplingOptions"]


CUT = "cut"
"""Key in a trace's `extra` that names the token limit which ended it."""


@dataclass(frozen=True)
class Episode:
    """Hold a finished episode: its trace with the reward, or the reason why it failed."""

    task: str
    trace: Trace
    failure: str | None = None

    @property
    def cut(self) -> str | None:
        """Return the token limit that ended it; such an episode is a trace with the reward 0, and not a success."""
        found = self.trace.extra.get(CUT)
        return found if isinstance(found, str) else None


@dataclass(frozen=True)
class Branch:
    """Describe an episode to continue from a step."""

    trace: Trace
    step: int
    context_ids: tuple[int, ...]
    """The step's own context, which is recorded and continued."""
    hinted_ids: tuple[int, ...]
    """The context with the hint, in which only this step is sampled."""


@dataclass
class _Running:
    task: str
    id: str
    environment: GuardedEnvironment
    messages: list[Message] = field(default_factory=list)
    tools: tuple[dict[str, Any], ...] = ()
    effects: dict[str, ToolEffect] = field(default_factory=dict)
    """Effects of the tools as declared by the suite."""
    context: list[int] = field(default_factory=list)
    hinted: list[int] | None = None
    """The context for sampling the next step, if it is not the step's own."""
    reward: float | None = None
    done: bool = False
    failure: str | None = None
    cut: str | None = None

    def end_at_limit(self, why: str) -> None:
        """End this episode at a token limit; the part up to here is a trace."""
        self.done, self.cut, self.reward = True, why, 0.0

    def fail(self, why: str) -> None:
        """End this episode as failed."""
        self.done, self.failure = True, why


class Sampler:
    """Sample episodes with the weights of an engine, or with those of a server."""

    def __init__(self, weights: TransformersEngine | Generator, renderer: Renderer, options: SamplingOptions) -> None:
        self.generator: Generator = (
            TransformersGenerator(weights) if isinstance(weights, TransformersEngine) else weights
        )
        self.renderer, self.options = renderer, options
        self._parse = PARSERS[options.parser]
        self.stop = _stop_ids(weights, renderer)

    def generate(self, contexts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
        """Sample one step after each context without an environment; the end-of-turn token is kept if it was
        sampled."""
        return [list(s.ids) for s in self.generator.generate(contexts, self.stop, self.options, seed)]

    def episodes(
        self, suite: TaskSuite, tasks: Sequence[str], progress: Callable[[int], None] | None = None, first: int = 0
    ) -> Iterator[Episode]:
        """Play every task once, in order and in batches. A failing task affects no other.

        Args:
            first: index of the first task, if these are the rest of a longer list; it must be a multiple of the batch
                size, and gives the same episodes as the whole list.
        """
        for start in range(0, len(tasks), self.options.batch_size):
            batch = tasks[start : start + self.options.batch_size]
            running = [self._begin(suite, task, first + start + i) for i, task in enumerate(batch)]
            yield from self._play(running, first + start, progress)

    def branches(
        self, suite: TaskSuite, branches: Sequence[Branch], progress: Callable[[int], None] | None = None
    ) -> Iterator[Episode]:
        """Continue every branch once, in order. The hint is not a message of the trace; its step has `extra.hinted`."""
        for start in range(0, len(branches), self.options.batch_size):
            running = [self._take_up(suite, b) for b in branches[start : start + self.options.batch_size]]
            yield from self._play(running, start, progress)

    def _play(self, running: list[_Running], start: int, progress: Callable[[int], None] | None) -> Iterator[Episode]:
        for turn in range(self.options.max_steps):
            active = [r for r in running if not r.done]
            if not active:
                break
            self._turn(active, seed_of(self.options.seed, start, turn))
        for r in running:
            r.environment.close()
            if not r.done:
                r.failure = f"not done after {self.options.max_steps} steps"
            yield Episode(r.task, self._trace(r), r.failure)
            if progress:
                progress(1)

    def _begin(self, suite: TaskSuite, task: str, index: int) -> _Running:
        running = _Running(task, f"{task}#{index}", GuardedEnvironment(suite.make, self.options.timeout_s))
        running.effects = effects_of(suite)
        try:
            start = running.environment.reset(task)
            running.messages, running.tools = list(with_greetings_given(start.messages)), tuple(start.tools)
            running.context = self.renderer.encode(self.renderer.render(running.messages, running.tools, header=True))
        except HintdistillError as error:
            running.fail(error.message)
        return running

    def _take_up(self, suite: TaskSuite, branch: Branch) -> _Running:
        trace = branch.trace
        task = trace.task_id or trace.id
        running = _Running(task, trace.id, GuardedEnvironment(suite.make, self.options.timeout_s))
        running.effects = effects_of(suite)
        recorded = list(trace.before(branch.step))
        try:
            start = running.environment.reset(task)
            running.tools, replayed = tuple(start.tools), list(with_greetings_given(start.messages))
            for message in [m for m in recorded if m.role == "assistant" and not m.given]:
                replayed += [message, *running.environment.step(message).messages]
            if replayed != recorded:
                raise EnvironmentFailure(
                    "the environment answered differently when the episode was replayed; it must be deterministic"
                )
            running.messages = replayed
            running.context, running.hinted = list(branch.context_ids), list(branch.hinted_ids)
        except HintdistillError as error:
            running.fail(error.message)
        return running

    def _turn(self, active: list[_Running], seed: int) -> None:
        for r in active:
            if len(r.hinted or r.context) + self.options.max_new_tokens > self.generator.max_length:
                why = f"the context of {len(r.context)} tokens leaves no room for a step"
                if any(m.role == "assistant" and not m.given for m in r.messages):
                    r.end_at_limit(why)
                else:
                    r.fail(why)
        active = [r for r in active if not r.done]
        if not active:
            return
        sampled = self.generator.generate([r.hinted or r.context for r in active], self.stop, self.options, seed)
        for r, step in zip(active, sampled, strict=True):
            self._advance(r, step)

    def message(self, context: Sequence[int], step: Sampled, *, hinted: bool = False) -> Message:
        """Return a sampled step as a message below its context; `cut` if it has no end token. `hinted`: it was sampled
        under a hint."""
        ended = bool(step.ids) and step.ids[-1] in self.stop
        parsed = self._parse(self.renderer.decode(step.ids[:-1] if ended else step.ids))
        return parsed.model_copy(
            update={
                "prompt_token_ids": tuple(context),
                "token_ids": step.ids or None,
                "logprobs": step.logprobs or None,
                "logprobs_of": SampledFrom() if step.logprobs else None,
                "raw_text": None,
                "cut": not ended,
                "extra": {"hinted": True} if hinted else {},
            }
        )

    def _advance(self, r: _Running, step: Sampled) -> None:
        message = self.message(r.context, step, hinted=bool(r.hinted))
        r.hinted = None
        r.messages.append(message)
        if message.cut:
            r.end_at_limit(f"a step was cut after {len(step.ids)} tokens")
            return
        try:
            reply = r.environment.step(message)
            r.messages.extend(reply.messages)
            r.done, r.reward = reply.done, reply.reward
            if not r.done:
                r.context = self._continue(r, list(step.ids), len(reply.messages))
        except HintdistillError as error:
            r.fail(error.message)

    def _continue(self, r: _Running, sampled: list[int], new: int) -> list[int]:
        """Return the next context: this one, the sampled ids, and the tokens that the template prints after the
        step."""
        finished = self.renderer.render(r.messages[: len(r.messages) - new], r.tools, header=False)
        following = self.renderer.render(r.messages, r.tools, header=True)
        if not following.startswith(finished):
            return self.renderer.encode(following)
        scaffold = len(finished) - len(finished.rstrip())
        return r.context + sampled + self.renderer.encode(following[len(finished) - scaffold :])

    def _trace(self, r: _Running) -> Trace:
        return Trace(
            id=r.id,
            messages=tuple(r.messages),
            tools=r.tools,
            reward=r.reward,
            task_id=r.task,
            model=self.generator.key,
            template=dict(self.renderer.options.values),
            tool_effects=r.effects,
            extra=({"failure": r.failure} if r.failure else {}) | ({CUT: r.cut} if r.cut else {}),
        )


def _stop_ids(weights: Any, renderer: Renderer) -> list[int]:
    eos = weights.model.generation_config.eos_token_id if isinstance(weights, TransformersEngine) else None
    return sorted({*(eos if isinstance(eos, list) else [eos]), renderer.tokenizer.eos_token_id} - {None})
