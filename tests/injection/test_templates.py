"""Every placement on chat templates of released models: token-exact, or the error that the page names."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT, published_templates, renderer_for

from hintdistill.core.errors import HintdistillError, SpliceError
from hintdistill.core.types import Finding, Injection
from hintdistill.injection.splice import Injector
from hintdistill.prompts import shipped_library

sys.path.insert(0, str(ROOT / "docs"))
from make_templates_page import FAMILIES, HINT, PLACES, TALKS, outcome, page, talk_for, template_file

pytestmark = pytest.mark.skipif(
    not published_templates(), reason="the trl wheel, which ships chat templates of released models, is not installed"
)
RENDERERS: dict[str, object] = {}


def renderer(family: str):
    if family not in RENDERERS:
        RENDERERS[family] = renderer_for(template_file(FAMILIES[family]).read_text(encoding="utf-8"))
    return RENDERERS[family]


def test_the_page_is_what_the_code_does():
    assert (ROOT / "docs" / "templates.md").read_text(encoding="utf-8") == page(), "run `make docs`"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_placement_is_one_insertion_of_tokens(family):
    r = renderer(family)
    trace = TALKS[talk_for(r)]
    last = len(trace.step_indices) - 1
    rendered = r.step(trace, last)
    plain = rendered.context_ids + rendered.step_ids
    taken = 0
    for name, settings in PLACES:
        made = outcome(r, trace, dict(settings))
        if isinstance(made, HintdistillError):
            assert made.message.startswith(f"trace {trace.id}, step {last}: no placement for a hint"), name
            continue
        taken += 1
        assert made.plain_ids == plain
        assert made.hinted_ids == plain[: made.insert_at] + made.block_ids + plain[made.insert_at :]
        assert HINT in r.decode(made.block_ids)
        start, end = made.span
        assert "sunny" in r.decode(made.step_ids[start:end])
        if name == "system_prompt":
            # the block stands above every message of the talk
            assert "weather in Paris" not in r.decode(plain[: made.insert_at])
            assert made.insert_at < len(rendered.context_ids) - len(rendered.header_ids)
        if name == "assistant_turn":
            above = r.decode(made.hinted_ids[: made.insert_at])
            assert above.endswith(("Paris is", "Paris is ")), above[-30:]
            assert made.step_offset == len(rendered.step_ids) - len(made.step_ids) > 0 and start == 0
        if name == "observation":
            assert made.insert_at < len(plain) - len(rendered.step_ids)
    assert taken >= 3


def test_a_system_prompt_that_is_the_templates_own_is_not_replaced():
    """Qwen2.5 writes a system prompt where none is given: a hint must not put that one away."""
    r = renderer("Qwen2.5")
    made = outcome(r, TALKS["chat"], {"placements": ("system_prompt",)})
    assert isinstance(made, HintdistillError)
    assert "replaces a system prompt of its own" in made.message
    with_own = outcome(r, TALKS["tools"], {"placements": ("system_prompt",)})
    assert isinstance(with_own, Injection)
    assert r.decode(with_own.hinted_context_ids).startswith(f"<|im_start|>system\nBe brief.\n\n{HINT}")


def test_a_system_prompt_is_made_where_there_is_none():
    r = renderer("Qwen3 (drops earlier thinking)")
    made = outcome(r, TALKS["chat"], {"placements": ("system_prompt",)})
    assert isinstance(made, Injection)
    assert r.decode(made.hinted_context_ids).startswith(f"<|im_start|>system\n{HINT}<|im_end|>\n<|im_start|>user\n")


def test_assistant_turn_without_a_quote_is_right_below_the_header():
    r = renderer("Llama 3.2")
    finding = Finding(step=1, error_class="x", hint=HINT)
    from hintdistill.config import InjectSection

    injector = Injector(
        r, shipped_library(), InjectSection(placements=("assistant_turn",), formats={"assistant_turn": "({hint}) "})
    )
    made = injector.inject(TALKS["chat"], finding)
    assert made.step_offset == 0 and made.insert_at == len(made.context_ids)
    assert r.decode(made.hinted_ids).endswith(f"({HINT}) {TALKS['chat'].messages[-1].content}<|eot_id|>")


@pytest.mark.parametrize("words", [" ", "\n\t"])
def test_a_hint_of_nothing_is_refused(words):
    finding = Finding(step=1, error_class="x", hint=words)
    from hintdistill.config import InjectSection

    with pytest.raises(SpliceError, match="tokenises to nothing"):
        Injector(renderer("Llama 3.2"), shipped_library(), InjectSection()).inject(TALKS["chat"], finding)
