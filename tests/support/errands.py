"""The module of examples/smollm2/errands.py, which is no package."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from types import ModuleType

from conftest import ROOT

SCRIPT = ROOT / "examples" / "smollm2" / "errands.py"


@cache
def errands() -> ModuleType:
    """Load it once."""
    spec = importlib.util.spec_from_file_location("smollm2_errands", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["smollm2_errands"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
