"""Add the targeted term to TRL's GRPO: on the span, each token gets an additional advantage from the hint.

    steps = StoredSteps("runs/demo")
    trainer = targeted_grpo()(model, args=GRPOConfig(out, …), reward_funcs=my_reward, train_dataset=steps.prompts(),
                              rollout_func=steps.replay, signal=steps, coefficient=1.0)

GRPO's loss takes advantages of shape [B, T]. So a token's advantage is its completion's, from the rewards, plus
coefficient · weight · (log T - log S) of the sampled token: the sampled-token policy gradient of the reverse KL.
`signal` is any function of context and completion that returns weighted log T - log S per token, or None; `StoredSteps`
has the values for a run's accepted hints. Tested with trl 1.16.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hintdistill.bridges.peers import need
from hintdistill.bridges.runs import open_rows, require_no_action_span
from hintdistill.core.errors import InputError

Signal = Callable[[Sequence[int], Sequence[int]], np.ndarray | None]
"""Function from context ids and completion ids to float [T], the desired rise of each token's log-probability in nats
times its weight; or None."""
CLIP = 5.0
"""Largest gap of a token that counts, nats."""


def _key(context: Sequence[int], completion: Sequence[int]) -> str:
    parts = [np.asarray(ids, "<i4").tobytes() for ids in (context, completion)]
    return hashlib.sha256(len(parts[0]).to_bytes(8, "little") + parts[0] + parts[1]).hexdigest()


class StoredSteps:
    """Offer the erring steps of a run's accepted hints as prompts, as rollouts, and as a signal."""

    def __init__(self, run: Path | str) -> None:
        """Read the steps. Raises InputError if there are none, ConfigError for a recipe with the loss span `action`."""
        found = open_rows(Path(run))
        require_no_action_span(found.section, "this bridge")
        self._by_name: dict[str, tuple[list[int], list[int], list[float]]] = {}
        self._signals: dict[str, np.ndarray] = {}
        for _, target in found.targets.where(lambda t: t.kind == "hint").by_part():
            context, step = target.context_ids.tolist(), target.step_ids.tolist()
            weights = np.zeros(len(step))
            weights[slice(*target.span)] = 1.0
            gap = np.clip(target.teacher_sampled.astype(np.float64) - target.plain_sampled, -CLIP, CLIP)
            name = _key(context, step)
            # several hints of one step: each has its say
            self._signals[name] = self._signals.get(name, np.zeros(len(step))) + gap * weights
            self._by_name[name] = (context, step, target.plain_sampled.astype(float).tolist())

    def prompts(self) -> Any:
        """Return a data set with one prompt per step: the step's name, which `replay` understands."""
        return need("datasets").Dataset.from_dict({"prompt": list(self._by_name)})

    def replay(self, prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
        """Return the steps as they were sampled: TRL's `rollout_func`. Raises InputError for a prompt that does not
        name a step."""
        if missing := [p for p in prompts if p not in self._by_name]:
            raise InputError(f"{missing[0]!r} does not name a step of this run", hint="train_dataset=steps.prompts()")
        found = [self._by_name[p] for p in prompts]
        return {
            "prompt_ids": [context for context, _, _ in found],
            "completion_ids": [step for _, step, _ in found],
            "logprobs": [logprobs for _, _, logprobs in found],
        }

    def __call__(self, context: Sequence[int], completion: Sequence[int]) -> np.ndarray | None:
        """Return the signal of a step as it was sampled; None for any other."""
        return self._signals.get(_key(context, completion))


def per_token(output: dict[str, Any], signal: Signal, coefficient: float) -> Any:
    """Return GRPO's advantages [B, T], with the signal added where it exists."""
    mask, ids = output["completion_mask"], output["completion_ids"]
    advantages = output["advantages"]
    wide = (advantages[:, None] if advantages.dim() == 1 else advantages).expand(mask.shape).float().clone()
    for b in range(len(ids)):
        context = output["prompt_ids"][b][output["prompt_mask"][b].bool()].tolist()
        length = int(mask[b].sum())
        said = signal(context, ids[b, :length].tolist())
        if said is not None:
            wide[b, :length] += coefficient * wide.new_tensor(said)
    return wide


def targeted_grpo() -> Any:
    """Return the trainer's class. Raises ConfigError if trl is not installed."""
    base: Any = need("trl").GRPOTrainer

    class TargetedGRPOTrainer(base):
        """Extend GRPO: its advantages include the targeted term."""

        def __init__(self, *args: Any, signal: Signal, coefficient: float = 1.0, **kwargs: Any) -> None:
            self.signal, self.coefficient = signal, coefficient
            super().__init__(*args, **kwargs)

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            output = super()._generate_and_score_completions(inputs)
            output["advantages"] = per_token(output, self.signal, self.coefficient)
            return output

    return TargetedGRPOTrainer
