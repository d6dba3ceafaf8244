"""Batched sampling of episodes from a transformers model, token in, token out.

Each turn continues the ids of the turn before: context, sampled ids, then what the template prints for the
environment's answer. Nothing the student sampled is ever re-tokenised, as long as the template only appends; where it
rewrites history, the next context is the template's fresh render, which is what a chat server would send as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hintdistill.engines.transformers import TransformersEngine
from hintdistill.errors import EnvironmentFailure, HintdistillError
from hintdistill.hints import seed_of
from hintdistill.rendering import Renderer
from hintdistill.rollouts.environment import Environment, Reply, TaskSuite
from hintdistill.rollouts.parsing import PARSERS
from hintdistill.scores import ScoreRequest
from hintdistill.types import Message, Trace


@dataclass(frozen=True)
class SamplingOptions:
    """How episodes are sampled."""

    temperature: float = 1.0
    """0 is greedy."""
    max_new_tokens: int = 256
    """Tokens per step."""
    max_steps: int = 16
    batch_size: int = 64
    seed: int = 0
    parser: str = "hermes"
    logprobs: bool = False
    """Whether to keep the log-probability of every sampled token (one more prefill per step)."""


@dataclass(frozen=True)
class Episode:
    """A finished episode: its trace with the reward, or why it came to nothing."""

    task: str
    trace: Trace
    failure: str | None = None


@dataclass
class _Running:
    task: str
    index: int
    environment: Environment
    messages: list[Message]
    tools: tuple[dict[str, Any], ...]
    context: list[int] = field(default_factory=list)
    reward: float | None = None
    done: bool = False
    failure: str | None = None


class Sampler:
    """Samples steps and episodes from the weights of an engine."""

    def __init__(self, engine: TransformersEngine, renderer: Renderer, options: SamplingOptions) -> None:
        self.engine, self.renderer, self.options = engine, renderer, options
        self._parse = PARSERS[options.parser]
        eos = engine.model.generation_config.eos_token_id
        self._eos = sorted({*(eos if isinstance(eos, list) else [eos]), renderer.tokenizer.eos_token_id} - {None})

    def generate(self, contexts: Sequence[Sequence[int]], seed: int) -> list[list[int]]:
        """Sample one step after each context; the end-of-turn token is kept where it was sampled."""
        width = max(len(c) for c in contexts)
        device = next(self.engine.model.parameters()).device
        ids = torch.full((len(contexts), width), self.engine.pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, context in enumerate(contexts):
            ids[i, width - len(context) :] = torch.tensor(context)
            mask[i, width - len(context) :] = 1
        sample = self.options.temperature > 0
        rng = torch.random.fork_rng(devices=[] if device.type == "cpu" else [device])
        with self.engine.hold() as model, rng, torch.inference_mode():
            torch.manual_seed(seed)
            out = model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), do_sample=sample,
                temperature=self.options.temperature if sample else None, top_k=0 if sample else None,
                top_p=1.0 if sample else None, max_new_tokens=self.options.max_new_tokens,
                eos_token_id=self._eos, pad_token_id=self.engine.pad,
            )[:, width:].tolist()  # fmt: skip
        return [self._cut(row) for row in out]

    def _cut(self, row: list[int]) -> list[int]:
        for i, token in enumerate(row):
            if token in self._eos:
                return row[: i + 1]
        return row

    def episodes(
        self, suite: TaskSuite, tasks: Sequence[str], progress: Callable[[int], None] | None = None
    ) -> Iterator[Episode]:
        """Play every task once, in order, a batch at a time. A task that fails costs itself."""
        for start in range(0, len(tasks), self.options.batch_size):
            batch = tasks[start : start + self.options.batch_size]
            running = [self._begin(suite, task, start + i) for i, task in enumerate(batch)]
            for turn in range(self.options.max_steps):
                active = [r for r in running if not r.done]
                if not active:
                    break
                self._turn(active, seed_of(self.options.seed, start, turn))
            for r in running:
                if not r.done:
                    r.failure = f"not done after {self.options.max_steps} steps"
                yield Episode(r.task, self._trace(r), r.failure)
                if progress:
                    progress(1)

    def _begin(self, suite: TaskSuite, task: str, index: int) -> _Running:
        environment = suite.make()
        try:
            start = environment.reset(task)
            running = _Running(task, index, environment, list(start.messages), tuple(start.tools))
            text = self.renderer.render(running.messages, running.tools, header=True)
            running.context = self.renderer.encode(text)
        except HintdistillError as error:
            return _Running(task, index, environment, [], (), done=True, failure=str(error))
        except Exception as error:
            return _Running(
                task, index, environment, [], (), done=True, failure=f"reset raised {type(error).__name__}: {error}"
            )
        return running

    def _turn(self, active: list[_Running], seed: int) -> None:
        for r in active:
            if len(r.context) + self.options.max_new_tokens > self.engine.max_length:
                r.done, r.failure = True, f"context of {len(r.context)} tokens leaves no room for a step"
        active = [r for r in active if not r.done]
        if not active:
            return
        sampled = self.generate([r.context for r in active], seed)
        logprobs = self._logprobs(active, sampled) if self.options.logprobs else [None] * len(active)
        for r, ids, lp in zip(active, sampled, logprobs, strict=True):
            ended = ids[-1] in self._eos
            parsed = self._parse(self.renderer.decode(ids[:-1] if ended else ids))
            message = parsed.model_copy(
                update={"prompt_token_ids": tuple(r.context), "token_ids": tuple(ids), "logprobs": lp, "raw_text": None}
            )
            r.messages.append(message)
            if not ended:
                r.done, r.failure = True, f"a step was cut after {len(ids)} tokens"
                continue
            try:
                reply = r.environment.step(message)
                if not isinstance(reply, Reply):
                    raise EnvironmentFailure(f"step returned {type(reply).__name__}, not a Reply")
                r.messages.extend(reply.messages)
                r.done, r.reward = reply.done, reply.reward
                if not r.done:
                    r.context = self._continue(r, ids, len(reply.messages))
            except HintdistillError as error:
                r.done, r.failure = True, str(error)
            except Exception as error:
                r.done, r.failure = True, f"step raised {type(error).__name__}: {error}"

    def _continue(self, r: _Running, sampled: list[int], new: int) -> list[int]:
        """The next context: this one, the sampled ids, and what the template prints after the step."""
        finished = self.renderer.render(r.messages[: len(r.messages) - new], r.tools, header=False)
        following = self.renderer.render(r.messages, r.tools, header=True)
        if not following.startswith(finished):
            return self.renderer.encode(following)
        scaffold = len(finished) - len(finished.rstrip())
        return r.context + sampled + self.renderer.encode(following[len(finished) - scaffold :])

    def _logprobs(self, active: list[_Running], sampled: list[list[int]]) -> list[tuple[float, ...] | None]:
        requests = [
            ScoreRequest(np.array(r.context + ids), len(r.context), len(r.context) + len(ids))
            for r, ids in zip(active, sampled, strict=True)
        ]
        scores = self.engine.score(requests, top_k=1)
        return [tuple(round(float(x), 6) for x in s.sampled) for s in scores]

    def _trace(self, r: _Running) -> Trace:
        return Trace(
            id=f"{r.task}#{r.index}",
            messages=tuple(r.messages),
            tools=r.tools,
            reward=r.reward,
            task_id=r.task,
            model=self.engine.key,
            extra={"failure": r.failure} if r.failure else {},
        )
