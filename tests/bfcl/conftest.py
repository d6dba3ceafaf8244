"""BFCL's data, where bfcl-eval is installed: without it `make test-bfcl` fails by name, and every other run skips these tests.

The tests need neither torch nor the conftest of the other tests: `--confcutdir tests/bfcl`, in an environment of a few packages.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "bfcl"
sys.path.insert(0, str(EXAMPLE))

from bfcl_data import data_folder  # noqa: E402

from hintdistill.core.errors import ConfigError  # noqa: E402


@pytest.fixture(autouse=True, scope="session")
def package() -> None:
    """Skip, or fail where the package was promised."""
    try:
        data_folder()
    except ConfigError as error:
        if os.environ.get("HINTDISTILL_BFCL"):
            raise
        pytest.skip(str(error))
