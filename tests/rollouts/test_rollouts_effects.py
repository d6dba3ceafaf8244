"""Calls by what tools do: counted in episodes of the shipped world, compared before and after."""

from __future__ import annotations

import pytest
from conftest import call, tool
from world import Toolworld

from hintdistill.core.types import Message, Trace
from hintdistill.rollouts.evaluate import Evaluation, Outcome, calls_by_effect, lost_changes, outcome_of, summarise
from hintdistill.rollouts.sampling import Episode

pytestmark = pytest.mark.usefixtures("one_thread")
USER = Message(role="user", content="Book it.")


def test_calls_are_counted_by_what_the_tool_does_and_shown_ones_are_not() -> None:
    shown = call("book", "{}").model_copy(update={"given": True})
    failed = (call("book", "{}"), tool('{"error": "full"}', name="book"))
    messages = (
        USER,
        shown,
        tool("ok"),
        call("find", "{}"),
        tool("[1]"),
        *failed,
        call("book", "{}"),
        tool("ok"),
        call("odd", "{}"),
    )
    trace = Trace(id="t", messages=messages, tool_effects={"book": "changes", "find": "reads"})
    assert calls_by_effect(trace) == {"reads": [1, 0], "changes": [2, 1]}
    outcome = outcome_of(Toolworld(), Episode("t", trace))
    found = summarise([outcome, Outcome("other", True, ())])
    assert found.tools["changes"] == {"calls": 1.0, "successful": 0.5, "error_rate": 0.5}
    assert found.tools["reads"]["error_rate"] == 0.0
    assert summarise([Outcome("other", True, ())]).tools == {}


def test_a_loss_of_state_changing_calls_is_found_and_bounded() -> None:
    def did(successful: float | None) -> Evaluation:
        tools = {} if successful is None else {"changes": {"calls": 1.0, "successful": successful, "error_rate": 0.0}}
        return Evaluation(10, 0.5, 0.0, {}, {}, tools)

    assert lost_changes(did(0.8), did(0.5), 0.5) is None and lost_changes(did(0.8), did(0.1), None) is None
    said = lost_changes(did(0.8), did(0.2), 0.5)
    assert said is not None and "fell by 75%, from 0.8 to 0.2 per episode" in said and "max_changes_drop" in said
    assert lost_changes(did(0.8), did(None), 0.5) is not None, "no call at all is the largest fall"
    assert lost_changes(did(None), did(0.2), 0.5) is None
