"""A hint is one contiguous insertion; the step's ids are shared; placements fall back in a stated order."""

from __future__ import annotations

import pytest
from conftest import OWN_TEMPLATES, TEMPLATES, TIME, WEATHER, call, examples, published_templates, renderer_for, tool
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hintdistill.config import InjectSection
from hintdistill.core.errors import HintdistillError, QuoteNotFoundError, TemplateError
from hintdistill.core.types import Finding, Injection, Message, Trace
from hintdistill.injection.levels import words_of
from hintdistill.injection.rendering import Renderer
from hintdistill.injection.splice import Injector
from hintdistill.prompts import PromptLibrary

LIBRARY = PromptLibrary()
HINT = "Use the tool get_weather."


def inject(renderer, trace, step=0, hint=HINT, **section):
    finding = Finding(step=step, error_class="unknown_tool", hint=hint, quote=section.pop("quote", None))
    return Injector(renderer, LIBRARY, InjectSection(**section)).inject(trace, finding)


# text that a template or tokenizer treats as itself: no special tokens, no marks the templates are made of
words = st.text(
    st.characters(
        codec="utf-8", exclude_characters="<>|[]\r\ufeff\u2028\x85", exclude_categories=("Cc", "Cs", "Cn", "Co")
    ),
    min_size=1,
    max_size=24,
).filter(lambda s: s == s.strip() and s)


@st.composite
def conversations(draw):
    """user (assistant tool)* … assistant, as agents leave them; the last message is a step."""
    messages = [Message(role="system", content=draw(words))] if draw(st.booleans()) else []
    messages.append(Message(role="user", content=draw(words)))
    for _ in range(draw(st.integers(0, 2))):
        reasoning = draw(words) if draw(st.booleans()) else None
        step = call("get_weather", draw(st.sampled_from(['{"city":"Paris"}', '{"city":  "Rome" }', '{"city": "Os'])))
        messages += [step.model_copy(update={"reasoning": reasoning}), tool(draw(words))]
        if draw(st.booleans()):
            messages += [Message(role="assistant", content=draw(words)), Message(role="user", content=draw(words))]
    last = (
        Message(role="assistant", content=draw(words)) if draw(st.booleans()) else call("get_time", '{"city":"Paris"}')
    )
    return Trace(id="random", messages=(*messages, last), tools=(WEATHER, TIME))


@pytest.mark.parametrize("name", [*OWN_TEMPLATES, "toolworld"])
@settings(deadline=None, max_examples=examples(40))
@given(trace=conversations(), hint=words, data=st.data())
def test_the_hint_is_one_contiguous_insertion(name, own_template, student_renderer, trace, hint, data):
    renderer = student_renderer if name == "toolworld" else own_template(name)
    step = data.draw(st.integers(0, len(trace.step_indices) - 1))
    try:
        made = inject(renderer, trace, step, hint)
    except TemplateError as error:
        # strings that are no JSON objects cannot be spelled out key by key
        assume(name != "spells_arguments")
        raise error
    plain, hinted, p, block = made.plain_ids, made.hinted_ids, made.insert_at, made.block_ids
    assert hinted == plain[:p] + block + plain[p:]
    assert hinted[-len(made.step_ids) :] == plain[-len(made.step_ids) :] == made.step_ids
    assert hint in renderer.decode(block)
    assert made.context_ids == renderer.step(trace, step).context_ids
    assert hint in renderer.decode(hinted[p : len(hinted) - len(made.step_ids)])
    if made.placement == "message" and not made.notes:
        own = renderer.render((*trace.before(step), Message(role=made.role, content=hint)), trace.tools, header=True)
        assert renderer.decode(made.hinted_context_ids) == own


def test_the_block_is_the_templates_own_render(weather_trace, student_renderer):
    made = inject(student_renderer, weather_trace)
    assert student_renderer.decode(made.block_ids) == f"<|im_start|>user\n{HINT}<|im_end|>\n"
    own = student_renderer.render(
        (*weather_trace.before(0), Message(role="user", content=HINT)), weather_trace.tools, header=True
    )
    assert made.hinted_context_ids == tuple(student_renderer.encode(own))
    assert (made.placement, made.role, made.notes) == ("message", "user", ())


