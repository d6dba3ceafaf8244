"""Where a step's reasoning ends, in tokens: known from words and marks of the step's own tokens, or said to be unknown."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import TEMPLATES, TIME, WEATHER, call, renderer_for, tool
from support.flat_recipe import train_section
from support.stored_targets import make_target
from support.template_matrix import wheel_rows

from hintdistill.bridges.runs import require_no_action_span
from hintdistill.config import InjectSection, TrainSection
from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError, HintdistillError, InputError
from hintdistill.core.types import UNKNOWN_ACTION, Finding, Message, Replacement, ToolCall, Trace, TwinEdit
from hintdistill.injection.action import below
from hintdistill.injection.splice import Injector
from hintdistill.injection.twins import TwinBuilder
from hintdistill.pipeline import train
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.prompts import PromptLibrary
from hintdistill.rescoring.store import TargetStore
from hintdistill.training.slots import loss_weights

LIBRARY = PromptLibrary()
ASK = Message(role="user", content="Is it late in Paris?")
SEEN = tool("sunny")
STRIPS = "drops_thinking.jinja"
"""Prints reasoning below the last question alone."""


def said(where: str, thought: str, words: str = "", *calls: ToolCall) -> Message:
    """A step whose reasoning stands in its field, in its content, or nowhere."""
    if where == "field":
        return Message(role="assistant", content=words or None, reasoning=thought, tool_calls=calls)
    inline = f"<think>\n{thought}\n</think>\n\n{words}" if where == "content" else words
    return Message(role="assistant", content=inline or None, tool_calls=calls)


def template(name: str):
    return renderer_for((TEMPLATES / name).read_text(encoding="utf-8"))


def parts(renderer, step) -> tuple[str, str]:
    """Reasoning and action of a rendered step, as text."""
    assert step.action_start is not None and step.action_start >= 0
    return renderer.decode(step.step_ids[: step.action_start]), renderer.decode(step.step_ids[step.action_start :])


TALK = {
    where: Trace(
        id=where,
        messages=(
            ASK,
            said(where, "An early thought.", "", ToolCall(name="get_weather", arguments_raw='{"city": "Paris"}')),
            SEEN,
            said(where, "The sun is up there.", "It is noon."),
            ASK,
            said(where, "I have to look.", "", ToolCall(name="get_time", arguments_raw='{"city": "Paris"}')),
        ),
        tools=(WEATHER, TIME),
    )
    for where in ("field", "content", "nowhere")
}


@pytest.mark.parametrize("where", TALK)
def test_field_and_content_under_a_template_that_strips_earlier_reasoning(where):
    r, trace = template(STRIPS), TALK[where]
    thoughts = ("An early thought.", "The sun is up there.", "I have to look.")
    for k, (thought, action) in enumerate(zip(thoughts, ("get_weather", "It is noon.", "get_time"), strict=True)):
        step = r.step(trace, k)
        above, own = parts(r, step)
        if where == "nowhere":
            assert step.action_start == 0 and action in own
            continue
        assert above.rstrip() == f"<think>\n{thought}\n</think>" and thought not in own and action in own
    # what was thought above the last question is stripped, which moves no boundary of the step
    assert ("An early thought." in r.decode(r.step(trace, 2).context_ids)) == (where == "content")


@pytest.mark.parametrize("where", ["field", "content"])
@pytest.mark.parametrize("placement", ["message", "observation", "assistant_turn"])
def test_a_hint_above_the_turn_or_inside_it_keeps_the_boundary(where, placement):
    r, trace = template(STRIPS), TALK[where]
    injector = Injector(r, LIBRARY, InjectSection(placements=(placement,)))
    for quote in ("get_time", "have to"):
        finding = Finding(step=2, error_class="wrong_tool", hint="Use the tool get_time.", quote=quote)
        made, whole = injector.inject(trace, finding), r.step(trace, 2)
        start = made.action_start
        # the same token begins the action, or it stands above the hint and everything below it is action
        assert start == max(0, whole.action_start - made.step_offset)
        assert (made.step_offset > 0) == (placement == "assistant_turn")


def test_a_twin_has_the_boundary_of_its_step():
    r = template(STRIPS)
    trace, finding = TALK["field"], Finding(step=2, error_class="wrong_argument", quote="Paris")
    other = Replacement(where="message", index=4, old="Paris", new="Rome")
    step = r.step(trace, 2)
    edit = TwinEdit(kind="elsewhere", replacements=(other,), maker="test")
    twin = TwinBuilder(r).build(trace, finding, edit, (0, len(step.step_ids)))
    assert twin.step_ids == step.step_ids and twin.action_start == step.action_start > 0


def test_recorded_ids_are_read_as_they_are():
    """Reasoning that the trace's message does not hold, and a header that has opened the block already."""
    r = template(STRIPS)
    ids = tuple(r.encode("so it is\n</think>\n\nIt is noon.<|im_end|>"))
    bare = Message(role="assistant", content="It is noon.", token_ids=ids)
    for message in (bare, bare.model_copy(update={"reasoning": "so it is"})):
        step = r.step(Trace(id="t", messages=(ASK, message)), 0)
        assert step.step_ids == ids and parts(r, step) == ("so it is\n</think>\n\n", "It is noon.<|im_end|>")


