"""Apply the loss span of a term: select the tokens of a slot that carry loss, and normalise their weights.

`span_mask` takes torch tensors and numpy arrays, because training rows are weighted before any tensor exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hintdistill.recipes.schema import Term


def span_mask(spec: Term, facts: Mapping[str, Any], ones: Any) -> Any:
    """Return the weight of each token by the loss span only [N], before any normalisation.

    Args:
        facts: [N] each: `in_quote` for the spans `quote` and `quote_weighted`, `since_error` for `suffix`, `in_action` (0 on a
            step's reasoning, 1 on the rest) for `action`, and `certain` (1 where the initial policy gave the sampled token at
            least `min_probability`) for what is held.
        ones: ones [N] in the type and precision of the result: the weights of a whole step.

    A twin's quoted tokens within the span are held whatever their probability, because they were checked. For an anchor
    or a hold trace the whole step counts as the quote, and uncertain tokens have weight zero.

    Raises KeyError if a fact that the span needs is missing.
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
    """Return the weight of each token by the loss span, regardless of the initial policy's probability; arguments as in
    `span_mask`."""
    if spec.span == "step":
        return ones
    if spec.span == "action":
        return ones * facts["in_action"]
    if spec.span == "suffix":
        return ones * (facts["since_error"] >= 0)
    quoted = ones * facts["in_quote"]
    return quoted if spec.span == "quote" else 1.0 + (spec.quote_weight - 1.0) * quoted


def slot_scale(how: str, own: float, slots: int, total: float) -> float:
    """Return the factor on a slot's weights that makes a term's total equal to the number of its slots.

    Under `per_row` each slot sums to one; under the other normalisers every token has the same weight, and the slots
    sum to one on average. A slot with zero weight stays at zero.

    Args:
        own: sum of the slot's weights.
        slots, total: number of the term's slots, and the sum of all their weights.
    """
    return 1.0 / max(own, 1e-12) if how == "per_row" else slots / max(total, 1e-12)
