"""Every placement on chat templates of released models, in every kind of talk: the template's own ids, or an error by name."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT, TEMPLATES, published_templates
from support.template_matrix import HINT, TALKS, Row, broken, rows, templates_in, trace_of, wheel_rows

from hintdistill.config import InjectSection
from hintdistill.core.errors import HintdistillError, SpliceError, TemplateError
from hintdistill.core.types import Finding, Message
from hintdistill.injection.splice import Injector, Splice
from hintdistill.prompts import PromptLibrary

sys.path.insert(0, str(ROOT / "docs"))
from make_templates_page import wheel_page

pytestmark = pytest.mark.skipif(
    not published_templates(), reason="the trl wheel, which ships chat templates of released models, is not installed"
)
LIBRARY = PromptLibrary()


def row(template: str, talk: str) -> Row:
    return next(r for r in wheel_rows() if (r.template, r.talk) == (template, talk))


def test_the_page_is_what_the_code_does():
    assert (ROOT / "docs" / "templates.md").read_text(encoding="utf-8") == wheel_page(), "run `make docs`"


def test_the_invariants_hold_of_every_template_talk_and_placement():
    found = wheel_rows()
    assert len(found) == len(published_templates()) * len(TALKS) >= 300
    assert [(r.template, r.talk, what) for r in found for what in broken(r)] == []
    taken = [made for r in found for made in (*r.hints.values(), *r.placebos.values()) if isinstance(made, Splice)]
    assert len(taken) > 2000


def test_the_invariants_hold_of_templates_of_ones_own():
    found = list(rows(templates_in(TEMPLATES)))
    assert len(found) == len(templates_in(TEMPLATES)) * len(TALKS)
    assert [(r.template, r.talk, what) for r in found for what in broken(r)] == []


def test_most_templates_take_a_hint_in_three_places_in_a_talk_without_tools():
    found = [r for r in wheel_rows() if r.talk == "answer" and not isinstance(r.site, HintdistillError)]
    few = [r.template for r in found if sum(isinstance(m, Splice) for m in r.hints.values()) < 3]
    assert len(found) >= 35 and few == []


def test_an_invariant_that_is_broken_is_told():
    """The check itself: without the header that the template prints below a hint after a tool result, it must fail."""
    good = row("gemma4_v5", "after a call")
    made = good.hints["message, user"]
    assert good.site.rendered.header_ids == () and broken(good) == []
    header = len(good.renderer.encode("<|turn>model\n"))
    cut = Splice(made.insert_at, made.block_ids[:-header], "message", "user")
    bad = Row(good.template, good.talk, good.trace, good.renderer, good.site, {**good.hints, "message, user": cut})
    assert any("ends in" in what for what in broken(bad))
    # and the product itself refuses it
    with pytest.raises(SpliceError, match="after a call, step 1: the context with the hint differs from the template"):
        good.site._must_be_the_templates(Splice(cut.insert_at, cut.block_ids, "message", "user", (), made.own))


@pytest.mark.parametrize("talk", ["after a call", "parallel calls"])
@pytest.mark.parametrize("template", ["gemma4", "gemma4_v5", "deepseekv3"])
def test_the_header_below_a_hint_after_a_tool_result_belongs_to_the_block(template, talk):
    found = row(template, talk)
    assert found.site.rendered.header_ids == ()
    made = found.hints["message, user"]
    assert (
        found.renderer.decode(made.block_ids)
        .rstrip()
        .endswith(("<|turn>model", "<｜Assistant｜><think>", "<｜Assistant｜>"))
    )


@pytest.mark.parametrize("template", ["cohere", "cohere2", "gemma3"])
def test_a_hint_that_is_refused_above_the_step_is_that_of_a_minimal_talk(template):
    """Roles must alternate here: the ids above the step are those of a conversation of the hint alone, less its beginning."""
    found = row(template, "answer")
    with pytest.raises(TemplateError, match="must alternate"):
        found.renderer.render((*found.trace.before(0), Message(role="user", content=HINT)), (), header=True)
    made, context = found.hints["message, user"], found.site.rendered.context_ids
    assert made.notes == ("spliced_block", "minimal_talk")
    hinted = context[: made.insert_at] + made.block_ids + context[made.insert_at :]
    r, talk = found.renderer, (Message(role="user", content="x"), Message(role="assistant", content="y"))
    closed = r.render(talk, (), header=False)
    last = r.render((*talk, Message(role="user", content=HINT)), (), header=True).removeprefix(closed)
    assert list(hinted[-len(r.encode(last)) :]) == r.encode(last)
    assert hinted[: made.insert_at] == context[: made.insert_at] and r.tokenizer.bos_token_id not in hinted[1:]
    if template != "cohere2":  # which prints a preamble of its own above a talk without a system prompt
        alone = r.encode(r.render((Message(role="user", content=HINT),), (), header=True))
        assert alone[0] == r.tokenizer.bos_token_id and list(hinted[-len(alone) + 1 :]) == alone[1:]
    # wherever the template refuses the hint in its place, the block of a minimal talk is taken, or is refused as well
    refused = [m for r in wheel_rows() for m in r.hints.values() if isinstance(m, TemplateError)]
    assert not any("must alternate" in m.message for m in refused)


def test_a_system_prompt_that_is_the_templates_own_is_not_replaced():
    """Qwen2.5 writes a system prompt where none is given: a hint must not put that one away."""
    made = row("qwen2_5", "no system prompt").hints["system_prompt"]
    assert isinstance(made, TemplateError) and "replaces its own system prompt" in made.message
    with_own = row("qwen2_5", "after a call")
    context, made = with_own.site.rendered.context_ids, with_own.hints["system_prompt"]
    hinted = context[: made.insert_at] + made.block_ids + context[made.insert_at :]
    assert with_own.renderer.decode(hinted).startswith(f"<|im_start|>system\nBe brief.\n\n{HINT}")


def test_a_system_prompt_is_made_where_there_is_none():
    found = row("qwen3", "greeting first")
    made, context = found.hints["system_prompt"], found.site.rendered.context_ids
    hinted = context[: made.insert_at] + made.block_ids + context[made.insert_at :]
    assert found.renderer.decode(hinted).startswith(f"<|im_start|>system\n{HINT}<|im_end|>\n<|im_start|>assistant\n")


def test_assistant_turn_without_a_quote_is_right_below_the_header():
    r, trace = row("llama3_2", "second turn").renderer, trace_of("second turn")
    injector = Injector(
        r, LIBRARY, InjectSection(placements=("assistant_turn",), formats={"assistant_turn": "({hint}) "})
    )
    made = injector.inject(trace, Finding(step=1, error_class="x", hint=HINT))
    assert made.step_offset == 0 and made.insert_at == len(made.context_ids)
    assert r.decode(made.hinted_ids).endswith(f"({HINT}) {trace.messages[-1].content}<|eot_id|>")


@pytest.mark.parametrize("words", [" ", "\n\t"])
def test_a_hint_of_nothing_is_refused(words):
    finding = Finding(step=1, error_class="x", hint=words)
    with pytest.raises(SpliceError, match="tokenises to nothing"):
        Injector(row("llama3_2", "second turn").renderer, LIBRARY, InjectSection()).inject(
            trace_of("second turn"), finding
        )


def test_thinking_in_earlier_steps_that_a_template_drops_is_a_note():
    """Qwen3 drops reasoning above the last user message, Llama knows none, GLM keeps it."""
    assert "unprinted: reasoning of message 2" in row("llama3_1", "reasoning").site.rendered.notes
    kept = row("qwen3", "reasoning").site.rendered
    assert not any(n.startswith("unprinted: reasoning") for n in kept.notes)
    # a hint of its own above the step would make Qwen3 drop it: the block is spliced, and the reasoning is still read
    hint = row("qwen3", "reasoning").hints["message, user"]
    assert hint.notes == ("spliced_block",)
