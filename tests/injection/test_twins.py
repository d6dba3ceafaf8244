"""Twins: for every maker and kind of edit, the same step in a context that differs by the edit alone."""

from __future__ import annotations

import json
from difflib import SequenceMatcher

import pytest
from conftest import (
    OWN_TEMPLATES,
    ROOT,
    TEMPLATES,
    TIME,
    TOOLWORLD,
    WEATHER,
    call,
    published_templates,
    renderer_for,
    tool,
)
from support.template_matrix import wheel_rows

from hintdistill.config import CHECKS
from hintdistill.core.effects import effect_of, named_effect
from hintdistill.core.errors import TWIN_REASONS, SpliceError, TemplateError, TwinError
from hintdistill.core.extensions import TWIN_MAKERS
from hintdistill.core.types import Finding, Message, Replacement, Trace, TwinEdit
from hintdistill.critics.rules import RulesCritic
from hintdistill.injection.recorded import changed, onto_recorded, require_kept
from hintdistill.injection.splice import StepSite
from hintdistill.injection.twin_makers import twin_edits
from hintdistill.injection.twins import TwinBuilder, apply_edit, located
from hintdistill.traces.reading import read_traces

ASK = Message(role="user", content="What is the weather in Paris?")
SYSTEM = Message(role="system", content="Be brief.")
STEP = Message(role="assistant", content="It has 21 degrees in Paris.")
FAILED = '{"error":"timeout"}'
LOOK = {
    "type": "function",
    "function": {
        "name": "get_order",
        "description": "Gives the order.",
        "parameters": {
            "type": "object",
            "properties": {"order_id": {"type": "string"}, "size": {"type": "integer", "maximum": 3}},
            "required": ["order_id"],
        },
    },
}
TOOLS = (WEATHER, TIME, LOOK)
WRONG = '{"place":"Paris"}'
CASES = {
    "unknown_tool": ((SYSTEM, ASK, call("get_forecast", '{"city":"Paris"}')), {"right": "get_weather"}),
    "wrong_argument": ((SYSTEM, ASK, call("get_weather", WRONG)), {}),
    "wrong_argument/missing": ((SYSTEM, ASK, call("get_weather", '{"unit":"kelvin"}')), {}),
    "wrong_argument_type/type": ((SYSTEM, ASK, call("get_weather", '{"city":7}')), {}),
    "wrong_argument_type/enum": ((SYSTEM, ASK, call("get_weather", '{"city":"Paris","unit":"celcius"}')), {}),
    "skipped_lookup": (
        (
            SYSTEM,
            ASK,
            call("get_time", '{"city":"Rome"}'),
            tool('{"time":"9:30"}'),
            call("get_order", '{"order_id":"A-77"}'),
        ),
        {},
    ),
    "ignored_error": ((SYSTEM, ASK, call("get_weather", '{"city":"Paris"}'), tool(FAILED), STEP), {}),
    "repeated_failing_call": (
        (
            SYSTEM,
            ASK,
            call("get_weather", '{"city":"Paris"}'),
            tool('{"error":"no such city"}'),
            call("get_weather", '{"city":"Paris"}'),
        ),
        {},
    ),
    "wrong_tool": ((SYSTEM, ASK, call("get_time", '{"city":"Paris"}')), {}),
    "stopped_early": (
        (
            SYSTEM,
            Message(role="user", content="Find the order, the weather and the time in Paris."),
            call("get_order", '{"order_id":"A-77"}'),
            tool('{"order":"A-77"}'),
            call("get_weather", '{"city":"Paris"}'),
            tool('{"weather":21}'),
            Message(role="assistant", content="That is all."),
            Message(role="user", content="What about the time?"),
            call("get_time", '{"city":"Paris"}'),
            tool('{"clock":"9:30"}'),
        ),
        {"missing": ["time"]},
    ),
}
ERRING = {"stopped_early": 2}
"""The erring step where it is not the last one."""


def case_of(name: str) -> tuple[Trace, Finding]:
    messages, facts = CASES[name]
    trace = Trace(id=name, messages=messages, tools=TOOLS)
    step = ERRING.get(name, len(trace.step_indices) - 1)
    return trace, Finding(step=step, error_class=name.partition("/")[0], facts=facts)


