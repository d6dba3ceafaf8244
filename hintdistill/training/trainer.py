"""A small subclass of `transformers.Trainer` that changes only the loss.

A batch's loss consists of the recipe's terms over the slots of its rows, plus an outcome reward if the coupling adds
one. The student reads each row once, without a hint; the other views were stored by the rescore stage, or are computed
in this step. Anchors always have stored targets.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import Trainer

from hintdistill.config import TrainSection
from hintdistill.core.errors import TripwireError
from hintdistill.engines.shared_prefix import ATTENTION, register
from hintdistill.engines.sharing import choose
from hintdistill.objectives.couplings import additive
from hintdistill.objectives.schedules import scheduled
from hintdistill.recipes.schema import View
from hintdistill.recipes.teachers import of_kind, whose
from hintdistill.training import checkpoints, unlogged
from hintdistill.training.losses import InStepView, OutputHead, Terms, outcome_term
from hintdistill.training.meter import Meter
from hintdistill.training.passes import Passes, Placed, StudentPass, places
from hintdistill.training.processes import is_sharded, local, lockstep, shard_on_cpus_too
from hintdistill.training.rows import LengthSampler, TraceRow
from hintdistill.training.step_pass import StepPass
from hintdistill.training.teacher import Follower, HeldoutReading
from hintdistill.training.tripwires import Tripwires, kept
from hintdistill.training.watch import Watch
from hintdistill.training.window import WindowProbe, require_window, windowed


def collate(rows: Sequence[TraceRow]) -> dict[str, Any]:
    """Return the rows unchanged; they are packed in the forward pass."""
    return {"rows": list(rows)}


class HintTrainer(Trainer):
    """Train a student towards hinted targets."""

    def __init__(
        self,
        *args: Any,
        config: TrainSection,
        special_ids: Sequence[int] = (),
        initial: Any = None,
        external: Any = None,
        heldout: Sequence[TraceRow] = (),
        watch: Watch | None = None,
        tripwires: Tripwires | None = None,
        from_initial: bool = True,
        **kwargs: Any,
    ) -> None:
        """Arguments in addition to the Trainer's own:

        Args:
            config: the training section of a run.
            special_ids: the tokens that `drop_special` removes from supports.
            initial: the initial policy as a model, if the student no longer equals it when this training starts.
            external: the external teacher as a model, if the recipe has one.
            heldout: rows of held-out findings, on which a `cgtr` teacher is evaluated.
            watch: steps that are measured during training; None for no measurement.
            tripwires: bounds on these measurements.
            from_initial: whether the stored plain views are the initial policy's.
        """
        super().__init__(*args, data_collator=collate, **kwargs)
        self.config, self.recipe = config, config.effective_recipe
        self.losses = unlogged.Losses()
        # the loss is normalised by what `_get_num_items_in_batch` counts over the accumulated batch
        self.model_accepts_loss_kwargs = True
        self.owner = self.accelerator.unwrap_model(self.model)
        self.head = OutputHead(self.owner)
        self.terms = Terms(self.recipe, special_ids, self.args.seed)
        way, self.trials = choose(self.owner.eval(), lambda h: self.head.logprobs(h), self._vocabulary())
        if way == "shared_prefix":
            register()
            self.owner.set_attn_implementation(ATTENTION)
        self.passes = Passes(
            self.owner,
            way,
            config.branch_tokens,
            narrow=not config.gradient_checkpointing,
            link=self.args.world_size > 1,
        )
        self._views = self.recipe.used_contexts("hint") if config.target_source == "in_step" else {}
        weights = {self._weights_of(v) for v, _ in self._views.values()}
        self._external = external
        # the student as this training starts, unless taking its adapter off gives it
        start = None
        if ((weights & {"initial"} and initial is None) or "round_start" in weights) and not hasattr(
            self.owner, "disable_adapter"
        ):
            start = copy.deepcopy(self.owner).eval().requires_grad_(False)
        self._frozen = {"initial": initial if initial is not None else start, "round_start": start}
        self._heldout = list(heldout)
        following = of_kind(weights, "follows")
        self.follower = Follower(self.owner, self.recipe.teacher, self._reading) if following else None
        self.meter = Meter(self.recipe, self.head, self.args.logging_steps, from_initial)
        self.watch, self.tripwires = watch, tripwires
        self._batch: list[TraceRow] = []
        self.step_pass = StepPass(self)
        self.probe: WindowProbe | None = None
        """The object that measures a truncated gradient, if the gradient is truncated."""
        if config.grad_window is not None:
            require_window(self.passes)
            self.probe = WindowProbe(
                config.grad_window_every, self.args.output_dir, writes=self.args.process_index == 0
            )

    def _vocabulary(self) -> int:
        return int(self.owner.get_output_embeddings().weight.shape[0])

    def _weights_of(self, view: View) -> str:
        """Return the name of a view's weights: `live`, `initial`, `ema`, `periodic`, …"""
        return whose(view.weights, self.recipe.teacher.update)

    # -- what the Trainer asks for -------------------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self) -> None:
        """Extend the Trainer's method so that FSDP2 also works on CPUs."""
        super().create_accelerator_and_postprocess()
        self.is_fsdp_enabled = shard_on_cpus_too(self.accelerator)

    def _get_train_sampler(self, train_dataset: Any = None) -> LengthSampler:
        data, seed = self.train_dataset, self.args.data_seed or self.args.seed
        data.sampler = LengthSampler(data.lengths, self.config.batch_size, seed, data.fill)
        return data.sampler

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Return the slots of the accumulated batch over all processes, so that all injections weigh the same."""
        self._batch = [r for b in batch_samples for r in b["rows"]]
        self.step_pass.begin([b["rows"] for b in batch_samples])
        count = torch.tensor(sum(len(r.slots) for r in self._batch), device=device)
        return self.accelerator.gather(count).sum() if self.args.world_size > 1 else count

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the recipe's terms, averaged over the slots of the accumulated batch.

        Raises:
            TripwireError: the loss is not finite; the message names the rows.
        """
        rows: list[TraceRow] = inputs["rows"]
        self.step_pass.before(model, rows)
        if self.probe is not None and self.probe.due(self.state.global_step) and model.training:
            self._measure_window(self.probe, rows)
        loss = self._loss(model, rows)
        self.meter.rows(rows, self.state.global_step)
        count = num_items_in_batch if num_items_in_batch is not None else sum(len(r.slots) for r in rows)
        # gradients are averaged over the processes, and the count is that of all of them
        loss = loss * (self.args.world_size / count)
        if not torch.isfinite(loss):
            self._not_finite(f"the loss is {loss.item()}", rows, gradients=False)
        return (loss, {}) if return_outputs else loss

    def _loss(self, model: Any, rows: Sequence[TraceRow], *, exact: bool = False) -> Tensor:
        """Return the recipe's terms, summed over slots; `exact`: with their whole gradient, despite `grad_window`."""
        if self.config.grad_window is None or exact:
            done = self.passes.student(model, rows, ride=self.rides)
        else:
            done = windowed(self.passes, model, rows, self.config.grad_window, self.rides)
        # a process without a slot takes part all the same
        loss = done.nothing if self.args.world_size > 1 else done.nothing.detach()
        for kind in self.terms.kinds:
            placed = places(rows, kind)
            if placed:
                loss = loss + self._part(kind, placed, done)
            elif kind == "hint" and is_sharded(self.owner):
                loss = loss + self.accompany()
        return self._with_reward(loss, rows, done) if self.recipe.coupling.kind == "additive" else loss

    def _with_reward(self, distilled: Tensor, rows: Sequence[TraceRow], done: StudentPass) -> Tensor:
        """Return (1-w)·L_RL + w·L_D, each summed over its slots; L_D are the recipe's terms, including anchors."""
        placed, step = places(rows, "outcome"), self.state.global_step
        reward, metrics = distilled.new_zeros(()), dict[str, float]()
        if placed:
            hidden = torch.cat([done.hidden[s.key] for _, s in placed])
            reward, metrics = outcome_term([s for _, s in placed], hidden, self.head, self.config.outcome)
        loss, both = additive(reward, distilled, scheduled(self.recipe.coupling.weight, step))
        self.meter.outcome(placed, metrics, both, len(places(rows)))
        return loss

    def _measure_window(self, probe: WindowProbe, rows: Sequence[TraceRow]) -> None:
        """Measure both gradients of this micro-batch, without training on them or logging them."""
        meter, self.meter = self.meter, Meter(self.recipe, self.head, logging_steps=1 << 62)
        for exact in (False, True):
            probe.take(self.owner, self._loss(self.owner, rows, exact=exact))
        self.meter = meter
        probe.done(self.state.global_step)

    @property
    def rides(self) -> bool:
        """Return whether a view with the student's weights reads the hint and may use the student's keys and values."""
        return self.passes.rides and any(
            (self._weights_of(v), label, v.grad) == ("live", "hint", False) for v, label in self._views.values()
        )

    def _not_finite(self, what: str, rows: Sequence[TraceRow], gradients: bool) -> NoReturn:
        """Stop training and name the rows that alone are not finite; name all if none is, or if processes would wait
        for others."""
        bad = [] if self.args.world_size > 1 else [r.key for r in rows if not self._sound(r, gradients)]
        raise TripwireError(
            f"{what} at step {self.state.global_step}; rows {', '.join((bad or [r.key for r in rows])[:5])}",
            hint=f"{kept(Path(self.args.output_dir))}; lower train.learning_rate or use run.dtype=float32",
        )

    def _sound(self, row: TraceRow, gradients: bool) -> bool:
        """Return whether a row alone has a finite loss and finite gradients."""
        self.model.zero_grad()
        with torch.set_grad_enabled(gradients):
            loss = self._loss(self.model, [row])
            if gradients:
                loss.backward()
        found = [p.grad for p in self.model.parameters() if p.grad is not None] if gradients else []
        return bool(torch.isfinite(loss)) and all(bool(torch.isfinite(g).all()) for g in found)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Do the Trainer's step and count the loss."""
        loss = super().training_step(*args, **kwargs)
        self.losses.add(loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """Return the norm before clipping. Raises TripwireError if it is not finite, before the update."""
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and not math.isfinite(norm):
            self._not_finite(f"the gradient norm is {norm}", self._batch, gradients=True)
        return norm

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint. Raises TripwireError if a weight is not finite; the previous checkpoint stays."""
        self.require_finite()
        super()._save_checkpoint(model, trial)
        checkpoints.seal(Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}")

    def require_finite(self) -> None:
        """Raise TripwireError if a trained weight is not finite, naming it."""
        for name, weight in self.owner.named_parameters():
            if weight.requires_grad and not bool(torch.isfinite(local(weight)).all()):
                raise TripwireError(
                    f"{name} is not finite after step {self.state.global_step}; rows of the step: "
                    f"{', '.join([r.key for r in self._batch][:5])}",
                    hint=f"{kept(Path(self.args.output_dir))}; lower train.learning_rate or use run.dtype=float32",
                )

    # -- one kind of slot ----------------------------------------------------------------------------------------------

    def _part(self, kind: str, placed: Sequence[Placed], done: StudentPass) -> Tensor:
        """Return the terms of one kind of slot, summed over slots."""
        slots, step = [s for _, s in placed], self.state.global_step
        hidden = torch.cat([done.hidden[s.key] for s in slots])
        made = self.views_in_step(placed, done, hidden) if kind == "hint" else None
        if made is not None:
            value, metrics = self.terms.in_step(slots, hidden, self.head, made, step)
        else:
            value, metrics = self.terms.stored(kind, slots, hidden, self.head, step)
        self.meter.add(kind, placed, hidden, metrics, made, step)
        return value

    def views_in_step(
        self, placed: Sequence[Placed], done: StudentPass, hidden: Tensor
    ) -> dict[str, InStepView] | None:
        """Make the recipe's views, one pass for each pair of weights and context; None if targets are stored."""
        if not self._views:
            return None
        made: dict[tuple[str, str, bool], InStepView] = {}
        own = InStepView(hidden, self.head.spec, is_students=True)
        out: dict[str, InStepView] = {"student": own}
        for name, (view, label) in self._views.items():
            weights = self._weights_of(view)
            if (weights, label) == ("live", "plain"):
                out[name] = own
                continue
            key = (weights, label, view.grad)
            if key not in made:
                made[key] = self._view(placed, done, key)
            out[name] = made[key]
        return out

    def _view(self, placed: Sequence[Placed], done: StudentPass, view: tuple[str, str, bool]) -> InStepView:
        """Return a view, given its weights, its context and whether it has a gradient."""
        weights, context, grad = view
        if grad:
            # the model itself: DistributedDataParallel counts its own forward passes, one for each backward pass
            found = self.passes.with_gradient(self.owner, placed, context)
            return InStepView(torch.cat([found[s.key] for _, s in placed]), self.head.spec)
        with torch.no_grad(), self._as(weights) as teacher:
            with lockstep(teacher):
                if weights == "live" and self.rides and context == "hint":
                    found = self.passes.riding(teacher, done, placed)
                else:
                    found = self.passes.apart(teacher, placed, context)
            hidden, head = torch.cat([found[s.key] for _, s in placed]), OutputHead(teacher)
            spec = head.spec
            if spec is None or not self.terms.chunked["hint"]:
                # here, while the weights are in place
                return InStepView(hidden, None, head.logprobs(hidden))
            # a following teacher's weights leave their place again; what is detached keeps them, shards need a copy
            keep = torch.clone if is_sharded(teacher) and weights != "live" else torch.detach
            bias = None if spec.bias is None else keep(spec.bias.detach())
            return InStepView(hidden, type(spec)(keep(spec.weight.detach()), bias, spec.scale, spec.softcap))

    def accompany(self) -> Tensor:
        """Return 0 from a process without a hint; under FSDP2 it takes part in the others' passes for their views."""
        done: set[tuple[str, str, bool]] = set()
        nothing = torch.zeros((), device=self.passes.device)
        for view, label in self._views.values():
            key = (self._weights_of(view), label, view.grad)
            if key in done or key[:2] == ("live", "plain"):
                continue
            done.add(key)
            if view.grad:
                nothing = nothing + self.passes.stand_in(self.owner)
                continue
            with torch.no_grad(), self._as(key[0]) as teacher, lockstep(teacher):
                pass
        return nothing

    @contextlib.contextmanager
    def _as(self, weights: str) -> Iterator[Any]:
        """Use a view's weights: a separate model, the student without its adapter, a follower of it, or the student
        itself."""
        if weights == "external":
            yield self._external
            return
        if self._frozen.get(weights) is not None:
            yield self._frozen[weights]
            return
        was_training = self.owner.training
        self.owner.eval()
        try:
            if weights in ("initial", "round_start"):
                with self.owner.disable_adapter():
                    yield self.owner
            elif self.follower is not None and of_kind({weights}, "follows"):
                with self.follower.in_place():
                    yield self.owner
            else:
                yield self.owner
        finally:
            self.owner.train(was_training)

    @torch.no_grad()
    def _reading(self) -> HeldoutReading:
        """Measure the student on held-out findings."""
        training = self.owner.training
        self.owner.eval()
        errors, ends = [], []
        for row in self._heldout:
            done = self.passes.student(self.owner, [row], ride=False)
            for slot in (s for s in row.slots if s.decision >= 0):
                at = [slot.decision, slot.length - 1]
                logprobs = self.head.kept(done.hidden[slot.key][at], slot.sampled[at, None].to(self.args.device))[:, 0]
                errors.append(float(logprobs[0].exp()))
                ends.append(float((-logprobs[1]).exp()))
        self.owner.train(training)
        return HeldoutReading(1.0 - sum(errors) / len(errors), sum(ends) / len(ends))

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        # here, because a checkpoint counts as whole once what is written after this is there
        super()._save_optimizer_and_scheduler(output_dir)
        unlogged.save(self, output_dir)
        if self.follower is not None:
            self.follower.save(output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpoints.check_checkpoint(resume_from_checkpoint, self.is_fsdp_enabled)
        with checkpoints.reading(resume_from_checkpoint):
            if checkpoints.written_under_fsdp(resume_from_checkpoint) and not self.is_fsdp_enabled:
                checkpoints.load_model(resume_from_checkpoint, self.owner)
            else:
                super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with checkpoints.reading(checkpoint):
            if checkpoint is not None and checkpoints.written_under_fsdp(checkpoint) and not self.is_fsdp_enabled:
                checkpoints.load_optimizer(checkpoint, self.owner, self.optimizer, self.lr_scheduler)
            else:
                super()._load_optimizer_and_scheduler(checkpoint)
            if self.follower is not None and checkpoint is not None:
                self.follower.load(Path(checkpoint))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with checkpoints.reading(checkpoint):
            super()._load_rng_state(checkpoint)

    # -- what is measured ----------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the measurements since the last log, and those of the watch.

        Raises:
            TripwireError: a measurement has exceeded a bound; see `tripwires`.
        """
        step = self.state.global_step
        # the Trainer's own means are over what it has done itself since a resume
        if "loss" in logs:
            logs["loss"] = self.losses.mean(step)
        if "train_loss" in logs:
            logs["train_loss"] = self.losses.of_all(step)
        logs |= self.meter.drain()
        if self.probe is not None and self.probe.fresh is not None:
            logs["grad_window_cosine"], self.probe.fresh = self.probe.fresh, None
        if self.watch is not None and self.watch.due(step, last=step == self.state.max_steps):
            logs |= self.watch.read(step, self.owner, self.passes, self.head)
        super().log(logs, start_time)
        if self.tripwires is not None:
            self.tripwires.check(logs, step)
