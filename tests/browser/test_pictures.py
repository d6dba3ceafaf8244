"""The pictures of README and docs: taken here, from the page of a real run; kept where HINTDISTILL_PICTURES names a folder."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import PAGES
from PIL import Image

FINDINGS = json.loads((PAGES / "report.json").read_text(encoding="utf-8"))["findings"]
COLOURS = 96
LARGEST = 120_000
"""Bytes of a picture."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the pictures go."""
    return Path(os.environ.get("HINTDISTILL_PICTURES") or tmp_path).resolve()


def kept(path: Path) -> None:
    """Make a picture small by a palette, and check it."""
    Image.open(path).convert("RGB").quantize(COLOURS).save(path, optimize=True)
    assert path.read_bytes().startswith(b"\x89PNG") and 5_000 < path.stat().st_size <= LARGEST, path


def telling() -> dict:
    """The finding that is photographed: a trained one with a quote, which hint and training lowered most."""
    found = [f for f in FINDINGS if f["trained"] and f["decision"] and not all(t["quoted"] for t in f["tokens"])]
    return max(found, key=lambda f: f["decision"]["before"] - max(f["decision"]["hinted"], f["decision"]["after"]))


def test_the_verdict(visit, folder):
    page = visit("report.html", width=1100, height=620)
    page.locator("#verdict").evaluate("e => e.scrollIntoView()")
    page.screenshot(path=folder / "report-verdict.png")
    kept(folder / "report-verdict.png")


def test_the_findings(visit, folder):
    page = visit("report.html", f"#f-{telling()['key']}", width=1100, height=760)
    page.locator(".detail .trace").wait_for()
    page.locator("#app").evaluate("e => e.scrollIntoView()")
    page.screenshot(path=folder / "report-findings.png")
    kept(folder / "report-findings.png")


def test_one_step(visit, folder):
    page = visit("report.html", f"#f-{telling()['key']}", width=1100, height=900)
    page.locator(".detail .here").wait_for()
    page.locator(".trace").evaluate("e => { e.style.maxHeight = 'none'; }")
    page.locator(".detail .here").screenshot(path=folder / "report-step.png")
    kept(folder / "report-step.png")
