"""Weight shape `stairs`: 0, `middle` or 1, by two thresholds of the score."""

import torch

from hintdistill.core.parts import SHAPES, Shape, free, share


def stairs(x, low=0.0, high=1.0, middle=0.5):
    return torch.where(x > high, 1.0, torch.where(x > low, middle, 0.0)).to(x)


SHAPES.register(Shape("stairs", (*free("low", "high"), share("middle")), stairs, reads_batch=False))
