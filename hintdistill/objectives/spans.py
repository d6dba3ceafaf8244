"""The loss span of a term: which tokens of a slot carry loss, and how their weights are normalised.

`span_mask` takes torch tensors and numpy arrays alike: the training rows are weighted before any tensor is needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hintdistill.recipes.schema import Term


def span_mask(spec: Term, facts: Mapping[str, Any], ones: Any) -> Any:
    """Weight of each token by the loss span alone [N], before any normalisation.

    Args:
        facts: [N] each: `in_quote` for the spans `quote` and `quote_weighted`, `since_error` for `suffix`, `in_action` (0 on a
            step's reasoning, 1 on the rest) for `action`, and `certain` (1 where the initial policy gave the sampled token at
            least `min_probability`) for what is held.
        ones: [N], which gives the kind and precision of the result; the weights of a whole step.

    A twin's quoted tokens are held whatever their probability, because they were checked, as far as they are of the span; of an
    anchor or a hold trace the whole step is the quote, and uncertain tokens carry nothing.

    Raises KeyError for a fact that the span reads and that is not given.
    """
    mask = plain_span(spec, facts, ones)
    if spec.rows == "hint" or not spec.min_probability:
        return mask
    certain = ones * facts["certain"]
    if spec.rows != "twin":
        return mask * certain
    quoted = ones * facts["in_quote"]
    return mask * (certain + quoted - certain * quoted)


def plain_span(spec: Term, facts: Mapping[str, Any], ones: Any) -> Any:
    """Weight of each token by the loss span, whatever the initial policy gave it; arguments as in `span_mask`."""
    if spec.span == "step":
        return ones
    if spec.span == "action":
        return ones * facts["in_action"]
    if spec.span == "suffix":
        return ones * (facts["since_error"] >= 0)
    quoted = ones * facts["in_quote"]
    return quoted if spec.span == "quote" else 1.0 + (spec.quote_weight - 1.0) * quoted


def slot_scale(how: str, own: float, slots: int, total: float) -> float:
    """Return what a slot's weights are multiplied by, so that a term's total is the number of its slots.

    Under `per_row` each slot sums to one; under the other normalisers every token weighs the same and the slots sum to one on
    average. A slot without weight stays so.

    Args:
        own: sum of the slot's weights.
        slots, total: number of the term's slots, and the sum of all their weights.
    """
    return 1.0 / max(own, 1e-12) if how == "per_row" else slots / max(total, 1e-12)