UNTELLABLE = {
    "reasoning alone": "<think>\nso it is\n</think>\n\n",
    "two blocks": "<think>\nso it is\n</think>\nhm\n<think>\nor not\n</think>\n\nIt is noon.",
    "other words": "<think>\nso it might be\n</think>\nIt is noon.</think>",
    "a block without an end": "<think>\nIt is noon.",
}


@pytest.mark.parametrize("name", UNTELLABLE)
def test_what_cannot_be_told_is_unknown_and_never_a_guess(name):
    r = template(STRIPS)
    content = "" if name == "reasoning alone" else "It is noon."
    message = Message(
        role="assistant", content=content, reasoning="so it is", token_ids=tuple(r.encode(UNTELLABLE[name]))
    )
    assert r.step(Trace(id="t", messages=(ASK, message)), 0).action_start == UNKNOWN_ACTION


def test_a_token_across_the_boundary_is_unknown():
    """A template without marks, under which the last sign of the reasoning and the first of the action are one token."""
    r = renderer_for(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.reasoning_content or '' }}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )

    def step(thought, words):
        return r.step(Trace(id="t", messages=(ASK, said("field", thought, words))), 0)

    assert parts(r, step("It is late.\n", "Noon.")) == ("It is late.\n", "Noon.<|im_end|>")
    joined = step("thin", "king of it")
    assert not any(start == 4 for start, _ in r.token_spans(joined.step_ids)[1])
    assert joined.action_start == UNKNOWN_ACTION


def test_marks_inside_arguments_and_contents_are_words():
    r = template(STRIPS)
    odd = ToolCall(name="get_time", arguments_raw='{"city": "</think> Paris"}')
    step = r.step(Trace(id="t", messages=(ASK, said("field", "A city of marks.", "", odd)), tools=(TIME,)), 0)
    assert parts(r, step)[0].rstrip() == "<think>\nA city of marks.\n</think>"


def test_every_template_of_the_wheel_says_where_reasoning_ends_or_that_it_cannot_tell():
    """Whatever is printed of the reasoning stands above the boundary, and every call and content below it."""
    known = unknown = 0
    for row in wheel_rows():
        if isinstance(row.site, HintdistillError):
            continue
        step, message = row.site.rendered, row.trace.step(row.site.step)
        if step.action_start == UNKNOWN_ACTION:
            unknown += 1
            continue
        known += 1
        own = row.renderer.decode(step.step_ids[step.action_start :])
        assert all(c.name in own for c in message.tool_calls) and (message.content or "").strip() in own
        assert not message.reasoning or message.reasoning not in own
        assert message.reasoning or step.action_start == 0 or "think" in row.renderer.decode(step.step_ids)
    assert known > 150 and unknown < 10, (known, unknown)


