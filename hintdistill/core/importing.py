"""Import objects of the user's own code, named in a config as `path/to/file.py:Name` or `package.module:Name`."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError
from hintdistill.core.trust import require_trusted


def load_object(spec: str, key: str, what: str) -> Any:
    """Return the object that `spec` names.

    Args:
        key: the config key that holds `spec`, for the error.
        what: the expected kind of object, for the error.

    Raises:
        ConfigError: the module or the name does not exist.
        UntrustedError: the settings in use are from elsewhere.
    """
    require_trusted(f"load the {what} {spec}")
    where, sep, name = spec.rpartition(":")
    if not sep:
        raise ConfigError(f"{key}={spec!r} is not of the form path/to/file.py:Name")
    try:
        return getattr(_module_of(where), name)
    except FileNotFoundError:
        raise ConfigError(f"no {what} file at {where}") from None
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot load the {what} {spec}: {error}") from error


def _module_of(where: str) -> Any:
    if not where.endswith(".py"):
        return importlib.import_module(where)
    path = Path(where).resolve()
    if not path.is_file():
        raise FileNotFoundError(path)
    name = f"hintdistill_file_{path.stem}"
    if name in sys.modules and getattr(sys.modules[name], "__file__", None) == str(path):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while it is being executed
    spec.loader.exec_module(module)
    return module
