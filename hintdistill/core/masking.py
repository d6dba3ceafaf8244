"""Keys that were sent to a server, and text in which they are covered.

A server may repeat the key that it was sent: in an error, in a page, in an answer. Whoever sends a key hides it first; from
then on `mask` covers it in every text that this process reads from a server, writes or prints.
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
"""Characters from which a key is covered: a shorter one is a placeholder (`none`, `EMPTY`), which ordinary text may contain."""
COVER = "[key]"
_LOCK = threading.Lock()
_FORMS: set[str] = set()
_pattern: re.Pattern[str] | None = None


def hide(secret: str) -> None:
    """Cover this key from now on, also if it is spelled for JSON, a URL, HTML or basic authentication."""
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
    """Return the text with every hidden key covered; case does not matter."""
    return text if _pattern is None else _pattern.sub(COVER, text)


def mask_all(value: Any) -> Any:
    """Return a JSON value with every hidden key covered in its strings and its names."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {mask_all(k): mask_all(v) for k, v in value.items()}
    return [mask_all(v) for v in value] if isinstance(value, list) else value