def test_observation_placement_is_the_end_of_the_last_observation(weather_trace, student_renderer):
    made = inject(student_renderer, weather_trace, step=1, placements=("observation",))
    text = student_renderer.decode(made.hinted_context_ids)
    assert text.endswith(f'tool get_forecast"}}\n\n{HINT}<|im_end|>\n<|im_start|>assistant\n')
    assert made.role is None


def test_observation_moves_by_the_line_break_that_the_template_and_the_hint_share(merging_renderer):
    """The observation's last character and the template's line break are one token; the text is the template's own, the ids are not."""
    r = merging_renderer
    seen = tool('{"a":1}')
    messages = (
        Message(role="user", content="x"),
        call("get_weather", "{}"),
        seen,
        Message(role="assistant", content="y"),
    )
    trace = Trace(id="t", messages=messages)
    made = inject(r, trace, step=1, placements=("observation",))
    longer = seen.model_copy(update={"content": f"{seen.content}\n\n{HINT}"})
    assert r.decode(made.hinted_context_ids) == r.render((*messages[:2], longer), (), header=True)
    assert made.notes == ("boundary_shifted",)


def test_observation_moves_to_a_token_boundary_and_says_so(merging_renderer):
    """The observation ends inside a token, and the hint begins otherwise than what follows: nothing can go in between."""
    r = merging_renderer
    messages = (
        Message(role="user", content="x"),
        call("get_weather", "{}"),
        tool('{"a":1}'),
        Message(role="assistant", content="y"),
    )
    made = inject(
        r, Trace(id="t", messages=messages), step=1, placements=("observation",), formats={"observation": " ({hint})"}
    )
    assert "boundary_shifted" in made.notes
    assert f"}}\n ({HINT})</tool_response>" in r.decode(made.hinted_context_ids)
    assert made.hinted_ids == made.plain_ids[: made.insert_at] + made.block_ids + made.plain_ids[made.insert_at :]


def test_a_merge_across_the_header_is_undone(merging_renderer):
    """The step begins with a line break that the tokenizer would merge with the header's: the student could not have."""
    r = merging_renderer
    trace = Trace(id="t", messages=(Message(role="user", content="x"), Message(role="assistant", content="\n\ny")))
    step = r.step(trace, 0)
    assert step.notes == ("boundary_retokenised",)
    assert list(step.context_ids) == r.encode(r.render(trace.before(0), (), header=True))
    assert r.decode(step.step_ids) == "\n\ny<|im_end|>"


SHORT_TALK = Trace(id="t9", messages=(Message(role="user", content="x"), Message(role="assistant", content="y")))


@pytest.fixture
def one_question(own_template) -> Renderer:
    """A template that takes one question, and a system prompt only above it: no minimal talk either has a place for a hint."""
    strict = own_template("strict_turns")
    text = (TEMPLATES / "strict_turns.jinja").read_text(encoding="utf-8")
    text = text.replace("{%- if not loop.first %}", "{%- if not loop.first or loop.last %}")
    users = "messages | selectattr('role', 'equalto', 'user') | list | length"
    return Renderer(
        strict.tokenizer,
        template=f"{{%- if {users} > 1 %}}{{{{ raise_exception('one question') }}}}{{% endif %}}{text}",
    )


def test_fallbacks_in_the_stated_order_with_reasons(one_question):
    made = inject(one_question, SHORT_TALK)
    assert made.placement == "observation"
    assert [n.split(":")[0] for n in made.notes] == ["refused message/user", "refused message/system"]
    assert "one question" in made.notes[0]
    assert "a system message must come first" in made.notes[1]


def test_no_placement_left_is_an_error_that_names_each(one_question):
    with pytest.raises(
        TemplateError,
        match=r"trace t9, step 0: this chat template has no place for a hint; .*message/user: .*one question.*message/system",
    ) as caught:
        inject(one_question, SHORT_TALK, placements=("message",))
    assert "inject.placements" in caught.value.hint


