"""Models other than the student that a training step may read: the initial policy, an external teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hintdistill.config import RunSection, TrainSection
from hintdistill.core.errors import EmptyFunnelError, ModelError
from hintdistill.core.models import load_tokenizer, resolve_model
from hintdistill.core.scores import Target
from hintdistill.engines.transformers import pick_dtype
from hintdistill.engines.weights import load_model
from hintdistill.recipes.teachers import TEACHERS, whose
from hintdistill.rescoring.stored import by_key
from hintdistill.training.rows import TraceRow, watch_rows

MOST_HELD_OUT = 32
"""Maximum number of held-out findings on which a gated teacher is evaluated."""


@dataclass(frozen=True)
class Others:
    """Hold the models that a recipe's views need in addition to the student; a model that is not needed is None."""

    initial: Any = None
    external: Any = None
    heldout: Sequence[TraceRow] = ()

    def arguments(self) -> dict[str, Any]:
        """Return these models as keyword arguments of the trainer."""
        return {"initial": self.initial, "external": self.external, "heldout": self.heldout}

    @classmethod
    def load(
        cls,
        folder: Path,
        run: RunSection,
        config: TrainSection,
        device: torch.device,
        initial: Path | None,
        heldout: Sequence[Target],
    ) -> Others:
        """Load the models that the recipe's in-step views read.

        Raises:
            ModelError: the external teacher cannot be loaded, or its tokenizer is not the student's.
            EmptyFunnelError: the teacher is gated, and there is no held-out finding to evaluate it on.
        """
        recipe = config.effective_recipe
        views = recipe.used_views("hint").values() if config.target_source == "in_step" else ()
        weights = {whose(v.weights, recipe.teacher.update) for v in views}
        gated = sorted(w for w in weights if TEACHERS.get(w).reads_heldout)
        rows = watch_rows(by_key(heldout)[:MOST_HELD_OUT]) if gated else []
        if gated and not any(s.decision >= 0 for r in rows for s in r.slots):
            raise EmptyFunnelError(
                f"a {gated[0]} teacher is refreshed when held-out findings are repaired, but there is no "
                "held-out finding",
                hint="raise traces.holdout, or set train.recipe.teacher.update=periodic",
            )
        first = external = None
        # an adapter's initial policy is the model without it, unless an earlier round moved the model itself
        if "initial" in weights and initial is not None and initial != folder:
            first = load_model(initial, pick_dtype(run.dtype, device, initial), device).requires_grad_(False)
        if "external" in weights:
            external = _external(folder, recipe.teacher.model, run.dtype, device)
        return cls(first, external, rows)


def _external(folder: Path, name: str | None, dtype: str, device: torch.device) -> Any:
    assert name is not None
    teacher = resolve_model(name)
    own, theirs = (load_tokenizer(f).get_vocab() for f in (folder, teacher))
    if own != theirs:
        differ = sorted(set(own.items()) ^ set(theirs.items()), key=lambda x: x[1])
        token, at = differ[0]
        raise ModelError(
            f"the teacher {name} has another tokenizer: {len(differ)} entries differ, for example {token!r} (id {at})",
            hint="token distributions can be compared only if the ids have the same meaning; use a model of "
            "the same family",
        )
    return load_model(teacher, pick_dtype(dtype, device, teacher), device).requires_grad_(False)
