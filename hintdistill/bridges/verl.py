"""Add hints to verl's agent loop: a step's teacher scores come from a run, or from a teacher that reads the hint at its
turn.

    # hints that a run has scored: set +data.hintdistill_run=runs/demo
    actor_rollout_ref.rollout.agent.agent_loop_manager_class: hintdistill.bridges.verl.HintedAgentLoopManager

    # hints of your own, for fresh rollouts: a module of yours
    from hintdistill.bridges.verl import manager_class
    Manager = manager_class(find)      # find(ids, prompt_length, sample) -> list[Splice]

verl's own teacher reads the sequence unchanged, or with a prefix at position 0. Here the hint's block is spliced above
the erring step at any turn, and the teacher reads the sequence up to that step. The step's rows are sliced out, and the
response mask is the step's span, so that nothing else carries loss. A sequence without a hint carries no loss. The loss
is `distillation.distillation_loss.loss_mode=forward_kl_topk`, without the rest. Tested with verl 0.9.1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from hintdistill.bridges.peers import need
from hintdistill.bridges.surgery import Scored, Splice, StoredScores, hinted_ids, laid_out, loss_mask, slice_back
from hintdistill.core.errors import ConfigError

Find = Callable[[Sequence[int], int, Mapping[str, Any]], Sequence[Splice]]
"""Function from prompt and response ids, the length of the prompt, and the sample's columns to the hints and their
steps."""
RUN_KEY = "hintdistill_run"
_MODULE = "verl.experimental.agent_loop.agent_loop"


class HintedTeacher:
    """Modify verl's agent loop worker; a mixin that comes before its class."""

    find: Find | None = None
    hint_store: StoredScores | None = None

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        above: Any = super()
        above.__init__(config, *args, **kwargs)
        self.open_store(config.data.get(RUN_KEY))

    def open_store(self, run: str | None) -> None:
        """Open the run with the hints. Raises ConfigError if there is neither a run nor a function."""
        if run is not None:
            self.hint_store = StoredScores(run, self.width())
        elif self.find is None:
            raise ConfigError(
                f"there are no hints: data.{RUN_KEY} is not set",
                hint=f"+data.{RUN_KEY}=runs/demo, or manager_class(find)",
            )

    def width(self) -> int:
        """Number of ids per token in the loss: `distillation.distillation_loss.topk`."""
        return int(self._teacher.distillation_loss_config.topk)

    @property
    def _teacher(self) -> Any:
        return vars(self)["teacher_server_manager"]

    async def hint_scores(self, output: Any, sample: Mapping[str, Any]) -> list[Scored]:
        """Return the teacher's scores of each step with a hint, from the run or from a query."""
        ids = [*output.prompt_ids, *output.response_ids]
        scored = [] if self.hint_store is None else self.hint_store.find(ids)
        for splice in () if self.find is None else self.find(ids, len(output.prompt_ids), sample):
            answer = await self._teacher.compute_teacher_logprobs_single(
                sequence_ids=hinted_ids(ids, splice),
                multi_modal_data=output.multi_modal_data,
                mm_processor_kwargs=output.mm_processor_kwargs,
                mm_processor_output=getattr(output, "mm_processor_output", None),
                routing_key=None,
            )
            scored.append(slice_back(np.asarray(answer[0]), np.asarray(answer[1]), splice))
        return scored

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> Any:
        if vars(self)["distillation_enabled"] and not validate:
            scored = await self.hint_scores(output, kwargs)
            span = loss_mask(scored, len(output.prompt_ids), len(output.response_ids))
            # a token that the student did not write carries no loss, whatever a span says
            output.response_mask = [int(bool(a and b)) for a, b in zip(output.response_mask, span, strict=True)]
            output.extra_fields["hint_scores"] = scored
        above: Any = super()
        return await above._agent_loop_postprocess(output, validate, **kwargs)

    async def _compute_teacher_logprobs(
        self,
        output: Any,
        prompt_ids: Sequence[int],
        response_ids: Sequence[int],
        validate: bool,
        sample_kwargs: Any = None,
    ) -> None:
        import torch

        if not vars(self)["distillation_enabled"] or validate:
            return
        length = len(prompt_ids) + len(response_ids)
        ids, logprobs = laid_out(output.extra_fields.pop("hint_scores"), length, self.width())
        output.extra_fields["teacher_ids"] = torch.from_numpy(ids)
        output.extra_fields["teacher_logprobs"] = torch.from_numpy(logprobs)


@lru_cache(maxsize=8)
def worker_class(find: Find | None = None) -> Any:
    """Return verl's agent loop worker class with hints: those that `find` returns, and those of the run in
    `data.hintdistill_run`.

    Raises:
        ConfigError: verl is not installed.
    """
    base: Any = need(_MODULE, "verl").AgentLoopWorker
    given = None if find is None else staticmethod(find)
    return type("HintedAgentLoopWorker", (HintedTeacher, base), {"find": given, "__module__": __name__})


@lru_cache(maxsize=8)
def manager_class(find: Find | None = None) -> Any:
    """Return the class for verl's `agent_loop_manager_class`; see `worker_class`."""
    base: Any = need(_MODULE, "verl").AgentLoopManager
    ray = need("ray")

    class HintedAgentLoopManager(base):
        """Manage agent loop workers whose teacher reads hints."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.agent_loop_workers_class = ray.remote(worker_class(find))
            super().__init__(*args, **kwargs)

    return HintedAgentLoopManager


def __getattr__(name: str) -> Any:
    """Return `HintedAgentLoopManager`, which verl's configuration names; verl is imported on access."""
    if name == "HintedAgentLoopManager":
        return manager_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
