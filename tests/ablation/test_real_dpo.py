"""DPO on recorded steps, by TRL."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.realmodel.dpo import BETA, Pair, drawn, trainer_of
from hintdistill.config import TrainSection
from hintdistill.core.errors import EmptyFunnelError

PAIRS = [Pair((5, 6, 7), (8, 9, 1), (10, 11, 12, 1)), Pair((5, 6), (13, 1), (14, 1))]


def test_pairs_are_drawn_by_the_salt_alone_and_repeated_in_rounds():
    chosen = drawn(PAIRS, 5, "a")
    assert chosen == drawn(list(reversed(PAIRS)), 5, "a") and chosen[0] == chosen[2] == chosen[4] != chosen[1]
    with pytest.raises(EmptyFunnelError, match="no pair"):
        drawn([], 5, "a")


@pytest.mark.slow  # TRL's import alone takes seven seconds
@pytest.mark.peers
def test_the_loss_is_the_formula_on_the_recorded_ids(tmp_path, student_engine, student_renderer):
    """Rafailov et al. 2023, equation 7, in float64."""
    pytest.importorskip("trl")
    from copy import deepcopy

    model = deepcopy(student_engine.model).float()
    reference = deepcopy(model)
    section = TrainSection(lora={"rank": 4, "alpha": 8}, batch_size=2, learning_rate=1e-2)
    trainer = trainer_of(model, student_renderer.tokenizer, PAIRS, section, 1, tmp_path)
    with torch.no_grad():
        for name, p in trainer.model.named_parameters():
            if "lora_B" in name:
                p.copy_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    said = float(trainer.compute_loss(trainer.model.eval(), batch).detach())

    def summed(of, context, step) -> float:
        ids = torch.tensor([[*context, *step]])
        logits = of(input_ids=ids).logits[0].double().log_softmax(-1)
        return float(sum(logits[len(context) + i - 1, t] for i, t in enumerate(step)))

    merged = trainer.model.merge_and_unload()
    merged.forward = type(reference).forward.__get__(merged)  # as it was before TRL put its own head on
    losses = []
    with torch.no_grad():
        for context, chosen, rejected in PAIRS:
            gain = [summed(merged, context, s) - summed(reference, context, s) for s in (chosen, rejected)]
            losses.append(np.log1p(np.exp(-BETA * (gain[0] - gain[1]))))
    assert abs(said - np.log(2)) > 1e-3 and said == pytest.approx(float(np.mean(losses)), abs=1e-5)
