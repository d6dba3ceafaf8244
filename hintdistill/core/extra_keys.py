"""Keys of a trace's `extra` that one part of this package writes and another reads."""

from __future__ import annotations

CONTINUATION = "hintdistill.continuation"
"""Of a trace whose last step was sampled anew: the messages that were recorded in its place and after it, for a critic."""
