"""A report that can leave the house: every number, no text of a trace.

What a person wrote, a tool returned or a model said is blanked: contexts, tokens, quotes, hints, placebos, evidence, messages of
failures and warnings (they quote). Names of traces become hashes; error classes that are no plain name become `other`.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError

BLANK = "▯"


def without_text(document: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the report document without trace text."""
    shared = copy.deepcopy(dict(document))
    for finding in shared["findings"]:
        finding["trace"], finding["error_class"] = _hash(finding["trace"]), _plain(finding["error_class"])
        for name in ("context_above", "context_below", "hint"):
            finding[name] = BLANK
        finding["quote"] = finding["evidence"] = None
        finding["notes"] = [n.partition(" ")[0] for n in finding["notes"]]
        finding["guards"] = [g.partition(":")[0] for g in finding["guards"]]
        for placebo in finding["placebos"]:
            placebo["text"] = BLANK
        for token in finding["tokens"]:
            token["text"] = token["instead"] = BLANK
        if finding["decision"] is not None:
            finding["decision"]["token"] = finding["decision"]["instead"] = BLANK
    for row in shared["unscored"]:
        row["trace"], row["error_class"], row["quote"], row["message"] = (
            _hash(row["trace"]),
            _plain(row["error_class"]),
            None,
            None,
        )
    shared["warnings"] = [f"{len(shared['warnings'])} warnings, left out here"] if shared["warnings"] else []
    for table in (shared["effects"].get("by_class"), shared["funnel"]["critique"].get("by_class")):
        if table is not None:
            for name in [n for n in table if _plain(n) != n]:
                table["other"] = table.pop(name)
    return shared


def _hash(name: str) -> str:
    return "trace-" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]


def _plain(name: str | None) -> str | None:
    return name if name is None or re.fullmatch(r"[a-z_]{1,48}", name) else "other"


def write_shared(run: Path) -> list[Path]:
    """Write report-share.json and report-share.html beside the report of a run; returns their paths.

    Raises:
        ConfigError: the run has no report yet.
    """
    from hintdistill.reporting.html import render_html

    source = run / "report.json"
    if not source.is_file():
        raise ConfigError(f"{run} has no report yet", hint=f"hintdistill report {run}")
    document = without_text(json.loads(source.read_text(encoding="utf-8")))
    texts = {
        "report-share.json": json.dumps(document, indent=1, ensure_ascii=False),
        "report-share.html": render_html(document, document["run"]["config"]["report"]["max_findings"]),
    }
    for name, text in texts.items():
        (run / name).write_text(text, encoding="utf-8")
    return [run / name for name in texts]