def moved(old, new) -> tuple[int, int]:
    """Tokens of each side that the other one does not have, in order."""
    start, end, new_end = changed(old, new)
    old, new = old[start:end], new[start:new_end]
    same = sum(b.size for b in SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks())
    return len(old) - same, len(new) - same


def check(renderer, trace: Trace, finding: Finding, edit: TwinEdit):
    """What holds of every twin; returns it."""
    builder = TwinBuilder(renderer)
    made = builder.build(trace, finding, edit, (0, 1))
    original = renderer.step(trace, finding.step)
    assert made.step_ids == original.step_ids and made.plain_ids == made.context_ids + made.step_ids
    edited, step = apply_edit(trace, finding.step, edit)
    # the edited trace differs from the original in what the edit names, and in nothing else
    named = {r.index for r in edit.replacements if r.where == "message"}
    kept = [i for i in range(trace.step_indices[finding.step] + 1) if i not in edit.removed]
    for i, message in zip(kept, edited.messages, strict=True):
        same = trace.messages[i].model_copy(update={"prompt_token_ids": None, "logprobs": None})
        assert i in named or message == same or message == trace.messages[i]
    tools = {r.index for r in edit.replacements if r.where == "tools" and r.old}
    assert all(t in edited.tools for i, t in enumerate(trace.tools) if i not in tools)
    assert edited.step(step).tool_calls == trace.step(finding.step).tool_calls
    # outside the edit the tokens agree: no more of them move than the edit has
    gone, come = moved(original.context_ids, made.context_ids)
    texts = [(r.old, r.new) for r in edit.replacements]
    text = "\n".join(
        json.dumps([m.content, [c.arguments_raw for c in m.tool_calls]])
        for m in (trace.messages[i] for i in edit.removed)
    )
    slack = 8 * (len(texts) + len(edit.removed)) + 8
    assert gone <= 4 * sum(len(renderer.encode(o)) for o, _ in texts) + 2 * len(renderer.encode(text)) + slack
    assert come <= 4 * sum(len(renderer.encode(n)) for _, n in texts) + slack
    # again, the same bytes
    assert TwinBuilder(renderer).build(trace, finding, edit, (0, 1)).model_dump_json() == made.model_dump_json()
    for i, r in enumerate(edit.replacements):
        if r.old:
            others = [*edit.replacements[:i], r.model_copy(update={"count": r.count + 1}), *edit.replacements[i + 1 :]]
            with pytest.raises(TwinError, match="occurs") as refused:
                builder.build(trace, finding, edit.model_copy(update={"replacements": tuple(others)}), (0, 1))
            assert refused.value.reason == "count"
    return made


@pytest.fixture(scope="module")
def toolworld() -> list[tuple[Trace, Finding]]:
    """Shipped traces with what the checks and the shipped file find in them; six findings of each class."""
    traces = {t.id: t for t in read_traces([TOOLWORLD / "traces.jsonl"]) if isinstance(t, Trace)}
    found = [(t, f) for t in traces.values() for f in RulesCritic(CHECKS).check(t).findings]
    for line in (TOOLWORLD / "findings.jsonl").read_text().splitlines():
        row = json.loads(line)
        trace = traces[row.pop("trace")]
        found.append((trace, Finding(**row)))
    by_class: dict[str, list] = {}
    for trace, finding in found:
        by_class.setdefault(finding.error_class, []).append((trace, finding))
    return [pair for some in by_class.values() for pair in some[:6]]


def test_toolworld_every_maker_and_kind(toolworld, student_renderer):
    rules, made = RulesCritic(CHECKS), set()
    for trace, finding in toolworld:
        edits = twin_edits(trace, finding)
        assert len({e.kind for e in edits}) == len(edits)
        for edit in edits:
            try:
                check(student_renderer, trace, finding, edit)
            except TwinError as error:
                assert error.reason == "not_shown" and edit.kind in ("describe", "schema")
                continue
            made.add((finding.error_class, edit.kind))
            edited, step = apply_edit(trace, finding.step, edit)
            found = [f for f in rules.check(edited).findings if f.step == step]
            assert not found or found[0].error_class == "repeated_failing_call", (edit, found)
    assert {c for c, _ in made} >= {"unknown_tool", "wrong_argument", "skipped_lookup", "ignored_error"}
    for error_class in ("unknown_tool", "wrong_argument", "skipped_lookup", "ignored_error"):
        assert len({k for c, k in made if c == error_class}) >= 3


