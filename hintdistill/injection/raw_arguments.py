"""Keep raw argument strings of tool calls in a render: objects stand in for them, and are replaced where they are
printed."""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence


class Placeholders:
    """Hold numbered placeholder objects. Their name is drawn anew each time, so that no text in a trace can imitate
    one."""

    def __init__(self) -> None:
        self._name = f"hd_{secrets.token_hex(8)}_"

    def of(self, number: int) -> dict[str, int]:
        """Return the object that stands in for a string."""
        return {f"{self._name}{number}": 0}

    def _pattern(self, number: str) -> re.Pattern[str]:
        return re.compile(r"\{\s*\"" + self._name + number + r"\"\s*:\s*0\s*\}")

    def probed(self, printed: str | None, words: str) -> str | None:
        """Return a render with text in place of the first object; None if the render does not print that object."""
        if printed is None or not self._pattern("0").search(printed):
            return None
        return self._pattern("0").sub(words, printed, count=1)

    def filled(self, text: str, raws: Sequence[str]) -> tuple[str, int | None]:
        """Return the render with strings in place of their printed objects, and the first string whose object was not
        printed."""
        if not raws:
            return text, None
        printed = set[int]()

        def raw(found: re.Match[str]) -> str:
            number = int(found.group(1))
            if number in printed or number >= len(raws):
                return found.group()
            printed.add(number)
            return raws[number]

        # one walk: a walk for each call would cost the square of the trace's length
        text = self._pattern(r"(\d+)").sub(raw, text)
        return text, next((i for i in range(len(raws)) if i not in printed), None)
