"""Keys of a trace's `extra` that one part of this package writes and another reads."""

from __future__ import annotations

CONTINUATION = "hintdistill.continuation"
"""Key for the recorded messages that a newly sampled last step replaced, and those after it; a critic reads them."""
