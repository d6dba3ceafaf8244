"""6. report: run folder → HTML, JSON, terminal.

`build` turns rows into one plain document; everything else only shows that document. All trace text is escaped: in HTML
by the template engine, in the terminal by `printable`.
"""

from __future__ import annotations

import json
import re
import unicodedata

_PERHAPS = re.compile(r"[^\n\t -~]")


def printable(text: str) -> str:
    """Text whose control characters (terminal sequences, bidirectional overrides) are shown instead of obeyed.

    They become JSON escapes, so that a JSON document stays the same document.
    """
    return _PERHAPS.sub(lambda m: _shown(m.group()), text)


def _shown(char: str) -> str:
    if unicodedata.category(char)[0] != "C":
        return char
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else json.dumps(char)[1:-1]
