"""Several findings, twins, given turns and rewritten history in one trace: each view is what a separate forward of it says."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import TIME, WEATHER, call, tool

from hintdistill.config import InjectSection, RescoreSection, TrainSection
from hintdistill.core.errors import TwinError
from hintdistill.core.types import Finding, Message, Trace, Twin
from hintdistill.injection.rendering import Renderer
from hintdistill.injection.splice import Injector
from hintdistill.injection.twin_makers import twin_edits
from hintdistill.injection.twins import TwinBuilder
from hintdistill.prompts import PromptLibrary
from hintdistill.rescoring.scorer import HintItem, Scorer
from hintdistill.rescoring.twins import TwinItem
from hintdistill.training.rows import build_rows

pytestmark = pytest.mark.usefixtures("one_thread")


def thinking(message: Message, thought: str) -> Message:
    return message.model_copy(update={"reasoning": thought})


TRACE = Trace(
    id="everything",
    messages=(
        Message(role="system", content="Be brief."),
        Message(role="assistant", content="Hello, I know the weather.", given=True),
        Message(role="user", content="What is the weather in Paris?"),
        thinking(call("get_forecast", '{"city": "Paris"}'), "I need the forecast."),
        tool('{"error":"unknown tool get_forecast"}', name="get_forecast"),
        Message(role="assistant", content="One moment.", given=True),
        Message(role="user", content="And the time in Rome?"),
        thinking(call("get_time", '{"place": "Rome"}'), "Now the time."),
        tool('{"error":"missing city"}', name="get_time"),
        Message(role="assistant", content="It is 21 degrees in Rome."),
    ),
    tools=(WEATHER, TIME),
)
FINDINGS = (
    Finding(
        step=1,
        error_class="unknown_tool",
        quote="get_forecast",
        hint="Use get_weather.",
        facts={"right": "get_weather"},
    ),
    Finding(step=1, error_class="other", quote="I need the forecast.", hint="Look at the list of tools."),
    Finding(step=3, error_class="wrong_argument", quote="place", hint="The argument is called city."),
    Finding(step=4, error_class="ignored_error", quote="21", hint="The last result is an error."),
)


LAST_QUESTION = (
    "{%- set ns = namespace(last=-1) -%}{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
)
THOUGHT = "{% if message.reasoning_content and loop.index0 > ns.last %}{{ message.reasoning_content }}\n{% endif %}"
"""Put into the shipped template: what was thought above the last question is left out."""


def first_twin(builder: TwinBuilder, finding: Finding, span: tuple[int, int]) -> Twin:
    """The first edit whose changes this template prints all of."""
    for edit in twin_edits(TRACE, finding):
        try:
            return builder.build(TRACE, finding, edit, span)
        except TwinError as error:
            assert error.reason == "not_shown"
    raise AssertionError(f"no twin of {finding.error_class}")


@pytest.fixture(scope="module")
def made(student_engine, student_renderer):
    text = str(student_renderer.tokenizer.chat_template)
    turn = "<|im_start|>{{ message.role }}\n"
    assert turn in text
    renderer = Renderer(student_renderer.tokenizer, template=LAST_QUESTION + text.replace(turn, turn + THOUGHT))
    injector, builder = Injector(renderer, PromptLibrary(), InjectSection()), TwinBuilder(renderer)
    hints, twins = [], []
    for n, finding in enumerate(FINDINGS):
        injection = injector.inject(TRACE, finding)
        hints.append(HintItem(f"hint {n}", injection, "train"))
        if finding.error_class != "other":
            twin = first_twin(builder, finding, injection.span)
            twins.append(TwinItem(f"twin {n}", twin, "train", f"hint {n}"))
    scorer = Scorer(student_engine, renderer, RescoreSection(top_k=8))
    return renderer, hints, twins, scorer.score(hints, twins)


def test_the_trace_is_of_every_kind(made):
    renderer, hints, twins, _ = made
    assert TRACE.own_steps == (1, 3, 4) and TRACE.given_steps == {0, 2}
    contexts = {h.injection.finding.step: h.injection.context_ids for h in hints}
    plain = {h.injection.finding.step: h.injection.plain_ids for h in hints}
    # the template leaves out what was thought above the last question, so the third step is below another history
    assert contexts[3][: len(plain[1])] != plain[1] and "I need" not in renderer.decode(contexts[3])
    assert contexts[4][: len(plain[3])] == plain[3]
    assert "spliced_block" in hints[3].injection.notes and len(twins) == 3
    # given turns are read like any other
    assert all(said in renderer.decode(contexts[4]) for said in ("Hello, I know the weather.", "One moment."))


def test_each_view_is_what_a_separate_forward_says(made, student_engine):
    _, hints, twins, targets = made
    by_key = {t.key: t for t in targets}
    assert len(by_key) == len(targets) == len(hints) + len(twins)

    def alone(ids: tuple[int, ...], n: int) -> np.ndarray:
        row = torch.tensor([ids])
        with torch.no_grad():
            logp = student_engine.model(row).logits[0].log_softmax(-1)
        return logp[-n - 1 : -1].gather(1, row[0, -n:, None])[:, 0].numpy()

    for item in hints:
        i, target = item.injection, by_key[item.key]
        n = len(i.step_ids)
        assert i.hinted_ids == i.plain_ids[: i.insert_at] + i.block_ids + i.plain_ids[i.insert_at :]
        np.testing.assert_allclose(target.plain_sampled, alone(i.plain_ids, n), atol=2e-5)
        np.testing.assert_allclose(target.teacher_sampled, alone(i.hinted_ids, n), atol=2e-5)
    for item in twins:
        target = by_key[item.key]
        np.testing.assert_allclose(target.plain_sampled, alone(item.twin.plain_ids, len(item.twin.step_ids)), atol=2e-5)


def test_rows_of_training_hold_the_sampled_steps_and_no_given_turn(made):
    renderer, hints, _, targets = made
    kept = [t for t in targets if t.kind == "hint"]
    rows = build_rows(kept, TrainSection())
    assert sum(len(r.slots) for r in rows) == len(hints) and len(rows) >= 2
    for row in rows:
        for slot in row.slots:
            assert row.ids[slot.start : slot.start + slot.length].equal(slot.sampled)
            said = renderer.decode(slot.sampled.tolist())
            assert "Hello" not in said and "One moment" not in said
        ends = sorted((s.start, s.start + s.length) for s in row.slots)
        assert all(a == b or a[1] <= b[0] for a, b in pairwise(ends))
