"""Turn a run folder into HTML, JSON and terminal output (6. report).

`build` turns rows into one plain document; all other modules only display that document. All trace text is escaped: in
HTML by the template engine, in the terminal by `printable`.
"""

from __future__ import annotations

import json
import re
import unicodedata

_PERHAPS = re.compile(r"[^\n\t -~]")


def printable(text: str) -> str:
    """Return the text with control characters (terminal sequences, bidirectional overrides) made visible, so that they
    have no effect.

    They become JSON escapes, so that a JSON document keeps its meaning.
    """
    return _PERHAPS.sub(lambda m: _shown(m.group()), text)


def _shown(char: str) -> str:
    if unicodedata.category(char)[0] != "C":
        return char
    return f"\\u{ord(char):04x}" if ord(char) <= 0xFFFF else json.dumps(char)[1:-1]
