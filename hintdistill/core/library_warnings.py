"""Silence warnings of other libraries that users of this toolkit cannot act on, each with its reason.

To see them, ask Python for all warnings (`PYTHONWARNINGS=default`); this takes precedence.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Silenced:
    """Describe a warning of another library that is silenced."""

    says: str
    """Regular expression that matches the beginning of the warning's text."""
    category: type[Warning]
    reason: str
    """Reason why users of this toolkit cannot act on it."""


SILENCED = (
    Silenced(
        "`is_gradient_checkpointing` is deprecated",
        FutureWarning,
        "peft and the Trainer use the old name of an attribute of transformers; some releases do not have the new name",
    ),
    Silenced(
        "`gradient_checkpointing_enable` is deprecated",
        FutureWarning,
        "some supported releases of transformers do not have the new name; both do the same",
    ),
    Silenced(
        "`torch.jit.script",
        DeprecationWarning,
        "torch compiles some of its own functions on import; this toolkit does not ask for it",
    ),
)


def silence_libraries() -> None:
    """Ignore the warnings of `SILENCED` in this process. The user's own filters take precedence."""
    for of in SILENCED:
        # a filter that is there already is not added again
        warnings.filterwarnings("ignore", of.says, of.category, append=True)


@contextmanager
def silenced() -> Iterator[None]:
    """Ignore the warnings of `SILENCED` inside the block, whatever other filters are set; for calls through the Python
    API."""
    with warnings.catch_warnings():
        for of in SILENCED:
            warnings.filterwarnings("ignore", of.says, of.category)
        yield
