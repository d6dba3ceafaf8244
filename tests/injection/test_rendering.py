"""Rendering is token-faithful: what the student saw, raw strings kept, and refusals by name."""

from __future__ import annotations

import itertools

import pytest
from conftest import OWN_TEMPLATES, WEATHER, call, examples, published_templates, renderer_for, tool
from hypothesis import given, settings
from hypothesis import strategies as st

from hintdistill.core.errors import HintdistillError, SpliceError, TemplateError
from hintdistill.core.types import Message, ToolCall, Trace

MODES = {
    "chatml_double_encode": "raw_spliced",
    "closes_conversation": "raw_spliced",
    "drops_thinking": "raw",
    "other_header": "raw_spliced",
    "spells_arguments": "reserialised",
    "strict_turns": "raw",
}


@pytest.mark.parametrize("name", OWN_TEMPLATES)
def test_arguments_mode_is_found_out(name, own_template):
    assert own_template(name).arguments_mode == MODES[name]


@pytest.mark.parametrize("name", [n for n in OWN_TEMPLATES if MODES[n] != "reserialised"])
@pytest.mark.parametrize(
    "raw", ['{"city":  "Paris"}', '{"city": "Par', '{"a":"\\u00e9\\"{}"}', "[1]", '{"hd_arguments_0": 0}']
)
def test_raw_arguments_survive_byte_for_byte(name, raw, own_template):
    trace = Trace(id="t", messages=(Message(role="user", content="x"), call("get_weather", raw)), tools=(WEATHER,))
    step = own_template(name).step(trace, 0)
    assert raw in own_template(name).decode(step.step_ids)
    # a line break before a call is the template's, not the student's
    assert ("white_space_printed" in step.notes) == (name in ("drops_thinking", "strict_turns", "other_header"))
    around = [n for n in step.notes if not n.startswith("unprinted")]
    assert step.fidelity == ("reserialised" if around else "raw_text")


def test_spelled_out_arguments_are_reserialised(own_template):
    renderer = own_template("spells_arguments")
    trace = Trace(id="t", messages=(Message(role="user", content="x"), call("get_weather", '{"city":"Paris"}')))
    step = renderer.step(trace, 0)
    assert step.fidelity == "reserialised"
    assert "<arg_key>city</arg_key><arg_value>Paris</arg_value>" in renderer.decode(step.step_ids)


def test_object_arguments_are_reserialised(own_template):
    made = ToolCall(name="get_weather", arguments_raw='{"city": "Paris"}', arguments_form="object")
    trace = Trace(id="t", messages=(Message(role="user", content="x"), Message(role="assistant", tool_calls=(made,))))
    assert own_template("chatml_double_encode").step(trace, 0).fidelity == "reserialised"


def test_context_is_the_templates_render_and_step_ends_at_the_end_of_turn(weather_trace, student_renderer):
    r = student_renderer
    for k in (0, 1):
        step = r.step(weather_trace, k)
        assert r.decode(step.context_ids) == r.render(weather_trace.before(k), weather_trace.tools, header=True)
        assert r.decode(step.step_ids).endswith("<|im_end|>")
        assert step.step_ids[-1] == r.tokenizer.eos_token_id
    assert r.decode(r.step(weather_trace, 1).step_ids) == "It is 21 degrees in Paris.<|im_end|>"


def test_history_that_is_rewritten_is_followed(own_template):
    renderer = own_template("drops_thinking")
    trace = Trace(
        id="t",
        messages=(
            Message(role="user", content="one"),
            Message(role="assistant", content="a", reasoning="because"),
            Message(role="user", content="two"),
            Message(role="assistant", content="b", reasoning="therefore"),
        ),
    )
    first, second = renderer.step(trace, 0), renderer.step(trace, 1)
    assert "<think>\nbecause" in renderer.decode(first.step_ids)
    assert "because" not in renderer.decode(second.context_ids)
    assert second.context_ids == tuple(renderer.encode(renderer.render(trace.before(1), (), header=True)))


def test_a_text_that_is_encoded_again_has_the_same_ids_and_its_own_lists(own_template):
    renderer, other = own_template("strict_turns"), own_template("strict_turns")
    for text in ("Use the tool <|im_end|>\n", "Use the tool é 天", "Use the tool <|im_end|>\n"):
        ids, starts = renderer.encode_with_starts(text)
        assert renderer.encode(text) == ids == other.encode(text) and len(starts) == len(ids)
        ids.append(0)
        starts.clear()
        assert renderer.encode(text) == ids[:-1] and len(renderer.encode_with_starts(text)[1]) == len(ids) - 1


def test_a_step_under_another_header_is_scored_there_and_says_so(own_template):
    renderer = own_template("other_header")
    trace = Trace(
        id="t", messages=(Message(role="user", content="x"), Message(role="assistant", content="<thin answer"))
    )
    step = renderer.step(trace, 0)
    assert step.notes == ("rewritten_history",)
    assert step.fidelity == "reserialised"
    assert renderer.decode(step.context_ids).endswith("<|im_start|>assistant\n")
    assert renderer.decode(step.step_ids) == "<thin answer<|im_end|>"


