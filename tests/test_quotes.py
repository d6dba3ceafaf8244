"""From a quote to tokens: exact, folded, and inside the right part of the step."""

from __future__ import annotations

from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from hintdistill.quotes import call_regions, locate, tokens_in
from hintdistill.types import Finding, Message, ToolCall

RAW = '{"city":"place","place":"Paris \\"x\\"\\n  y"}'
MESSAGE = Message(
    role="assistant",
    content="place first",
    tool_calls=(ToolCall(name="get", arguments_raw="{}"), ToolCall(name="place", arguments_raw=RAW)),
)
TEXT = 'place first <c>{"name":"get","arguments":{}}</c><c>{"name":"place","arguments":' + RAW + "}</c>"


def find(quote, **where):
    found = locate(Finding(step=0, error_class="x", quote=quote, **where), TEXT, MESSAGE)
    return None if found is None else (TEXT[slice(*found[0])], found[0][0], found[1])


def test_regions_in_order():
    get, place = call_regions(TEXT, MESSAGE)
    assert TEXT[slice(*get.name)] == "get" and TEXT[slice(*get.arguments)] == "{}"
    assert TEXT[slice(*place.name)] == "place" and TEXT[slice(*place.arguments)] == RAW


def test_the_part_decides_which_occurrence():
    assert find("place")[1] == 0
    assert find("place", quote_in="tool_name", call=1)[1] == TEXT.index('"place","arguments"') + 1
    # a key or value with its quotation marks, the first one
    assert find("place", quote_in="arguments", call=1)[1] == TEXT.index('"place","place"') + 1
    assert find("get", quote_in="tool_name", call=0)[1] == TEXT.index('"get"') + 1
    assert find("place", quote_in="tool_name", call=0) is None


def test_not_inside_a_longer_word_if_it_can_be_helped():
    text = "replaced place"
    assert locate(Finding(step=0, error_class="x", quote="place"), text, Message(role="assistant"))[0] == (9, 14)
    assert locate(Finding(step=0, error_class="x", quote="plac"), text, Message(role="assistant"))[0] == (2, 6)


def test_white_space_and_json_escapes_are_folded():
    assert find('Paris "x" y') == ('Paris \\"x\\"\\n  y', TEXT.index("Paris"), "normalised")
    assert find("place\n first") == ("place first", 0, "normalised")
    assert find("nowhere") is None
    assert locate(Finding(step=0, error_class="x"), TEXT, MESSAGE) is None


@settings(deadline=None, max_examples=examples(200))
@given(data=st.data(), text=st.text(min_size=1, max_size=60).filter(lambda s: "\ufffd" not in s))
def test_any_slice_of_any_text_is_found_and_covered(student_renderer, data, text):
    """Random unicode, multi-byte characters split over several byte-level tokens."""
    a = data.draw(st.integers(0, len(text) - 1))
    b = data.draw(st.integers(a + 1, len(text)))
    quote = text[a:b]
    ids = student_renderer.encode(text)
    decoded, spans = student_renderer.token_spans(ids)
    found = locate(Finding(step=0, error_class="x", quote=quote), decoded, Message(role="assistant"))
    assert found is not None and found[1] == "exact"
    assert decoded[slice(*found[0])] == quote
    tokens = tokens_in(found[0], spans)
    covered = decoded[spans[tokens[0]][0] : spans[tokens[1] - 1][1]]
    assert quote in covered
    # no token more than needed on either side
    assert spans[tokens[0]][1] > found[0][0] and spans[tokens[1] - 1][0] < found[0][1]
