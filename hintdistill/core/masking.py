"""Mask keys that were sent to a server, wherever they appear in text.

A server may repeat a key in an error, a page or an answer. Code that sends a key calls `hide` first. From then on
`mask` replaces the key in every text that this process reads from a server, writes or prints.
"""

from __future__ import annotations

import base64
import html
import json
import re
import threading
from typing import Any
from urllib.parse import quote

SHORTEST = 8
"""Shortest key in characters that is masked. A shorter one is a placeholder (`none`, `EMPTY`) that ordinary text may
contain."""
COVER = "[key]"
_LOCK = threading.Lock()
_FORMS: set[str] = set()
_pattern: re.Pattern[str] | None = None


def hide(secret: str) -> None:
    """Mask this key from now on, also in the spellings of JSON, URLs, HTML and basic authentication."""
    global _pattern
    if len(secret) < SHORTEST:
        return
    encoded = base64.b64encode(secret.encode("utf-8", "surrogatepass")).decode()
    forms = {
        secret,
        json.dumps(secret)[1:-1],
        json.dumps(json.dumps(secret))[3:-3],
        quote(secret, safe="", errors="replace"),
        html.escape(secret),
        "".join(f"\\u{ord(c):04x}" for c in secret),
        encoded,
        encoded.rstrip("="),
    }
    with _LOCK:
        _FORMS.update(forms)
        longest_first = sorted(_FORMS, key=len, reverse=True)
        _pattern = re.compile("|".join(map(re.escape, longest_first)), re.IGNORECASE)


def mask(text: str) -> str:
    """Return the text with every hidden key masked, regardless of case."""
    return text if _pattern is None else _pattern.sub(COVER, text)


def mask_all(value: Any) -> Any:
    """Return a JSON value with every hidden key masked in its strings and in the names of its members."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {mask_all(k): mask_all(v) for k, v in value.items()}
    return [mask_all(v) for v in value] if isinstance(value, list) else value
