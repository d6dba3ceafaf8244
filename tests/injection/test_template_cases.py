"""Kinds of template that change what the student reads: each is followed exactly, or said by name."""

from __future__ import annotations

import datetime

import pytest
from conftest import TEMPLATES, TIME, WEATHER, call, renderer_for, tool

from hintdistill.config import InjectSection
from hintdistill.core.errors import ConfigError, TemplateError
from hintdistill.core.types import Finding, Message, ToolCall, Trace
from hintdistill.injection.rendering import Renderer
from hintdistill.injection.splice import Injector
from hintdistill.injection.template_options import TemplateOptions
from hintdistill.prompts import PromptLibrary

LIBRARY = PromptLibrary()
HINT = "Use the tool get_time."
SYSTEM, ASK = Message(role="system", content="Be brief."), Message(role="user", content="Is it late in Paris?")
CALL, SEEN = call("get_weather", '{"city": "Paris"}'), tool("sunny")
ANSWER = Message(role="assistant", content="It is noon.")
TALK = Trace(id="t", messages=(SYSTEM, ASK, CALL, SEEN, ANSWER), tools=(WEATHER, TIME))


def case(name: str) -> Renderer:
    return renderer_for((TEMPLATES / "cases" / f"{name}.jinja").read_text(encoding="utf-8"))


def inject(renderer, trace, step, placement="message", **section):
    finding = Finding(step=step, error_class="wrong_tool", hint=HINT)
    return Injector(renderer, LIBRARY, InjectSection(placements=(placement,), **section)).inject(trace, finding)


def test_where_the_turn_goes_on_after_a_tool_result_the_header_below_the_hint_is_in_the_block():
    r = case("continues_turn")
    made = inject(r, TALK, 1)
    own = r.render((*TALK.before(1), Message(role="user", content=HINT)), TALK.tools, header=True)
    assert r.step(TALK, 1).header_ids == ()
    assert list(made.hinted_context_ids) == r.encode(own) and own.endswith("<|im_start|>assistant\n")
    # placebos are in the same place, each with the header
    assert all(r.decode(p.block_ids).endswith("<|im_start|>assistant\n") for p in made.placebos)


@pytest.mark.parametrize("message", [CALL, CALL.model_copy(update={"content": "I look."}), ANSWER])
def test_a_think_block_that_the_template_adds_is_not_taken_for_the_students(message):
    r = case("thinks_always")
    step = r.step(Trace(id="t", messages=(ASK, message), tools=(WEATHER,)), 0)
    assert step.fidelity == "reserialised" and "thinking_printed" in step.notes
    assert r.decode(step.step_ids).startswith("<think>\n\n</think>")


AROUND = {
    "call_id_printed": "{{ c.id }} {{ c.function.name }}{{ c.function.arguments | tojson }}",
    "white_space_printed": "{{ '\n' }}{{ c.function.name }}{{ c.function.arguments | tojson }}",
    "thinking_printed": "<|channel|>commentary to=functions.{{ c.function.name }}{{ c.function.arguments | tojson }}",
}


@pytest.mark.parametrize("note", AROUND)
def test_whatever_is_printed_around_a_call_makes_it_reserialised(note):
    r = renderer_for(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
        + AROUND[note]
        + "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    step = r.step(Trace(id="t", messages=(ASK, CALL)), 0)
    assert (step.fidelity, step.notes) == ("reserialised", (note,))
    plain = r.step(Trace(id="t", messages=(ASK, ANSWER)), 0)
    assert (plain.fidelity, plain.notes) == ("raw_text", ())


def test_a_template_without_tools_says_what_of_the_context_is_missing():
    r = case("plain")
    step = r.step(TALK, 1)
    assert step.notes == (
        "unprinted: tools get_weather, get_time",
        "unprinted: 1 of 1 calls of get_weather (message 2)",
    )
    with pytest.raises(TemplateError, match=r"trace t, step 0: .* does not print the call of get_weather"):
        r.step(TALK, 0)
    assert inject(r, TALK, 1).notes == step.notes


PRINTS = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content if (m.role != DROP) else '' }}"
    "{% for c in (m.tool_calls or [])[:MOST] %}{{ c.function.name }}{{ ARGS }}{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.mark.parametrize(
    ("changes", "notes"),
    [
        ({}, ()),
        ({"DROP": "'system'"}, ("unprinted: system prompt (message 0)",)),
        ({"DROP": "'tool'"}, ("unprinted: tool result (message 3)", "unprinted: tool result (message 4)")),
        ({"DROP": "'user'"}, ("unprinted: user content (message 1)",)),
        ({"ARGS": "'()'"}, ("unprinted: arguments of get_weather (message 2)",) * 2),
    ],
)
def test_each_part_of_a_context_that_is_left_out_is_named(changes, notes):
    text = PRINTS
    for name, value in ({"DROP": "'none'", "MOST": "9", "ARGS": "c.function.arguments | tojson"} | changes).items():
        text = text.replace(name, value)
    calls = tuple(ToolCall(name="get_weather", arguments_raw=f'{{"city": "{c}"}}', id=c) for c in ("Paris", "Rome"))
    both = Message(role="assistant", tool_calls=calls)
    messages = (SYSTEM, ASK, both, tool("sunny", "Paris"), tool("rain", "Rome"), ANSWER)
    assert renderer_for(text).step(Trace(id="t", messages=messages), 1).notes == notes


