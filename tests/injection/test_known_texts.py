"""A text that begins like one that was encoded before has the ids that the tokenizer gives for the whole of it."""

from __future__ import annotations

import random

import pytest

from hintdistill.injection.known_texts import SHORT, TEXTS, KnownTexts
from hintdistill.injection.opening import common
from hintdistill.injection.rendering import Renderer

PIECES = (
    "<|im_end|>\n",
    "<|im_start|>",
    "user\n",
    " a",
    "é 天",
    "  \n",
    "<|im_",
    "end|>",
    "tool_call",
    "{'x': 1}",
    "<",
    "|>",
)


class Counts:
    """The tokenizer's own encoding, and how many characters it was given."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer, self.read = renderer, 0

    def __call__(self, text: str) -> tuple[list[int], list[int]]:
        self.read += len(text)
        return self.renderer._encoded(text)


@pytest.fixture
def renderer(own_template) -> Renderer:
    return own_template("strict_turns")


def test_variants_of_a_text_have_the_tokenizers_own_ids(renderer):
    rng = random.Random(0)
    counts = Counts(renderer)
    known = KnownTexts(renderer.tokenizer, counts)
    talk, asked = "".join(rng.choices(PIECES, k=300)), 0
    for _ in range(150):
        # cut anywhere, within an added token too, and continued otherwise
        talk = talk[: rng.randint(len(talk) * 3 // 4, len(talk))] + "".join(rng.choices(PIECES, k=rng.randint(1, 60)))
        assert known.encoded(talk) == renderer._encoded(talk)
        asked += len(talk)
    assert counts.read < asked / 2


def test_the_longest_added_token_decides_however_much_is_known(renderer):
    """What follows may make another added token of the last characters that two texts share."""
    tokenizer = renderer.tokenizer
    tokenizer.add_tokens(["<|im_end|><|im_start|>"], special_tokens=True)
    known = KnownTexts(tokenizer, renderer._encoded)
    first = "word " * SHORT + "<|im_end|>"
    for text in (first + "x", first + "<|im_start|>y", first, first + "<|im_start", first * 2):
        assert known.encoded(text) == renderer._encoded(text)


def test_texts_without_added_tokens_and_short_ones_are_encoded_whole(renderer):
    counts = Counts(renderer)
    known = KnownTexts(renderer.tokenizer, counts)
    for text in ("a" * SHORT, "a" * SHORT + "b", "short"):
        assert known.encoded(text) == renderer._encoded(text)
    assert counts.read == 2 * SHORT + 1 + 5 and len(known._texts) == 2


def test_the_oldest_texts_are_dropped(renderer):
    known = KnownTexts(renderer.tokenizer, renderer._encoded)
    for n in range(TEXTS + 3):
        known.encoded(f"{n} " + "word " * SHORT)
    assert len(known._texts) == TEXTS and known._texts[0].text.startswith(f"{TEXTS + 2} ")


@pytest.mark.parametrize(
    ("a", "b", "n"), [("", "", 0), ("a", "b", 0), ("abc", "abd", 2), ("abc", "ab", 2), ("ab", "ab", 2)]
)
def test_common_beginning(a, b, n):
    assert common(a, b) == common(b, a) == n


def test_common_beginning_at_every_place():
    text = "abcdefghij" * 3
    for n in range(len(text)):
        assert common(text, text[:n] + "X" + text[n + 1 :]) == n
