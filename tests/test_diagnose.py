"""What went wrong and which hint would have prevented it: in one call, from whatever an agent holds as a conversation."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from conftest import STUDENT, TOOLWORLD

import hintdistill as hd
from hintdistill.agents.conversation import conversation, step_of
from hintdistill.config import CriticSection, RescoreSection
from hintdistill.core.errors import ArgumentError, ConfigError, TraceError
from hintdistill.core.types import Critique

pytestmark = pytest.mark.usefixtures("one_thread")

TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def loaded():
    return hd.load_engine(str(STUDENT), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def critic():
    return hd.load_critic(CriticSection(use=("rules",), prompts=str(TOOLWORLD / "prompts")))


@pytest.fixture(scope="module")
def failed(failed_call):
    """A conversation whose first call is of a tool that is not listed, as chat messages, and its tools."""
    return failed_call.messages, failed_call.tools, failed_call.name


class Dumps:
    """An object that knows `model_dump`, as the openai and anthropic packages' do."""

    def __init__(self, value):
        self.value = value

    def model_dump(self, mode="python", exclude_none=False):
        return {k: v for k, v in self.value.items() if not (exclude_none and v is None)}


def test_a_diagnosis_names_step_quote_and_the_hint_that_helps(loaded, critic, failed):
    messages, tools, wrong = failed
    found = hd.diagnose(messages, tools=tools, engine=loaded, critic=critic)
    best = found.best
    assert found.verdict == "findings" and best is found.findings[0]
    assert best.step == 0 and best.quote == wrong and best.accepted and best.reasons == ()
    assert best.odds > 2 and best.level in (0, 1, 2) and best.instead and best.instead not in wrong
    # the candidates compete: what the diagnosis gives first is the one that is chosen, and its figures are those of rank_hints
    assert len(best.hints) > 1 and best.hints[0].target.choice in ("only", "best")
    alone = hd.rescore(messages, hint=best.hint, quote=wrong, tools=tools, engine=loaded)
    assert np.abs(alone.hint_effect - best.hints[0].target.hint_effect).max() <= 1e-5
    assert best.twin is not None or best.twin_reason
    # one call of the engine, every token once
    again = asyncio.run(hd.diagnose_async(messages, tools=tools, engine=loaded, critic=critic, twins=False))
    assert again.best.hint == best.hint and again.best.twin is None
    assert len(loaded.engine.plans) == 1


def test_a_diagnosis_is_json(loaded, critic, failed):
    messages, tools, wrong = failed
    found = hd.diagnose(messages, tools=tools, engine=loaded, critic=critic)
    said = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    first = said["findings"][0]
    assert (first["step"], first["quote"], first["accepted"]) == (0, wrong, True)
    assert first["hint"] == found.best.hint and first["odds"] == pytest.approx(found.best.odds)
    assert first["instead"] == found.best.instead and first["hints"][0]["target"]["decision"]["token"]
    target = found.best.hints[0].target
    light, whole = target.to_dict(), json.loads(json.dumps(target.to_dict(distributions=True), allow_nan=False))
    assert "support_ids" not in light and light["hint_effect"] == target.hint_effect.tolist()
    assert np.array(whole["support_ids"]).shape == target.support_ids.shape
    nothing = np.array([[v is None for v in row] for row in whole["teacher_logprobs"]])
    assert (nothing == (target.support_ids < 0)).all()
    assert json.loads(json.dumps(found.best.hints[0].to_dict(), allow_nan=False))["accepted"] is True


