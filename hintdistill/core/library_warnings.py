"""What other libraries warn of that nobody who uses this toolkit can act on: each is silenced here, with its reason.

Whoever wants to see them asks Python for all warnings (`PYTHONWARNINGS=default`), which goes before these.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Silenced:
    """A warning of another library."""

    says: str
    """A regular expression that its text begins with."""
    category: type[Warning]
    reason: str
    """Why it is of no use to whoever runs this toolkit."""


SILENCED = (
    Silenced(
        "`is_gradient_checkpointing` is deprecated",
        FutureWarning,
        "peft and the Trainer read an attribute of transformers under its old name; the new one does not exist in every release",
    ),
    Silenced(
        "`gradient_checkpointing_enable` is deprecated",
        FutureWarning,
        "the new name does not exist in every release of transformers that this toolkit takes; both do the same",
    ),
    Silenced(
        "`torch.jit.script",
        DeprecationWarning,
        "torch compiles functions of its own when it is imported; nothing here asks for it",
    ),
)


def silence_libraries() -> None:
    """Ignore the warnings of `SILENCED` in this process; filters that the user asked for go before them."""
    for of in SILENCED:
        # a filter that is there already is not added again
        warnings.filterwarnings("ignore", of.says, of.category, append=True)


@contextmanager
def silenced() -> Iterator[None]:
    """Ignore the warnings of `SILENCED` for a while, whatever else was asked for: for calls that a caller of the Python API makes."""
    with warnings.catch_warnings():
        for of in SILENCED:
            warnings.filterwarnings("ignore", of.says, of.category)
        yield