def test_one_of_two_calls_of_a_step_that_is_not_printed_is_an_error():
    text = PRINTS.replace("DROP", "''").replace("MOST", "1")
    calls = tuple(ToolCall(name="get_weather", arguments_raw=f'{{"city": "{c}"}}') for c in ("Paris", "Rome"))
    trace = Trace(id="t", messages=(ASK, Message(role="assistant", tool_calls=calls), tool("rain"), ANSWER))
    dumped = renderer_for(text.replace("ARGS", "c.function.arguments | tojson"))
    for k in (0, 1):
        with pytest.raises(TemplateError, match=f"trace t, step {k}: .* call 2 of 2, of get_weather, is missing"):
            dumped.step(trace, k)
    spelled = renderer_for(text.replace("ARGS", "' ' ~ c.function.arguments.city"))
    with pytest.raises(TemplateError, match=r"trace t, step 0: .* does not print 1 of 2 calls of get_weather"):
        spelled.step(trace, 0)
    assert spelled.step(trace, 1).notes[0] == "unprinted: 1 of 2 calls of get_weather (message 1)"


def test_a_template_that_is_not_append_only_is_followed():
    """A line break after the last tool result goes away when an answer follows; a system prompt moves to the last user message."""
    r = case("tool_line_break")
    step = r.step(TALK, 1)
    assert list(step.context_ids) == r.encode(r.render(TALK.before(1), TALK.tools, header=True))
    assert r.decode(step.step_ids) == "It is noon.<|im_end|>"
    assert step.fidelity == "reserialised" and step.notes[0] == "not_append_only"
    r = case("system_in_last_user")
    step = r.step(TALK, 0)
    assert r.decode(step.context_ids) == "[INST]Be brief.\n\nIs it late in Paris?[/INST]"
    assert r.decode(step.step_ids).startswith('[TOOL_CALLS]{"name": "get_weather"')
    assert step.fidelity == "reserialised" and "not_append_only" in step.notes


def test_a_refusal_names_trace_step_and_the_first_words_that_differ():
    r = renderer_for(
        "{% for m in messages %}{{ m.content }}{{ '!' if messages[-1].role == 'assistant' else '?' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    with pytest.raises(
        TemplateError, match=r"trace t9, step 0: .*without a header.*'Is it late in Paris\?\?<\|assist.* became"
    ):
        r.step(Trace(id="t9", messages=(ASK, ANSWER)), 0)


def test_reasoning_of_a_step_that_the_template_drops_is_said():
    r = case("plain")
    beside = ANSWER.model_copy(update={"reasoning": "The clock strikes twelve."})
    step = r.step(Trace(id="t", messages=(ASK, beside)), 0)
    assert (step.fidelity, step.notes) == ("reserialised", ("reasoning_unprinted",))
    # of an earlier step it is a note as well
    later = Trace(id="t", messages=(ASK, beside, ASK, ANSWER))
    assert r.step(later, 1).notes == ("unprinted: reasoning of message 1",)


@pytest.mark.parametrize("placement", ["message", "observation"])
@pytest.mark.parametrize("where", ["field", "content"])
def test_reasoning_in_a_field_or_in_the_content_under_a_template_that_strips_earlier_reasoning(where, placement):
    r = renderer_for((TEMPLATES / "drops_thinking.jinja").read_text(encoding="utf-8"))

    def said(thought, words):
        if where == "field":
            return Message(role="assistant", content=words, reasoning=thought)
        return Message(role="assistant", content=f"<think>\n{thought}\n</think>\n\n{words}")

    trace = Trace(id="t", messages=(ASK, said("Early.", "Which day?"), ASK, said("Late.", "It is noon.")))
    step = r.step(trace, 1)
    assert "Late." in r.decode(step.step_ids)
    stripped = "unprinted: reasoning of message 1" in step.notes
    assert stripped == ("Early." not in r.decode(step.context_ids)) == (where == "field")
    made = inject(r, trace, 1, placement)
    assert made.step_ids == step.step_ids and made.context_ids == step.context_ids
    # inside the turn the hint can go below the reasoning, right above the wrong words
    finding = Finding(step=1, error_class="wrong_tool", hint=HINT, quote="noon")
    inside = Injector(r, LIBRARY, InjectSection(placements=("assistant_turn",))).inject(trace, finding)
    assert "Late." in r.decode(inside.context_ids) and r.decode(inside.step_ids).strip().startswith("noon")