def test_a_clean_conversation_and_findings_without_a_hint(loaded, failed):
    messages, tools, wrong = failed
    clean = [*messages[:-2], {"role": "assistant", "content": "Done."}]
    found = hd.diagnose(clean, tools=tools, engine=loaded)
    assert found.verdict == "none" and found.findings == () and found.best is None
    findings = [
        hd.Finding(step=0, error_class="odd", quote=wrong, hint="There is no such tool."),
        hd.Finding(step=0, error_class="nobody_has_a_template_for_this"),
        hd.Finding(step=0, error_class="odder", quote="not in the step", hint="Be careful."),
        hd.Finding(step=0, error_class="oddest", caused_by=0),
    ]
    critic = hd.load_critic(findings)
    found = hd.diagnose(messages, tools=tools, engine=loaded, critic=critic)
    reasons = {(f.finding.error_class, f.quote, f.finding.caused_by): f.reasons for f in found.findings}
    assert reasons["nobody_has_a_template_for_this", None, None] == ("no_hint",)
    assert reasons["odder", "not in the step", None] == ("quote_not_found",)
    assert reasons["oddest", None, 0] == ("consequence",)
    assert found.findings[0].hints and not any(f.hints for f in found.findings[1:])


def test_the_last_step_is_the_default_and_negative_steps_count_from_the_end(loaded, failed):
    messages, tools, _ = failed
    longer = [*messages, {"role": "assistant", "content": "There is no such tool."}]
    hint = "There is no such tool."
    last = hd.rescore(longer, hint=hint, tools=tools, engine=loaded)
    assert (
        last.step == 1
        and (last.step_ids == hd.rescore(longer, step=-1, hint=hint, tools=tools, engine=loaded).step_ids).all()
    )
    assert hd.rank_hints(longer, step=-2, hints=[hint], tools=tools, engine=loaded)[0].target.step == 0
    trace = conversation(longer, tools)
    assert [step_of(trace, k) for k in (None, -1, -2, 0, 1)] == [1, 1, 0, 0, 1]
    for wrong in (-3, 2):
        with pytest.raises(TraceError, match=r"steps 0\.\.1"):
            step_of(trace, wrong)
    with pytest.raises(TraceError, match="no step of the student"):
        step_of(conversation(messages[:-2]), None)
    *earlier, answer = trace.messages
    given = hd.Trace(id="given", messages=(*earlier, answer.model_copy(update={"given": True})))
    assert step_of(given, None) == 0
    # a trace whose tools are derived already takes others
    assert conversation(trace, [TOOL]).tool_schemas.keys() == {"look_up"} != trace.tool_schemas.keys()


def test_what_agents_hold_is_read_alike(loaded, failed):
    messages, tools, wrong = failed
    call, result = messages[-2]["tool_calls"][0]["function"], messages[-1]["content"]
    head = [{"role": m["role"], "content": m["content"]} for m in messages[:-2]]
    system, talk = [m["content"] for m in head if m["role"] == "system"], [m for m in head if m["role"] != "system"]
    items = [
        {"type": "function_call", "call_id": "1", "id": "x", "name": call["name"], "arguments": call["arguments"]},
        {"type": "function_call_output", "call_id": "1", "output": result},
    ]
    blocks = [
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "1", "name": call["name"], "input": json.loads(call["arguments"])}],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": result}]},
    ]
    ai = {
        "type": "ai",
        "content": "",
        "tool_calls": [{"id": "1", "name": call["name"], "args": json.loads(call["arguments"])}],
    }
    shapes = {
        "objects": [*head, Dumps({**messages[-2], "refusal": None}), messages[-1]],
        "typed": list(conversation(messages).messages),
        "responses": [*head, *items],
        "responses request": {"input": head, "output": [Dumps(items[0]), items[1]]},
        "anthropic": {"system": system[0] if system else None, "messages": [*talk, *blocks]},
        "langchain": [*head, Dumps(ai), Dumps({"type": "tool", "tool_call_id": "1", "content": result})],
    }
    plain = conversation(messages, tools)
    for name, shape in shapes.items():
        trace = conversation(shape, tools)
        assert [m.role for m in trace.messages] == [m.role for m in plain.messages], name
        assert trace.step(0).tool_calls[0].name == wrong and trace.tool_schemas == plain.tool_schemas, name
        found = hd.diagnose(shape, tools=tools, engine=loaded, twins=False)
        assert found.findings[0].quote == wrong, name
    flat = [{"type": "function", **t["function"]} for t in tools]
    assert conversation(messages, [Dumps(t) for t in flat]).tool_schemas == plain.tool_schemas