@pytest.mark.parametrize("role", ["user", "system"])
def test_a_hint_that_the_template_refuses_above_the_step_is_that_of_a_minimal_talk(own_template, role):
    renderer = own_template("strict_turns")
    made = inject(renderer, SHORT_TALK, placements=("message",), roles=(role,))
    assert (made.placement, made.role, made.notes) == ("message", role, ("spliced_block", "minimal_talk"))
    alone = renderer.render((Message(role=role, content=HINT),), (), header=True)
    assert list(made.hinted_context_ids[-len(renderer.encode(alone)) :]) == renderer.encode(alone)
    assert renderer.decode(made.hinted_context_ids) == renderer.render(SHORT_TALK.before(0), (), header=False) + alone


def test_a_hint_message_that_would_rewrite_history_is_spliced(own_template):
    renderer = own_template("drops_thinking")
    trace = Trace(
        id="t",
        messages=(
            Message(role="user", content="x"),
            call("get_weather", "{}").model_copy(update={"reasoning": "I think"}),
            tool("21"),
            Message(role="assistant", content="y"),
        ),
    )
    made = inject(renderer, trace, step=1)
    assert "spliced_block" in made.notes
    # the earlier thinking is still there: only the hint is new
    assert "I think" in renderer.decode(made.hinted_context_ids)
    assert renderer.decode(made.block_ids) == f"<|im_start|>user\n{HINT}<|im_end|>\n"


def test_recorded_context_is_spliced_verbatim(student_renderer):
    r = student_renderer
    before = (Message(role="user", content="What is the forecast for Paris?"),)
    text = r.render(before, (WEATHER,), header=True)
    # spelled with other tokens than the tokenizer would choose
    context = tuple(i for piece in (text[:-40], text[-40:]) for i in r.encode(piece))
    step = (*r.encode("f"), *r.encode("ine"), r.tokenizer.eos_token_id)
    message = Message(role="assistant", content="fine", prompt_token_ids=context, token_ids=step)
    made = inject(r, Trace(id="t", messages=(*before, message), tools=(WEATHER,)))
    assert made.context_ids == context
    assert made.step_ids == step
    assert made.fidelity == "ids"
    assert (
        r.decode(made.hinted_ids)
        == r.render((*before, Message(role="user", content=HINT)), (WEATHER,), header=True) + "fine<|im_end|>"
    )


def test_quote_becomes_token_range(weather_trace, student_renderer):
    made = inject(student_renderer, weather_trace, quote="get_forecast")
    start, end = made.span
    assert student_renderer.decode(made.step_ids[start:end]) == "get_forecast"
    assert made.quote_found == "exact"


def test_quote_that_is_nowhere(weather_trace, student_renderer):
    with pytest.raises(QuoteNotFoundError, match="'get_stock' does not occur in the step"):
        inject(student_renderer, weather_trace, quote="get_stock")
    made = inject(student_renderer, weather_trace, quote="get_stock", whole_step_without_quote=True)
    assert made.span == (0, len(made.step_ids))
    assert made.quote_found == "whole_step"


def test_placebos_are_three_kinds_in_the_same_place(weather_trace, student_renderer):
    made = inject(student_renderer, weather_trace)
    assert [p.kind for p in made.placebos] == ["generic", "other_class", "shuffled_answer_free"]
    assert len({p.text for p in made.placebos} | {HINT}) == 4
    assert {p.insert_at for p in made.placebos} == {made.insert_at}
    words, free = HINT.split(), made.placebos[2].text.split()
    assert len(free) == len(words) and len(set(free) & set(words)) > 2
    assert not set(words_of(made.placebos[2].text)) & {"get_weather", "get_time", "get_forecast"}
    for p in made.placebos:
        assert p.text in student_renderer.decode(p.block_ids)


def test_kinds_of_placebo_and_their_number_are_chosen(weather_trace, student_renderer):
    kinds = {"generic": 1, "shuffled": 2}
    made = Injector(student_renderer, LIBRARY, InjectSection(), kinds).inject(
        weather_trace, Finding(step=0, error_class="unknown_tool", hint=HINT)
    )
    assert [p.kind for p in made.placebos] == ["generic", "shuffled", "shuffled"]
    assert sorted(made.placebos[1].text.split()) == sorted(HINT.split())


