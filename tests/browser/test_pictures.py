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


@pytest.mark.parametrize(
    ("name", "height", "ready", "prepare", "of"),
    [
        ("findings", 760, ".detail .trace", ("#app", "e => e.scrollIntoView()"), None),
        ("step", 900, ".detail .here", (".trace", "e => { e.style.maxHeight = 'none'; }"), ".detail .here"),
    ],
)
def test_one_finding(visit, folder, name, height, ready, prepare, of):
    page = visit("report.html", f"#f-{telling()['key']}", width=1100, height=height)
    page.locator(ready).wait_for()
    page.locator(prepare[0]).evaluate(prepare[1])
    (page if of is None else page.locator(of)).screenshot(path=folder / f"report-{name}.png")
    kept(folder / f"report-{name}.png")