def test_wrong_types_are_named_and_a_string_is_never_read_letter_by_letter(loaded, failed):
    messages, _, _ = failed
    calls = [
        (
            lambda: hd.rank_hints(messages, hints="Be careful.", engine=loaded),
            "`hints` is a str, not a list of strings",
        ),
        (lambda: hd.rank_hints(messages, hints=["a", 3], engine=loaded), r"`hints\[1\]` is a int"),
        (lambda: hd.rescore("Hello", hint="x", engine=loaded), "`messages` is a str, not a list of messages"),
        (lambda: hd.rescore(messages, hint=["x"], engine=loaded), "`hint` is a list"),
        (lambda: hd.rescore(messages, hint="x", quote=b"x", engine=loaded), "`quote` is a bytes"),
        (lambda: hd.rescore(messages, hint=None, quote=7, engine=loaded), "`quote` is a int"),
        (lambda: hd.rescore(messages, hint="x", tools="[]", engine=loaded), "`tools` is a str"),
        (lambda: hd.rescore(messages, hint="x", step="0", engine=loaded), "`step` is '0'"),
        (lambda: hd.rescore(messages, hint="x", step=True, engine=loaded), "`step` is True"),
        (lambda: hd.rescore(messages, hint="x", engine=loaded.engine), "`engine` is a TransformersEngine"),
        (lambda: hd.diagnose([*messages, "and then?"], engine=loaded), f"message {len(messages)} is a str"),
        (lambda: hd.diagnose(None, engine=loaded), "`messages` is None"),
        (lambda: hd.diagnose(messages, engine=loaded, critic=3), "`critic` is a int"),
        (lambda: hd.twin(messages, edit="ab", engine=loaded), "`edit` must be a TwinEdit"),
    ]
    for call, said in calls:
        with pytest.raises(ArgumentError, match=said):
            call()
    with pytest.raises(TypeError):
        hd.rank_hints(messages, hints="Be careful.", engine=loaded)
    with pytest.raises(ConfigError, match="unknown critic"):
        hd.diagnose(messages, engine=loaded, critic="oracle")


def test_settings_that_a_call_would_not_hear_are_refused(loaded, failed):
    messages, _, _ = failed
    for section in (
        RescoreSection(part_rows=3),
        RescoreSection(batch_tokens=7),
        RescoreSection(engine={"timeout_s": 3.0}),
    ):
        for ask in (hd.rescore, hd.diagnose):
            with pytest.raises(ConfigError, match=r"have no effect in this call|config\.engine asks for"):
                ask(messages, engine=loaded, config=section, **({"hint": "x"} if ask is hd.rescore else {}))
    with pytest.raises(ConfigError, match=r"config\.placebos"):
        hd.rescore(messages, hint=None, engine=loaded, config=RescoreSection(placebos={"generic": 4}))
    assert hd.rescore(messages, hint=None, engine=loaded, config=RescoreSection(top_k=3)).support_ids.shape[1] <= 4


def test_critics_of_ones_own_are_asked(loaded, failed):
    messages, tools, wrong = failed

    class Mine:
        name = "mine"

        def critique(self, traces):
            for trace in traces:
                finding = hd.Finding(step=0, error_class="mine", quote=wrong, hint="There is no such tool.")
                yield trace, Critique(trace_id=trace.id, verdict="findings", findings=(finding,), critics=("mine",))

    found = hd.diagnose(messages, tools=tools, engine=loaded, critic=Mine())
    assert found.critics == ("mine",) and found.findings[0].finding.error_class == "mine"

    class Fails(Mine):
        def critique(self, traces):
            for trace in traces:
                yield trace, TraceError("cannot read this")

    with pytest.raises(TraceError, match="cannot read this"):
        hd.diagnose(messages, tools=tools, engine=loaded, critic=Fails())
