"""Convert text to token ids and back with one tokenizer, independent of templates and messages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from hintdistill.injection.known_texts import SHORT, KnownTexts


class TokenText:
    """Handle a tokenizer's text: ids, the characters that each id covers, and the vocabulary."""

    tokenizer: Any

    @cached_property
    def _known(self) -> KnownTexts:
        """The last texts that were encoded."""
        return KnownTexts(self.tokenizer, self._encoded)

    def _encoded(self, text: str) -> tuple[list[int], list[int]]:
        out = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return out["input_ids"], [start for start, _ in out["offset_mapping"]]

    def encode(self, text: str) -> list[int]:
        """Ids of rendered text; nothing is added at either end."""
        if len(text) < SHORT:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._known.encoded(text)[0]

    def encode_after(self, above: str, text: str) -> list[int]:
        """Return the ids of a text placed after `above`: the ids of both together, without those of `above`.

        If the two would share a token, return the ids of the text alone.
        """
        known, both = self.encode(above), self.encode(above + text)
        return both[len(known) :] if both[: len(known)] == known else self.encode(text)

    def encode_with_starts(self, text: str) -> tuple[list[int], list[int]]:
        """Ids, and the character each token starts at. Those of the last texts are kept, for whoever asks of one again or of
        a text that begins like it."""
        return self._known.encoded(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, including special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def text_of(self, token: int) -> str:
        """Return the text of one id."""
        return self.decode([token])

    def token_spans(self, ids: Sequence[int]) -> tuple[str, list[tuple[int, int]]]:
        """Return the text of `ids` and the character range [start, end) of each token in it.

        Tokens that together form one character (bytes of a multi-byte one) share its range. This works for any id
        sequence, even one that differs from the tokenizer's own split of the text.
        """
        pieces: list[str] = []
        spans: list[tuple[int, int]] = []
        at, prefix, read, pending = 0, 0, 0, 0
        for i in range(len(ids)):
            known, text = self.decode(ids[prefix:read]), self.decode(ids[prefix : i + 1])
            pending += 1
            last = i == len(ids) - 1
            if (len(text) > len(known) and not text.endswith("\ufffd")) or last:
                piece = text[len(known) :]
                spans += [(at, at + len(piece))] * pending
                pieces.append(piece)
                at, prefix, read, pending = at + len(piece), read, i + 1, 0
        return "".join(pieces), spans

    def token_texts(self, ids: Sequence[int]) -> tuple[str, ...]:
        """Return the text of each token; if tokens share a character, the last one carries it."""
        text, spans = self.token_spans(ids)
        return tuple("" if i + 1 < len(spans) and spans[i + 1] == s else text[s[0] : s[1]] for i, s in enumerate(spans))

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Return token text → id for every id that decodes to whole characters; for equal texts, the lowest id."""
        ids = range(len(self.tokenizer))
        texts = self.tokenizer.batch_decode([[i] for i in ids], clean_up_tokenization_spaces=False)
        table: dict[str, int] = {}
        for i, text in zip(ids, texts, strict=True):
            if text and "\ufffd" not in text:
                table.setdefault(text, i)
        return table

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Return the ids of tokens that text alone never produces."""
        return frozenset(self.tokenizer.added_tokens_decoder) | frozenset(self.tokenizer.all_special_ids)
