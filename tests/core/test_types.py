"""The boundary types refuse what cannot be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hintdistill.core.types import Critique, Finding, Message, ToolCall, Trace


@given(st.text())
def test_arguments_are_derived_and_the_raw_string_stays(raw):
    call = ToolCall(name="f", arguments_raw=raw)
    assert call.arguments_raw == raw
    assert call.arguments is None or isinstance(call.arguments, dict)


def test_deep_arguments_do_not_crash():
    assert ToolCall(name="f", arguments_raw="[" * 100_000).arguments is None


def test_empty_token_ids_mean_absent():
    message = Message(role="assistant", prompt_token_ids=(), token_ids=(), logprobs=())
    assert message.prompt_token_ids is message.token_ids is message.logprobs is None


def test_logprobs_pair_with_ids():
    with pytest.raises(ValidationError, match="2 log-probabilities for 1 token ids"):
        Message(role="assistant", token_ids=(1,), logprobs=(0.0, -1.0))


def test_steps_are_assistant_messages(weather_trace):
    assert weather_trace.step_indices == (2, 4)
    assert weather_trace.step(1).content.startswith("It is 21")
    assert len(weather_trace.before(1)) == 4
    with pytest.raises(IndexError, match=r"steps 0\.\.1, not 2"):
        weather_trace.step(2)


def test_records_are_frozen_and_closed():
    with pytest.raises(ValidationError):
        Message(role="assistant", colour="red")
    with pytest.raises(ValidationError):
        Message(role="assistant").role = "user"


def test_verdict_fits_the_findings():
    with pytest.raises(ValidationError, match="verdict 'none' with 1 findings"):
        Critique(trace_id="t", verdict="none", findings=(Finding(step=0, error_class="x"),))
    with pytest.raises(ValidationError, match="verdict 'findings' with 0 findings"):
        Critique(trace_id="t", verdict="findings")


def test_tool_schemas_by_name(weather_trace):
    assert set(weather_trace.tool_schemas) == {"get_weather", "get_time"}
    assert Trace(id="t", messages=(), tools=({"name": "bare", "parameters": {"type": "object"}},)).tool_schemas == {
        "bare": {"type": "object"}
    }
