"""End a script of benchmarks with 0, or with the message and the exit code of a declared error."""

from __future__ import annotations

import sys
from collections.abc import Callable

from hintdistill.core.errors import HintdistillError


def exit_code(work: Callable[[], object]) -> int:
    """Do the work; the exit code. A declared error is printed and not raised."""
    try:
        work()
    except HintdistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