@pytest.mark.parametrize("name", CASES)
def test_at_least_three_kinds_a_class_and_the_checks_are_clean(name):
    trace, finding = case_of(name)
    edits = twin_edits(trace, finding)
    assert len({e.kind for e in edits}) == len(edits) >= 3
    assert {e.kind for e in edits} <= set(TWIN_MAKERS.get(edits[0].maker).kinds)
    rules = RulesCritic(CHECKS)
    if not name.startswith(("skipped", "wrong_tool", "stopped")):
        assert [f.error_class for f in rules.check(trace).findings if f.step == finding.step] == [finding.error_class]
    for edit in edits:
        edited, step = apply_edit(trace, finding.step, edit)
        assert [f for f in rules.check(edited).findings if f.step == step] == [], edit


FAMILIES = {p.stem: p for p in published_templates()}
SOME = [n for n in ("qwen3", "llama3_1", "deepseekv3", "gptoss") if n in FAMILIES]


@pytest.mark.parametrize("template", [*(n for n in OWN_TEMPLATES if n != "strict_turns"), *SOME])
def test_on_other_chat_templates(template):
    path = FAMILIES.get(template, TEMPLATES / f"{template}.jinja")
    renderer = renderer_for(path.read_text(encoding="utf-8").rstrip("\n"))
    made, refused = {}, set()
    for name in CASES:
        trace, finding = case_of(name)
        try:
            renderer.step(trace, finding.step)
        except TemplateError:
            continue  # no step of such a trace can be rendered, with or without a twin
        for edit in twin_edits(trace, finding):
            try:
                check(renderer, trace, finding, edit)
                made.setdefault(name, set()).add(edit.kind)
            except TwinError as error:
                refused.add((name, edit.kind, error.reason))
    # a template that leaves out tools, or parts of their schemas, shows no change of them
    assert {reason for _, _, reason in refused} <= {"not_shown", "rerender_differs"}, refused
    differs = {r for r in refused if r[2] == "rerender_differs"}
    # DeepSeek V3 opens its calls otherwise below a tool result, so a step below none is printed otherwise
    assert differs <= (
        {("repeated_failing_call", "removed", "rerender_differs")} if template == "deepseekv3" else set()
    )
    assert len(made["ignored_error"]) >= 3 and len(made) >= 2


def test_the_order_of_kinds_is_drawn_by_the_seed_and_the_critics_edit_comes_first():
    trace, finding = case_of("unknown_tool")
    orders = {tuple(e.kind for e in twin_edits(trace, finding, seed)) for seed in range(12)}
    assert len(orders) > 3 and len({frozenset(o) for o in orders}) == 1
    assert twin_edits(trace, finding, 5) == twin_edits(trace, finding, 5)
    own = TwinEdit(kind="critic", replacements=(located(trace, 0, "Paris", "Rome"),), maker="llm")
    assert twin_edits(trace, finding.model_copy(update={"twin": own}))[0] == own


def test_a_class_without_a_maker_and_a_step_without_an_edit_say_so():
    trace, finding = case_of("ignored_error")
    for error_class, reason in (("policy_violation", "no_maker"), ("unknown_tool", "no_call")):
        with pytest.raises(TwinError) as refused:
            twin_edits(trace, finding.model_copy(update={"error_class": error_class}))
        assert refused.value.reason == reason


def test_an_ignored_error_without_a_stated_value_has_no_twin():
    trace, finding = case_of("ignored_error")
    for said in ("It is fine in Paris.", "The timeout is over."):
        other = trace.model_copy(update={"messages": (*trace.messages[:-1], Message(role="assistant", content=said))})
        with pytest.raises(TwinError) as refused:
            twin_edits(other, finding)
        assert refused.value.reason == "no_value"
    for edit in twin_edits(trace, finding):
        edited, _ = apply_edit(trace, finding.step, edit)
        assert "21" in edited.messages[3].content and "21" not in trace.messages[3].content


