"""A page of the report taken apart: its islands of data unpacked, its own script and style apart from what it shows."""

from __future__ import annotations

import base64
import gzip
import html
import json
import re
from dataclasses import dataclass
from typing import Any

_ISLAND = re.compile(r'<script type="application/octet-stream" id="island-(\w+)">([A-Za-z0-9+/=]*)</script>')
_STYLE = re.compile(r"<style>(.*?)</style>", re.DOTALL)
_SCRIPT = re.compile(r"<script>(.*?)</script>", re.DOTALL)


@dataclass(frozen=True)
class Page:
    """The parts of a page."""

    islands: dict[str, Any]
    style: str
    script: str
    static: str
    """The HTML without islands, style and script."""
    policy: str

    @property
    def text(self) -> str:
        """Everything that the page holds of its document: its HTML, and its islands as JSON."""
        return self.static + json.dumps(self.islands, ensure_ascii=False)

    @property
    def details(self) -> list[dict[str, Any]]:
        """The details of all findings, in the order of the index."""
        return [self.islands[f"d{f['at'][0]}"][f["at"][1]] for f in self.islands["index"]["findings"]]


def taken_apart(page: str) -> Page:
    """Take a page apart. Fails where a script or style is of another kind than those the page is made of."""
    islands = {
        name: json.loads(gzip.decompress(base64.b64decode(text, validate=True))) for name, text in _ISLAND.findall(page)
    }
    rest = _ISLAND.sub("", page)
    (style,), (script,) = _STYLE.findall(rest), _SCRIPT.findall(rest)
    static = _SCRIPT.sub("", _STYLE.sub("", rest))
    assert "<script" not in static and "<style" not in static
    found = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"', static)
    assert found
    return Page(islands, style, script, static, html.unescape(found.group(1)))
