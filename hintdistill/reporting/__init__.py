"""6. report: run folder → HTML, JSON, terminal.

`build` turns rows into one plain document; everything else only shows that document. All trace text is escaped: in HTML
by the template engine, in the terminal by `printable`.
"""

from __future__ import annotations

import unicodedata


def printable(text: str) -> str:
    """Text whose control characters (terminal sequences, bidirectional overrides) are shown instead of obeyed."""
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else f"\\u{ord(c):04x}" for c in text)
