"""Texts that were encoded a moment ago, of which the next one is mostly a continuation.

A conversation is rendered again for every hint, placebo and turn, and its renders begin alike. A tokenizer finds its added tokens
first, from left to right and the longest at each place, and encodes what lies between two of them by itself. So the ids up to
an added token are those of every text that agrees up to it and for as many characters more as the longest added token has; only
the rest is encoded, beginning with that token. Tokens that are looked for in normalised text give no such place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hintdistill.injection.opening import common

SHORT = 256
"""Characters below which a text is encoded as it is, and not kept."""
TEXTS = 32
TOKENS = 1 << 18
"""Texts and tokens that are kept at most; the last text is kept whatever its length."""
Encode = Callable[[str], tuple[list[int], list[int]]]
"""Ids of a text, and the character that each begins at."""


@dataclass(frozen=True, eq=False)
class _Known:
    """A text and its tokens."""

    text: str
    ids: np.ndarray
    """int64 [N]"""
    starts: np.ndarray
    """int64 [N]"""


class KnownTexts:
    """The last texts of one tokenizer, the most recent one first."""

    def __init__(self, tokenizer: Any, encode: Encode) -> None:
        self._tokenizer, self._encode = tokenizer, encode
        self._texts: tuple[_Known, ...] = ()

    def encoded(self, text: str) -> tuple[list[int], list[int]]:
        """Return the ids of a text and the character that each begins at, as the tokenizer gives them for the whole text."""
        if len(text) < SHORT:
            return self._encode(text)
        texts = self._texts
        same = next((known for known in texts if known.text == text), None)
        if same is None:
            same = self._continued(text, texts) or _known(text, *self._encode(text))
        self._keep(same, texts)
        return same.ids.tolist(), same.starts.tolist()

    def _continued(self, text: str, texts: tuple[_Known, ...]) -> _Known | None:
        """Return a text's tokens by those of the known one that agrees with it longest; None if there is nothing to gain."""
        shared, known = max(((common(k.text, text), k) for k in texts), key=lambda pair: pair[0], default=(0, None))
        if known is None or shared < SHORT or not self._contents:
            return None
        n = self._cut(known, shared - self._longest)
        if n is None:
            return None
        at = int(known.starts[n])
        ids, starts = self._encode(text[at:])
        if ids[:1] != [int(known.ids[n])] or starts[0] != 0:
            return None
        return _known(text, [*known.ids[:n].tolist(), *ids], [*known.starts[:n].tolist(), *(at + s for s in starts)])

    def _cut(self, known: _Known, limit: int) -> int | None:
        """Return the number of the last added token that begins at or before a character; None if none does."""
        for n in range(int(np.searchsorted(known.starts, limit, side="right")) - 1, 0, -1):
            content = self._contents.get(int(known.ids[n]))
            if content is not None and known.text.startswith(content, int(known.starts[n])):
                return n
        return None

    @cached_property
    def _contents(self) -> dict[int, str]:
        """Added tokens by id that are looked for in the text as it is; empty if they are not to be told from text."""
        backend = self._tokenizer.backend_tokenizer
        if backend.encode_special_tokens or backend.truncation or backend.padding:
            return {}
        added = self._tokenizer.added_tokens_decoder
        return {i: t.content for i, t in added.items() if t.content and not t.normalized and not t.single_word}

    @cached_property
    def _longest(self) -> int:
        """Characters of the longest added token."""
        return max(len(t.content) for t in self._tokenizer.added_tokens_decoder.values())

    def _keep(self, known: _Known, texts: tuple[_Known, ...]) -> None:
        """Put a text first, and drop the oldest ones beyond the bounds."""
        kept, tokens = [known], len(known.ids)
        for other in texts:
            tokens += len(other.ids)
            if len(kept) == TEXTS or tokens > TOKENS:
                break
            if other is not known:
                kept.append(other)
        # put in place at once, so that another thread sees the old texts or the new ones
        self._texts = tuple(kept)


def _known(text: str, ids: list[int], starts: list[int]) -> _Known:
    return _Known(text, np.array(ids, np.int64), np.array(starts, np.int64))