def test_a_level_above_the_bound_and_a_wrong_name_first_are_said(weather_trace, student_renderer):
    hint = "There is no get_forecast. Use get_weather."
    finding = Finding(step=0, error_class="unknown_tool", hint=hint, facts={"wrong": "get_forecast"})
    made = Injector(student_renderer, LIBRARY, InjectSection(max_level=1)).inject(weather_trace, finding)
    assert made.level == 2
    assert made.guards == ("level: 2 is above 1", "primes: the wrong name 'get_forecast' comes first")
    assert Injector(student_renderer, LIBRARY, InjectSection()).inject(weather_trace, finding).guards == made.guards[1:]


def test_candidates_are_other_hints_for_the_same_finding(weather_trace, student_renderer):
    injector = Injector(student_renderer, LIBRARY, InjectSection(candidates=3))
    finding = Finding(step=0, error_class="unknown_tool", hint="Look at the list.", facts={"right": "get_weather"})
    made = injector.candidates(weather_trace, finding)
    assert [(i.candidate, i.level, i.hint) for i in made] == [
        ("critic", 0, "Look at the list."),
        ("principle", 0, "Call one of the listed tools, by its exact name."),
        ("action", 2, "The right tool here is get_weather."),
    ]
    assert len({(i.context_ids, i.step_ids, i.span) for i in made}) == 1
    assert [
        i.candidate for i in Injector(student_renderer, LIBRARY, InjectSection()).candidates(weather_trace, finding)
    ] == [""]


def test_placebo_hint_takes_the_critics_place(weather_trace, student_renderer):
    injector = Injector(student_renderer, LIBRARY, InjectSection(hint="placebo"))
    made = injector.inject(weather_trace, Finding(step=0, error_class="unknown_tool", hint=HINT))
    assert made.hint != HINT
    assert len(made.placebos) == 3


def test_legal_continuations_stand_at_the_name(weather_trace, student_renderer):
    made = inject(student_renderer, weather_trace)
    tokens = student_renderer.token_texts(made.step_ids)
    at = tokens.index("forecast") if "forecast" in tokens else next(i for i, t in enumerate(tokens) if "fore" in t)
    legal = {student_renderer.decode([i]) for i in made.legal[at]}
    assert any("weather".startswith(t) for t in legal)
    assert any("time".startswith(t) for t in legal)
    assert made.step_ids[at] not in made.legal[at]


def test_injection_cannot_be_written_wrong():
    finding = Finding(step=0, error_class="x")
    good = {
        "trace_id": "t",
        "finding": finding,
        "hint": "h",
        "context_ids": (1, 2),
        "insert_at": 1,
        "block_ids": (9,),
        "step_ids": (3, 4),
        "span": (0, 2),
        "fidelity": "ids",
        "placement": "message",
    }
    assert Injection(**good).hinted_ids == (1, 9, 2, 3, 4)
    wrong = (
        {"insert_at": 3},
        {"block_ids": ()},
        {"span": (0, 3)},
        {"span": (1, 1)},
        {"step_ids": ()},
        {"action_start": 2},
    )
    for bad in wrong:
        with pytest.raises(ValidationError):
            Injection(**{**good, **bad})


def test_published_templates_take_a_hint_or_say_why_not():
    templates = published_templates()
    if not templates:
        pytest.skip("the trl wheel, which ships chat templates of released models, is not installed")
    messages = (
        Message(role="user", content="Weather in Paris?"),
        Message(role="assistant", content="It is 21."),
        Message(role="user", content="And Rome?"),
        Message(role="assistant", content="No idea."),
    )
    taken = 0
    for path in templates:
        renderer = renderer_for(path.read_text(encoding="utf-8"))
        for k in (0, 1):
            try:
                made = inject(renderer, Trace(id="t", messages=messages), k)
            except HintdistillError as error:
                assert "trace t" in error.message or "refuses" in error.message, path.stem
                continue
            assert (
                made.hinted_ids == made.plain_ids[: made.insert_at] + made.block_ids + made.plain_ids[made.insert_at :]
            )
            assert HINT in renderer.decode(made.hinted_context_ids), path.stem
            taken += 1
    assert taken >= 70
