"""Hint source `first_sentence`: the critic's hint, cut after its first sentence; and hints that a recipe calls `demo`."""

from hintdistill.core.extensions import HINT_SOURCES, HintSource
from hintdistill.injection.hints import hint_text, placebo_texts


def first_sentence(trace, finding, library, n):
    hint = hint_text(trace, finding, library).split(". ")[0].rstrip(".") + "."
    return hint, placebo_texts(trace, finding, hint, library, n)


HINT_SOURCES.register(HintSource("first_sentence", first_sentence, meets=frozenset({"demonstrations"})))
