"""Import other trainers when they are used, with an error that names a missing one."""

from __future__ import annotations

import importlib
from typing import Any

from hintdistill.core.errors import ConfigError


def need(module: str, package: str | None = None) -> Any:
    """Return a module of another trainer. Raises ConfigError, naming the package, if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module.partition(".")[0]
        raise ConfigError(
            f"this bridge needs {name}: {error}",
            hint=f"pip install {name}; docs/bridges.md lists the tested version",
        ) from None