def test_an_end_of_text_token_that_closes_a_conversation_is_no_part_of_it(own_template):
    renderer = own_template("closes_conversation")
    trace = Trace(id="t", messages=(Message(role="user", content="x"), Message(role="assistant", content="y")))
    step = renderer.step(trace, 0)
    assert renderer.decode(step.context_ids) == "<|user|>\nx<|end|>\n<|assistant|>\n"
    assert renderer.decode(step.step_ids) == "y<|end|>"


def test_a_template_that_drops_calls_is_refused():
    renderer = renderer_for(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    trace = Trace(id="t7", messages=(Message(role="user", content="x"), call("get_weather", "{}")))
    with pytest.raises(TemplateError, match=r"trace t7, step 0: .* does not print the call of get_weather"):
        renderer.step(trace, 0)


def test_recorded_ids_are_used_verbatim(student_renderer):
    r = student_renderer
    text = r.render((Message(role="user", content="hello"),), (), header=True)
    context, step = tuple(r.encode(text)), (*r.encode("h"), *r.encode("i"), r.tokenizer.eos_token_id)
    message = Message(role="assistant", content="hi", prompt_token_ids=context, token_ids=step)
    rendered = r.step(Trace(id="t", messages=(Message(role="user", content="hello"), message)), 0)
    assert (rendered.context_ids, rendered.step_ids, rendered.fidelity) == (context, step, "ids")


@pytest.mark.parametrize(
    ("ids", "prompt", "message"),
    [
        ((99_999,), None, "outside this tokenizer"),
        ((300, 301), None, "do not decode to the message"),
        (None, (5, 6, 7), "does not end with this template's assistant header"),
    ],
)
def test_foreign_ids_are_refused_with_what_to_do(ids, prompt, message, student_renderer):
    r = student_renderer
    answer = Message(
        role="assistant",
        content="hello there",
        token_ids=ids or tuple(r.encode("hello there")),
        prompt_token_ids=prompt,
    )
    trace = Trace(id="t", messages=(Message(role="user", content="x"), answer))
    with pytest.raises(SpliceError, match=message) as caught:
        r.step(trace, 0)
    assert "traces.token_ids=ignore" in caught.value.hint


def test_raw_text_is_the_step(student_renderer):
    raw = '<tool_call>{"name" : "get_weather","arguments":{}}</tool_call>'
    message = Message(role="assistant", tool_calls=(ToolCall(name="get_weather", arguments_raw="{}"),), raw_text=raw)
    step = student_renderer.step(Trace(id="t", messages=(Message(role="user", content="x"), message)), 0)
    assert student_renderer.decode(step.step_ids) == raw + "<|im_end|>"
    assert step.fidelity == "raw_text"


@settings(deadline=None, max_examples=examples(150))
@given(st.text(max_size=60).filter(lambda s: "\r" not in s and "\ufffd" not in s))
def test_token_spans_cover_the_text(student_renderer, text):
    ids = student_renderer.encode(text)
    decoded, spans = student_renderer.token_spans(ids)
    assert decoded == text == "".join(student_renderer.token_texts(ids))
    assert len(spans) == len(ids)
    assert all(a[1] == b[0] or a == b for a, b in itertools.pairwise(spans))


@settings(deadline=None, max_examples=examples(60))
@given(st.lists(st.integers(7, 1023), min_size=1, max_size=30))
def test_token_spans_of_any_ids(student_renderer, ids):
    decoded, spans = student_renderer.token_spans(ids)
    assert decoded == student_renderer.decode(ids)
    assert spans[-1][1] == len(decoded)


def test_published_templates_give_exact_steps_or_a_named_error():
    """Every template of released models: a step's context is the template's own render, or the error names the trace."""
    templates = published_templates()
    if not templates:
        pytest.skip("the trl wheel, which ships chat templates of released models, is not installed")
    trace = Trace(
        id="t",
        messages=(
            Message(role="user", content="Weather in Paris?"),
            call("get_wether", '{"city":  "Paris"}'),
            tool('{"temp":21}', name="get_wether"),
            Message(role="assistant", content="It is 21."),
            Message(role="user", content="And Rome?"),
            Message(role="assistant", content="No idea."),
        ),
        tools=(WEATHER,),
    )
    exact, refused = 0, []
    for path in templates:
        renderer = renderer_for(path.read_text(encoding="utf-8"))
        for k in range(3):
            try:
                step = renderer.step(trace, k)
            except HintdistillError as error:
                refused.append(f"{path.stem}: {error.message}")
                continue
            said = ("get_wether", "It is 21.", "No idea.")[k]
            assert said in renderer.decode(step.step_ids), path.stem
            assert said not in renderer.decode(step.context_ids[-3:]), path.stem
            if "rewritten_history" not in step.notes:
                assert list(step.context_ids) == renderer.encode(
                    renderer.render(trace.before(k), trace.tools, header=True)
                )
            exact += 1
    assert exact >= 90, refused
    # what is refused are templates without tools, or with parts lists instead of text
    assert all("print" in r or "alternate" in r or "refuses" in r for r in refused), refused
