"""List the keys of a trace's `extra` that one part of this package writes and another reads."""

from __future__ import annotations

CONTINUATION = "hintdistill.continuation"
"""Key for the recorded messages that followed the newly sampled last step, including the step that it replaced; a
critic reads them."""
