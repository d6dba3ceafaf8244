"""Other trainers are imported when they are used, and by name if one is missing."""

from __future__ import annotations

import importlib
from typing import Any

from hintdistill.core.errors import ConfigError


def need(module: str, package: str | None = None) -> Any:
    """Return a module of another trainer. Raises ConfigError if its package is not installed, naming it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        raise ConfigError(
            f"this bridge needs {name}: {error}",
            hint=f"pip install {name}; docs/bridges.md says which version was tried",
        ) from None
