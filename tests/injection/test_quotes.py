"""From a quote to tokens: exact, folded, and inside the right part of the step."""

from __future__ import annotations

import json

from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from hintdistill.core.types import Finding, Message, ToolCall
from hintdistill.injection.quotes import call_regions, is_in_step, locate, tokens_in

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


def near(quote, threshold=0.9, text=TEXT, message=MESSAGE, **where):
    found = locate(Finding(step=0, error_class="x", quote=quote, **where), text, message, threshold)
    return None if found is None else (text[slice(*found[0])], found[1])


def test_a_close_quote_is_its_best_match():
    text = "The total of the three invoices comes to 1,204.50 dollars before tax."
    plain = Message(role="assistant", content=text)
    assert near("the three invoces comes to 1,204.50 dollars", text=text, message=plain) == (
        "the three invoices comes to 1,204.50 dollars",
        "fuzzy",
    )
    assert near("the three invoces comes to 1,204.50 dollars", 1.0, text, plain) is None, "1 turns it off"
    assert near("a sentence that stands nowhere in the step", text=text, message=plain) is None
    assert near("invoces", text=text, message=plain) is None, "short quotes resemble too much by chance"
    # inside the arguments of a call, and nowhere else
    arguments = '{"query":"opening hours of the museum of modern art","limit":3}'
    call = Message(role="assistant", content="I look.", tool_calls=(ToolCall(name="search", arguments_raw=arguments),))
    printed = f'I look.<c>{{"name":"search","arguments":{arguments}}}</c>'
    assert near(
        "opening hour of the museum of modern art", text=printed, message=call, quote_in="arguments", call=0
    ) == (
        "opening hours of the museum of modern art",
        "fuzzy",
    )
    assert (
        near("opening hour of the museum of modern art", text=printed, message=call, quote_in="tool_name", call=0)
        is None
    )


def test_reasoning_is_looked_at_first_where_the_quote_is_in_it():
    text = "<think>It is Paris.</think>It is Paris."
    message = Message(role="assistant", content="It is Paris.", reasoning="It is Paris.")
    assert locate(Finding(step=0, error_class="x", quote="Paris", quote_in="reasoning"), text, message)[0] == (13, 18)
    # the content is printed verbatim after the reasoning; its own occurrence would be the first of an equal text
    other = Message(role="assistant", content="So Paris.", reasoning="Hm Paris.")
    found = locate(
        Finding(step=0, error_class="x", quote="Paris", quote_in="content"), "<t>Hm Paris.</t>So Paris.", other
    )
    assert found[0][0] == 19


@settings(deadline=None, max_examples=examples(60))
@given(
    words=st.lists(
        st.text(alphabet=st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12), min_size=4, max_size=20
    ),
    data=st.data(),
)
def test_a_quote_with_a_typo_is_found(words, data):
    """One character changed in a long slice of any text is found."""
    text = " ".join(words)
    a = data.draw(st.integers(0, max(0, len(text) - 20)))
    b = min(len(text), a + 40)
    at = data.draw(st.integers(a, b - 1))
    typo = text[a:at] + "\u2603" + text[at + 1 : b]
    found = locate(Finding(step=0, error_class="x", quote=typo), text, Message(role="assistant"), 0.7)
    if len(typo.strip()) >= 20 and len(set(typo)) > 10:
        assert found is not None
    if found is not None:
        (start, end), kind = found
        assert 0 <= start < end <= len(text) and kind in ("exact", "normalised", "fuzzy")
        assert (start < b + 15 and end > a - 15) or text[start:end] != text[a:b]


@settings(deadline=None, max_examples=examples(200))
@given(text=st.text(max_size=60), quote=st.text(min_size=1, max_size=40), threshold=st.floats(0.5, 1.0))
def test_locating_never_fails_and_stays_inside(text, quote, threshold):
    found = locate(Finding(step=0, error_class="x", quote=quote), text, Message(role="assistant"), threshold)
    if found is not None:
        assert 0 <= found[0][0] < found[0][1] <= len(text)
    if quote in text:
        assert found is not None and found[1] == "exact"
    assert is_in_step(Finding(step=0, error_class="x", quote=quote), Message(role="assistant", content=text)) >= (
        quote in text
    )


@settings(deadline=None, max_examples=examples(100))
@given(
    value=st.dictionaries(st.text(min_size=1, max_size=8), st.text(max_size=20), min_size=1, max_size=3), data=st.data()
)
def test_a_value_inside_arguments_is_found_however_it_is_escaped(value, data):
    """Arguments are printed escaped; a critic quotes them unescaped."""
    raw = json.dumps(value, ensure_ascii=data.draw(st.booleans()))
    key = data.draw(st.sampled_from(sorted(value)))
    quote = value[key]
    message = Message(role="assistant", tool_calls=(ToolCall(name="f", arguments_raw=raw),))
    text = f'<tool_call>{{"name":"f","arguments":{raw}}}</tool_call>'
    found = (
        locate(Finding(step=0, error_class="x", quote=quote, quote_in="arguments", call=0), text, message)
        if quote
        else None
    )
    # white space alone folds to nothing, and a backslash in a value reads as an escape of its own
    if quote.strip() and "\\" not in quote:
        assert found is not None
        inside = text[slice(*found[0])]
        assert json.dumps(quote)[1:-1].strip()[:1] in json.dumps(inside) or inside


@settings(deadline=None, max_examples=examples(150))
@given(
    data=st.data(),
    reasoning=st.text(min_size=1, max_size=30),
    content=st.text(min_size=1, max_size=30),
    name=st.text(alphabet="abcdefg_é中", min_size=1, max_size=12),
    key=st.text(min_size=1, max_size=10),
)
def test_a_quote_of_any_part_becomes_tokens_of_that_part(student_renderer, data, reasoning, content, name, key):
    """Reasoning, plain text, a call's name and its arguments: a character span inside the part, then the tokens that cover it."""
    raw = json.dumps({key: content}, ensure_ascii=data.draw(st.booleans()))
    message = Message(
        role="assistant", content=content, reasoning=reasoning, tool_calls=(ToolCall(name=name, arguments_raw=raw),)
    )
    parts = {"reasoning": reasoning, "content": content, "tool_name": name, "arguments": raw}
    where = data.draw(st.sampled_from(sorted(parts)))
    part = parts[where]
    a = 0 if where == "tool_name" else data.draw(st.integers(0, len(part) - 1))
    quote = part if where == "tool_name" else part[a : data.draw(st.integers(a + 1, len(part)))]
    pieces = ["<think>", reasoning, "</think>", content, '<call>{"name":"', name, '","arguments":', raw, "}</call>"]
    text, spans = student_renderer.token_spans(student_renderer.encode("".join(pieces)))
    call = 0 if where in ("tool_name", "arguments") else None
    found = locate(Finding(step=0, error_class="x", quote=quote, quote_in=where, call=call), text, message)
    assert found is not None and found[1] == "exact" and text[slice(*found[0])] == quote
    tokens = tokens_in(found[0], spans)
    assert tokens is not None
    assert spans[tokens[0]][0] <= found[0][0] and spans[tokens[1] - 1][1] >= found[0][1]
    assert spans[tokens[0]][1] > found[0][0] and spans[tokens[1] - 1][0] < found[0][1], "no token too many"
    if "".join(pieces).count(part) == 1:
        start = text.index(part)
        assert start <= found[0][0] and found[0][1] <= start + len(part)
