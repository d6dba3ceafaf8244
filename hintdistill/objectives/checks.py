"""Check shapes, with errors that name the wrong tensor. Legend of the package: N tokens of a batch (rows one after
another), R rows, K kept entries, V vocabulary, L layers, D width. Log-probabilities and advantages are in nats."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def same_shape(**tensors: Tensor | None) -> None:
    """Raise ValueError, naming two tensors, if their shapes differ; None is skipped."""
    given = {name: tuple(t.shape) for name, t in tensors.items() if t is not None}
    first, *others = given.items()
    for name, shape in others:
        if shape != first[1]:
            raise ValueError(f"{name} has shape {list(shape)}, {first[0]} has {list(first[1])}")


def rows_alike(**tensors: Tensor) -> None:
    """Raise ValueError, naming two tensors, if they differ in more than their last axis."""
    first, *others = tensors.items()
    for name, tensor in others:
        if tensor.shape[:-1] != first[1].shape[:-1]:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, {first[0]} has {list(first[1].shape)}")


def rows_fill(n: int, lengths: Sequence[int]) -> None:
    """Raise ValueError if the row lengths do not sum to `n` tokens."""
    if sum(lengths) != n:
        raise ValueError(f"rows of {sum(lengths)} tokens in all, values of {n}")


def dimensions(n: int, **tensors: Tensor) -> None:
    """Raise ValueError, naming the tensor, if it does not have `n` axes."""
    for name, tensor in tensors.items():
        if tensor.ndim != n:
            raise ValueError(f"{name} must have {n} axes, has shape {list(tensor.shape)}")


def between(low: float, high: float, **numbers: float) -> None:
    """Raise ValueError, naming the number, if it is outside [low, high]."""
    for name, number in numbers.items():
        if not low <= number <= high:
            raise ValueError(f"{name} must lie between {low:g} and {high:g}, not {number:g}")
