"""Make a report that can be shared: it has the numbers, but no trace text, no name chosen by a user, and no
configuration.

An allow-list (`schema.SHARED`) decides what is shared: keys that it does not name are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError
from hintdistill.core.storage import write_atomic
from hintdistill.reporting.allow import Names
from hintdistill.reporting.schema import SHARED


def shareable(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the shareable part of a report document, as a new document that can be rendered like any report."""
    shared: dict[str, Any] = SHARED(dict(document), Names())
    return shared


def write_shared(run: Path) -> list[Path]:
    """Write report-share.json and report-share.html next to the report of a run, and return their paths.

    Raises:
        ConfigError: the run has no report yet, or is a loop, whose rounds have reports.
    """
    from hintdistill.reporting.html import render_html

    source = run / "report.json"
    if not source.is_file():
        raise ConfigError(f"{run} has no report yet", hint=f"write it with hintdistill report {run}")
    document = json.loads(source.read_text(encoding="utf-8"))
    if "rounds" in document:
        raise ConfigError(
            f"{run} is a loop; each of its rounds has a report to share",
            hint=f"share one with hintdistill report {run / 'rounds' / '01' / 'run'} --share",
        )
    shared = shareable(document)
    texts = {
        "report-share.json": json.dumps(shared, indent=1, ensure_ascii=False, allow_nan=False),
        "report-share.html": render_html(shared, document["run"]["config"]["report"]["max_findings"]),
    }
    for name, text in texts.items():
        write_atomic(run / name, text)
    return [run / name for name in texts]