def test_earlier_steps_keep_recorded_ids_in_another_spelling(student_renderer):
    r = student_renderer
    messages = (SYSTEM, ASK, call("get_weather", '{"city":"Paris"}'), tool(FAILED), STEP)
    trace = Trace(id="t", messages=messages, tools=TOOLS)
    plain = r.step(trace, 1)
    first = r.step(trace, 0)
    # the first step as sampled: the same text, one token spelled as its characters
    at = next(i for i, t in enumerate(first.step_ids) if len(r.decode([t])) > 3 and r.decode([t]).isalpha())
    letters = [t for c in r.decode([first.step_ids[at]]) for t in r.encode(c)]
    sampled = (*first.step_ids[:at], *letters, *first.step_ids[at + 1 :])
    assert r.decode(sampled) == r.decode(first.step_ids) and sampled != first.step_ids
    start = len(first.context_ids)
    context = (*first.context_ids, *sampled, *plain.context_ids[start + len(first.step_ids) :])
    recorded = [
        *messages[:2],
        messages[2].model_copy(update={"prompt_token_ids": first.context_ids, "token_ids": sampled}),
        messages[3],
        STEP.model_copy(update={"prompt_token_ids": context, "token_ids": plain.step_ids}),
    ]
    trace = trace.model_copy(update={"messages": tuple(recorded)})
    finding = Finding(step=1, error_class="ignored_error")
    assert r.step(trace, 1).context_ids == context
    above = (Replacement(where="message", index=1, old="Paris", new="Paris today"),)
    for edit in twin_edits(trace, finding):
        both = edit.model_copy(update={"replacements": (*above, *edit.replacements)})
        for one in (edit, both):
            made = check(r, trace, finding, one)
            text = r.decode(made.context_ids)
            assert any(made.context_ids[i : i + len(sampled)] == sampled for i in range(len(made.context_ids)))
            assert "21" in text and ("Paris today" in text) == (one is both)
            edited, step = apply_edit(trace, 1, one)
            assert text == r.step(edited, step).opening.text


def test_what_is_not_where_the_template_prints_it_is_refused():
    original, recorded = (1, 2, 3, 4, 5), (1, 9, 9, 4, 5)
    edited, origin = (1, 2, 7, 4, 5), [0, 1, None, 3, 4]
    with pytest.raises(TwinError) as refused:
        onto_recorded(original, recorded, edited, origin)
    assert refused.value.reason == "recorded_differs"
    assert onto_recorded(original, recorded, (1, 2, 3, 4, 7, 5), [0, 1, 2, 3, None, 4]) == (1, 9, 9, 4, 7, 5)
    assert onto_recorded(original, recorded, (1, 5), [0, 4], loose=True) == (1, 5)


def test_ids_outside_the_edit_that_are_not_the_originals_are_refused():
    original, recorded, edited, origin = (1, 2, 3, 4, 5), (1, 2, 3, 8, 8, 5), (1, 7, 3, 4, 5), [0, None, 2, 3, 4]
    good = onto_recorded(original, recorded, edited, origin)
    assert good == (1, 7, 3, 8, 8, 5)
    require_kept(original, recorded, edited, origin, good)
    for context, what in (((9, *good[1:]), "above the first"), ((*good[:-1], 9), "below the last")):
        with pytest.raises(SpliceError, match=what):
            require_kept(original, recorded, edited, origin, context)
    with pytest.raises(SpliceError, match="a different id"):
        require_kept(original, recorded, (1, 7, 6, 4, 5), origin, good)
    with pytest.raises(SpliceError, match="a different order"):
        require_kept(original, recorded, (1, 7, 4, 3, 5), [0, None, 3, 2, 4], good)