# -- the loss ------------------------------------------------------------------------------------------------------------


def test_the_loss_span_is_the_action_alone_on_hints_and_on_what_is_held():
    section = train_section(loss_span="action", anchor={"weight": 2.0})
    terms = section.effective_recipe.terms
    target = make_target(action_start=1)
    assert loss_weights(target, terms["distill"]).tolist() == [0.0, 1.0]
    held = terms["anchor"].model_copy(update={"span": "action", "min_probability": 0.001})
    assert loss_weights(make_target(kind="anchor", action_start=1), held).tolist() == [0.0, 1.0]
    # of a twin the quote is held whatever its probability, as far as it is action
    twin = held.model_copy(update={"rows": "twin", "min_probability": 0.5})
    assert loss_weights(make_target(kind="twin", action_start=1, span=(0, 2)), twin).tolist() == [0.0, 1.0]
    assert np.array_equal(loss_weights(target, terms["distill"].model_copy(update={"span": "step"})), [1.0, 1.0])


@pytest.mark.parametrize(
    ("start", "said"), [(None, "earlier release"), (UNKNOWN_ACTION, "cannot be found in its tokens")]
)
def test_a_boundary_that_is_not_known_is_an_error_by_name(start, said):
    term = train_section(loss_span="action").effective_recipe.terms["distill"]
    with pytest.raises(InputError, match=f"trace trace é, step 2 .*loss span `action`.*{said}"):
        loss_weights(make_target(action_start=start), term)
    assert loss_weights(make_target(action_start=start), term.model_copy(update={"span": "step"})).all()


def test_a_bridge_that_weighs_quotes_refuses_the_span_by_name():
    require_no_action_span(TrainSection(), "this bridge")
    with pytest.raises(
        ConfigError,
        match=r"terms\.distill\.span=action excludes reasoning from the loss, but this bridge weights the quoted",
    ):
        require_no_action_span(train_section(loss_span="action"), "this bridge")


def test_the_boundary_moves_with_the_tokens_above_a_hint_inside_the_turn():
    assert [below(s, 4) for s in (None, UNKNOWN_ACTION, 0, 3, 9)] == [None, UNKNOWN_ACTION, 0, 0, 5]


def test_a_call_helper_without_reasoning_is_action_from_its_first_token():
    r = template(STRIPS)
    step = r.step(Trace(id="t", messages=(ASK, call("get_time", '{"city": "Paris"}')), tools=(TIME,)), 0)
    assert step.action_start == 0


def test_targets_without_a_known_boundary_are_left_out_of_a_training_that_needs_it_and_counted(tmp_path):
    store = TargetStore(tmp_path / "targets")
    usable = {"split": "train", "accepted": True, "reasons": (), "fidelity": "ids"}
    store.append([make_target(str(start), action_start=start, **usable) for start in (0, 1, UNKNOWN_ACTION)])
    store.append([make_target("held", kind="anchor", action_start=UNKNOWN_ACTION, **usable)])
    said: list[str] = []
    for span, keys in (("step", {"0", "1", "-1", "held"}), ("action", {"0", "1", "held"})):
        settings = ["run.model=m", "traces.path=x", f"train.recipe.terms.distill.span={span}"]
        ctx = RunContext(load_config(None, settings), RunDir(tmp_path), Console(quiet=True))
        ctx.console.warn = said.append
        assert {t.key for t in train.selected(ctx, store.open()).heads} == keys
        train.warn_if_actions_are_unknown(ctx, store.open())
    assert len(said) == 1 and "1 accepted targets are left out (1 of kind hint)" in said[0]


def test_a_store_of_an_earlier_release_is_read_and_says_nothing_of_actions(tmp_path):
    store = TargetStore(tmp_path)
    store.append([make_target(action_start=1)])
    (part,) = store.parts()
    pq.write_table(pq.read_table(part).drop_columns(["action_start"]), part)
    assert next(store.read()).action_start is None and store.heads(part)[0].action_start is None