OPTION = (TEMPLATES / "cases" / "thinks_always.jinja").read_text(encoding="utf-8")


def test_options_are_part_of_the_render_and_of_the_key():
    tokenizer = renderer_for(OPTION).tokenizer
    plain, off = Renderer(tokenizer), Renderer(tokenizer, {"enable_thinking": False})
    assert plain.key != off.key
    assert off.render((ASK,), (), header=True).endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    # what a trace recorded goes before, in every place that renders it
    trace = Trace(id="t", messages=(ASK, ANSWER), template={"enable_thinking": False})
    assert plain.step(trace, 0) == off.step(trace.model_copy(update={"template": {}}), 0)
    assert inject(plain, trace, 0).hinted_ids == inject(off, trace, 0).hinted_ids
    # the empty think block is in the header then, and the answer is the student's own text
    assert plain.step(trace, 0).fidelity == "raw_text" and plain.step(trace, 0).notes == ()


def test_options_that_the_template_does_not_read():
    tokenizer = renderer_for(OPTION).tokenizer
    with pytest.raises(ConfigError, match="does not read the option 'enable_thinkin'"):
        Renderer(tokenizer, {"enable_thinkin": False})
    with pytest.raises(ConfigError, match="messages cannot be set"):
        Renderer(tokenizer, {"messages": []})
    trace = Trace(id="t", messages=(ASK, ANSWER), template={"effort": "high"})
    assert "unread option: effort" in Renderer(tokenizer).step(trace, 0).notes


def test_a_date_is_an_option_and_todays_is_part_of_the_key():
    text = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    tokenizer = renderer_for(text).tokenizer
    dated = Renderer(tokenizer, {"strftime_now": "2026-05-01"})
    assert dated.render((ASK,), (), header=False).startswith("01 May 2026<|user|>")
    days = [Renderer(tokenizer, TemplateOptions({}, datetime.date(2026, 1, d))) for d in (1, 2)]
    assert days[0].key != days[1].key and days[0].render((ASK,), (), False).startswith("01 Jan 2026")
    with pytest.raises(ConfigError, match="must be a date like"):
        Renderer(tokenizer, {"strftime_now": "yesterday"})


@pytest.fixture(scope="module")
def sentencepiece():
    """A tokenizer that puts a space before the first character of each text, as SentencePiece ones do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    marks = ["[INST]", "[/INST]", "[SYS]", "[/SYS]"]
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    words = ["Is it late in Paris? It is noon. Use the tool get_time. Be brief. Mind what you say."] * 20
    special = ["<unk>", "<s>", "</s>", *marks, *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=500, special_tokens=special, show_progress=False)
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=marks,
    )
    fast.chat_template = (
        "<s>{% for m in messages %}{% if m.role == 'system' %}[SYS]{{ m.content }}[/SYS]{% elif m.role == 'user' %}"
        "[INST]{{ m.content }}[/INST]{% else %}{{ m.content }}</s>{% endif %}{% endfor %}"
    )
    return fast


@pytest.mark.parametrize("scheme", ["first", "always"])
@pytest.mark.parametrize("placement", ["observation", "system_prompt", "message"])
def test_a_block_is_encoded_in_its_place(placement, scheme, sentencepiece):
    from tokenizers import pre_tokenizers

    sentencepiece.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme=scheme, split=True
    )
    r = Renderer(sentencepiece)
    trace = Trace(id="t", messages=(SYSTEM, ASK, ANSWER))
    made = inject(r, trace, 0, placement)
    form = InjectSection().format_of(placement).replace("{hint}", HINT)
    longer = {
        "observation": (SYSTEM, ASK.model_copy(update={"content": f"{ASK.content}{form}"})),
        "system_prompt": (SYSTEM.model_copy(update={"content": f"{SYSTEM.content}{form}"}), ASK),
        "message": (SYSTEM, ASK, Message(role="user", content=HINT)),
    }[placement]
    assert made.notes == () and list(made.hinted_context_ids) == r.encode(r.render(longer, (), header=True))
    inside = inject(r, trace, 0, "assistant_turn")
    above = r.encode(r.render((SYSTEM, ASK), (), header=True) + f"{HINT}\n")
    assert list(inside.hinted_context_ids) == above
