"""The loss span of a term: which tokens of a slot carry loss, and how their weights are normalised.

Both functions take torch tensors and numpy arrays alike: the training rows are weighted before any tensor is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hintdistill.recipes.schema import Term


def span_mask(spec: Term, facts: Mapping[str, Any], ones: Any) -> Any:
    """Weight of each token by the loss span alone [N], before any normalisation.

    Args:
        facts: [N] each: `in_quote` for the spans `quote` and `quote_weighted`, `since_error` for `suffix`, and `certain` (1
            where the initial policy gave the sampled token at least `min_probability`) for anchors.
        ones: [N], which gives the kind and precision of the result; the weights of a whole step.

    Raises KeyError for a fact that the span reads and that is not given.
    """
    if spec.rows == "anchor":
        return ones * facts["certain"] if spec.min_probability else ones
    if spec.span == "step":
        return ones
    if spec.span == "suffix":
        return ones * (facts["since_error"] >= 0)
    quoted = ones * facts["in_quote"]
    return quoted if spec.span == "quote" else 1.0 + (spec.quote_weight - 1.0) * quoted


def normalised(weights: Sequence[Any], how: str, share: float = 1.0) -> list[Any]:
    """Weights of a term's slots, [T] each, scaled so that the term's total is the number of its slots times `share`.

    Under `per_row` each slot sums to `share`; under the other normalisers every token weighs the same and the slots sum to
    `share` on average. Slots without weight stay so.
    """
    sums = [float(w.sum()) for w in weights]
    if how == "per_row":
        return [w * (share / max(s, 1e-12)) for w, s in zip(weights, sums, strict=True)]
    return [w * (len(weights) / max(sum(sums), 1e-12) * share) for w in weights]