def test_a_twin_of_every_template_and_talk_has_the_originals_ids_outside_the_edit():
    """Judged by the renders alone: the twin's context is the render of the edited talk, and differs in one short stretch."""
    made, refused = 0, set()
    for row in wheel_rows():
        if not isinstance(row.site, StepSite):
            continue
        step = len(row.trace.step_indices) - 1
        index = next(i for i, m in enumerate(row.trace.messages) if m.role == "user")
        edit = replace(index=index, old="weather in Paris", new="weather in Oslo today")
        try:
            twin = TwinBuilder(row.renderer).build(row.trace, Finding(step=step, error_class="x"), edit, (0, 1))
        except TwinError as error:
            refused.add((row.template, row.talk, error.reason))
            continue
        made += 1
        plain = row.site.rendered
        start, end, new_end = changed(plain.context_ids, twin.context_ids)
        assert twin.step_ids == plain.step_ids and max(end, new_end) - start <= 12
        edited, at = apply_edit(row.trace, step, edit)
        if "rewritten_history" not in plain.notes:
            asked = row.renderer.render(edited.before(at), edited.tools, header=True)
            assert list(twin.context_ids) == row.renderer.encode(asked), (row.template, row.talk)
    assert refused == set() and (made > 250 or not published_templates())


def replace(where="message", index=1, old="Paris", new="Rome", **more) -> TwinEdit:
    part = Replacement(where=where, index=index, old=old, new=new, **more)
    return TwinEdit(kind="given", replacements=(part,), maker="caller")


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (replace(old="London"), "count"),
        (replace(index=4), "beyond_step"),
        (replace(index=2, old="", new=" x"), "edits_a_step"),
        (replace(new="Paris"), "empty"),
        (TwinEdit(kind="given", maker="caller"), "empty"),
        (replace(where="tools", index=0, old='"city": {', new='"city" {'), "not_a_schema"),
        (replace(where="tools", index=0, old="", new=json.dumps(TIME)), "not_a_schema"),
        (replace(where="tools", index=7, old="a"), "count"),
        (replace(where="tools", index=0, old="The weather of a city.", new="Old."), "not_shown"),
        (replace(new="Rome<|im_end|>"), "control_tokens"),
        (TwinEdit(kind="given", removed=(2,), maker="caller"), "edits_a_step"),
        (TwinEdit(kind="given", removed=(3,), maker="caller"), "edits_a_step"),
        (TwinEdit(kind="given", removed=(4,), maker="caller"), "beyond_step"),
    ],
)
def test_edits_that_make_no_twin(edit, reason, student_renderer):
    trace, finding = case_of("ignored_error")
    with pytest.raises(TwinError) as refused:
        TwinBuilder(student_renderer).build(trace, finding, edit, (0, 1))
    assert refused.value.reason == reason


def test_a_template_that_changes_more_than_the_place_is_refused(student_renderer):
    source = str(student_renderer.tokenizer.chat_template)
    counts = "{{ messages[1].content | length }}|" + source
    renderer = renderer_for(counts)
    trace, finding = case_of("ignored_error")
    with pytest.raises(TwinError) as refused:
        TwinBuilder(renderer).build(trace, finding, replace(new="Rome and Oslo"), (0, 1))
    assert refused.value.reason == "rerender_differs"


def test_the_page_names_every_maker_kind_and_reason():
    page = (ROOT / "docs" / "twins.md").read_text(encoding="utf-8")
    for maker in TWIN_MAKERS.entries():
        for word in (maker.name, *maker.classes, *maker.kinds):
            assert f"`{word}`" in page, word
    assert all(f"`{reason}`" in page for reason in TWIN_REASONS)


def test_what_a_tool_does_to_the_world():
    reads = ("get_weather", "find_order", "track_order", "weather_lookup", "searchFlights", "list-files")
    changes = (
        "book_hotel",
        "send_mail",
        "pay_refund",
        "deleteUser",
        "get_and_delete",
        "find_or_create",
        "flight_booking_cancel",
    )
    assert {n for n in (*reads, *changes) if named_effect(n) == "reads"} == set(reads)
    assert {n for n in (*reads, *changes) if named_effect(n) == "changes"} == set(changes)
    assert named_effect("weather") == named_effect("do_it") == "unknown"
    said = {"function": {"name": "get_x", "effect": "write"}}
    assert (
        effect_of("get_x", [said]) == "changes" and effect_of("do_it", [{"name": "do_it", "effect": "read"}]) == "reads"
    )
    hint = {"function": {"name": "do_it"}, "annotations": {"readOnlyHint": True}}
    assert effect_of("do_it", [hint]) == "reads"
    assert effect_of("get_it", [{"name": "book_it"}]) == "changes"
