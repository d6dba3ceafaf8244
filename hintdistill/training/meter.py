"""Measurements on the trained rows; docs/metrics.md describes every number.

The terms' own metrics are collected in every step. Values that need the output head again are measured only on the
micro-batches of a logging step, without gradient and a few positions at a time. With several processes, sums are added
up before they are divided.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from hintdistill.core.types import HELD
from hintdistill.objectives import fkl, gather_with_tail
from hintdistill.recipes import Recipe
from hintdistill.training.losses import InStepView, OutputHead
from hintdistill.training.passes import Placed
from hintdistill.training.rows import TraceRow
from hintdistill.training.slots import Slot
from hintdistill.training.views import sampled, supports, wide
from hintdistill.training.watch import POSITIONS, entropy

OLD_NAMES = {"hint": "divergence", "anchor": "anchor_kl", "hold": "hold_kl", "twin": "twin_kl"}
"""Kind of row → the metric's name for the loss of its first term, averaged over the tokens with loss."""

OF_TOKENS = frozenset({"reward/ratio_mean", "reward/ratio_clipped", "reward/behaviour_gap"})
"""Metrics of the outcome reward that are means over tokens; the share of tokens without an advantage is not one of
them."""
OF_STEPS = frozenset({"reward/advantage_abs"})


class Meter:
    """Hold the sums since the last log."""

    def __init__(self, recipe: Recipe, head: OutputHead, logging_steps: int, from_initial: bool = True) -> None:
        """Start with empty sums; `from_initial`: whether the stored plain views are the initial policy's."""
        self.recipe, self.head, self.logging_steps, self.from_initial = recipe, head, logging_steps, from_initial
        self._first = {k: next((n for n, t in recipe.terms.items() if t.rows == k), None) for k in OLD_NAMES}
        # name → [sum, count]
        self._sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def reads(self, step: int) -> bool:
        """Return whether the optimiser step after `step` finished ones is a logging step."""
        return (step + 1) % self.logging_steps == 0

    def rows(self, rows: Sequence[TraceRow], step: int) -> None:
        """Count the tokens of a micro-batch, and those with loss."""
        if self.reads(step):
            carried = sum(int(_loss_tokens(r).sum()) for r in rows)
            # what stands in for a row between processes is none
            self._count("loss_tokens", carried, sum(len(r.ids) for r in rows if r.slots))

    def add(
        self,
        kind: str,
        placed: Sequence[Placed],
        hidden: Tensor,
        metrics: Mapping[str, float],
        views: Mapping[str, InStepView] | None,
        step: int,
    ) -> None:
        """Add the slots of one kind in one micro-batch.

        Args:
            hidden: the student's hidden states at the scored positions, [N, H].
            metrics: the terms' own metrics, as means over these slots.
            views: the views made in the step; None if targets are stored.
        """
        for name, value in metrics.items():
            if kind in OLD_NAMES and name == f"{self._first[kind]}/mean":
                self._count(OLD_NAMES[kind], value * len(placed), len(placed))
            elif kind not in HELD:
                self._count(name, value * len(placed), len(placed))
        if kind == "hint" and self.reads(step):
            with torch.no_grad():
                self._read([s for _, s in placed], hidden.detach(), views)

    def outcome(
        self, placed: Sequence[Placed], metrics: Mapping[str, float], both: Mapping[str, float], slots: int
    ) -> None:
        """Add the outcome reward of one micro-batch.

        Args:
            metrics: the term's metrics of the outcome slots `placed`.
            both: the losses of reward and terms, summed over the micro-batch's `slots` slots of any kind.
        """
        for name, value in both.items():
            self._count(name, value, slots)
        tokens = sum(s.length for _, s in placed)
        for name in OF_TOKENS & metrics.keys():
            self._count(name, metrics[name] * tokens, tokens)
        for name in OF_STEPS & metrics.keys():
            self._count(name, metrics[name] * len(placed), len(placed))

    def held(self) -> dict[str, list[float]]:
        """Return the counts since the last `drain`, in this process: name → sum and count."""
        return {name: list(sums) for name, sums in self._sums.items()}

    def take(self, sums: Mapping[str, Sequence[float]]) -> None:
        """Add the counts of another meter."""
        for name, (value, count) in sums.items():
            self._count(name, value, count)

    def drain(self) -> dict[str, float]:
        """Return the means since the last call over all processes, which must all call it."""
        sums, self._sums = dict(self._sums), defaultdict(lambda: [0.0, 0.0])
        each = [sums]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            each = [{} for _ in range(torch.distributed.get_world_size())]
            torch.distributed.all_gather_object(each, sums)
        names = dict.fromkeys(n for s in each for n in s)
        totals = {n: [sum(s[n][i] for s in each if n in s) for i in (0, 1)] for n in names}
        return {n: value / count for n, (value, count) in totals.items() if count}

    def _count(self, name: str, value: float, count: float) -> None:
        mine = self._sums[name]
        mine[0] += value
        mine[1] += count

    # -- hint slots, on a logging step -----------------------------------------------------------------------------------

    def _read(self, slots: Sequence[Slot], hidden: Tensor, views: Mapping[str, InStepView] | None) -> None:
        quoted = torch.cat([s.facts()["in_quote"] for s in slots]) > 0
        carried = torch.cat([_carried(s) for s in slots])
        starts = torch.tensor([0, *(s.length for s in slots)]).cumsum(0)
        decided = [(int(a) + s.decision, s) for a, s in zip(starts, slots, strict=False) if s.decision >= 0]
        wanted = quoted | carried
        wanted[[at for at, _ in decided]] = True
        index = wanted.nonzero()[:, 0]
        found = self._positions(slots, hidden, index, views)
        for who in ("student", "teacher", "initial"):
            if who in found and (who != "initial" or self.from_initial):
                self._mean(f"span_logprob/{who}", found[who][quoted[index]])
        self._mean("entropy/span", found["entropy"][quoted[index]])
        self._mean("target_kl", found["kl"][carried[index]] if "kl" in found else found["entropy"][:0])
        place = {int(at): n for n, at in enumerate(index)}
        for at, slot in decided:
            n = place[at]
            names = ("", *([f"/{slot.error_class}"] if slot.error_class else []))
            for name in names:
                self._count(f"decision_probability{name}", float(found["student"][n].exp()), 1)
            if "teacher" in found:
                self._count("hint_effect", float(found["teacher"][n] - found["plain"][n]), 1)
        self._legal(decided, hidden)

    def _mean(self, name: str, values: Tensor) -> None:
        self._count(name, float(values.double().sum()), len(values))

    def _positions(
        self, slots: Sequence[Slot], hidden: Tensor, index: Tensor, views: Mapping[str, InStepView] | None
    ) -> dict[str, Tensor]:
        """Return, at the positions of `index` [M] and on the CPU, each view's log-probability of the sampled token, the
        entropy and the KL."""
        device = hidden.device
        said, ids = sampled(slots, device), supports(slots, device)
        target = wide([s.target for s in slots], -torch.inf).to(device)
        columns = torch.cat([s.columns for s in slots])
        own = torch.cat([s.plain.gather(-1, s.columns[:, None])[:, 0] for s in slots])[index]
        theirs = {} if views is None else {n: v for n, v in views.items() if n in ("teacher", "plain")}
        out: defaultdict[str, list[Tensor]] = defaultdict(list)
        for at in index.to(device).split(POSITIONS):
            logprobs = self.head.logprobs(hidden[at])

            def of(x: Tensor, at: Tensor = at) -> Tensor:
                return x.gather(-1, said[at][:, None])[:, 0]

            out["student"].append(of(logprobs))
            out["entropy"].append(entropy(logprobs))
            if views is None:
                out["kl"].append(fkl(gather_with_tail(logprobs, ids[at]), target[at]))
                out["teacher"].append(target[at].gather(-1, columns.to(device)[at][:, None])[:, 0])
            for name, view in theirs.items():
                made = logprobs if view.is_students else view.at(at)
                out[name].append(of(made))
                if name == "teacher":
                    out["kl"].append(fkl(logprobs, made))
        found = {name: torch.cat(parts).float().cpu() for name, parts in out.items()} | {"initial": own}
        if "plain" not in found:
            stored = views is None or self.recipe.teacher.update == "initial"
            # a teacher that follows the student says without the hint about what the student says
            found["plain"] = own if stored else found["student"]
        return found

    def _legal(self, decided: Sequence[tuple[int, Slot]], hidden: Tensor) -> None:
        """Return the student's probability of the continuations that the tool schemas allow at decision tokens."""
        some = [(at, s) for at, s in decided if s.legal_ids is not None]
        for n in range(0, len(some), POSITIONS):
            part = some[n : n + POSITIONS]
            probabilities = self.head.logprobs(hidden[torch.tensor([at for at, _ in part], device=hidden.device)]).exp()
            for row, (_, slot) in zip(probabilities, part, strict=True):
                assert slot.legal_ids is not None
                mass = float(row[slot.legal_ids.to(row.device)].sum())
                for name in ("", *([f"/{slot.error_class}"] if slot.error_class else [])):
                    self._count(f"legal_mass{name}", mass, 1)


def _loss_tokens(row: TraceRow) -> Tensor:
    """Return bool [L]: which tokens of a row have loss in at least one slot."""
    carried = torch.zeros(len(row.ids), dtype=torch.bool)
    for slot in row.slots:
        carried[slot.start : slot.start + slot.length] |= _carried(slot)
    return carried


def _carried(slot: Slot) -> Tensor:
    """Return bool [T]: which tokens of a slot have loss under any term."""
    carried = torch.zeros(slot.length, dtype=torch.bool)
    for weights in slot.weights.values():
        carried |= weights != 0
    return carried
