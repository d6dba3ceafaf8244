"""Twins of a step that ends its task too early: what the request no longer wants, and what was found later in the same trace."""

from __future__ import annotations

import json

import pytest
from conftest import call, tool

from hintdistill.core.errors import TwinError
from hintdistill.core.types import Finding, Message, Trace
from hintdistill.injection.twin_makers import TwinCase, twin_edits
from hintdistill.injection.twin_stops import missing_things, smallest_change, without_things
from hintdistill.injection.twins import apply_edit

THREE = "I need a box, a map and a bell in Porto."


def said(role: str, content: str) -> Message:
    return Message(role=role, content=content)


def case(*later: Message, request: str = THREE, found: str = '{"box": "A1"}', facts=None, step="Done.") -> TwinCase:
    """A box was looked up, then the step ends the errand; `later` is what follows."""
    messages = (said("user", request), call("find_box", "{}"), tool(found), said("assistant", step), *later)
    facts = {"missing": ["map", "bell"]} if facts is None else facts
    return TwinCase(Trace(id="t", messages=messages), Finding(step=1, error_class="stopped_early", facts=facts))


MAP = (said("user", "What about the map?"), call("find_map", "{}"), tool('{"map": "B2"}'))
BELL = (said("user", "What about the bell?"), call("find_bell", "{}"), tool('{"place": "C3"}'))


def edited(made: TwinCase) -> dict[str, list[str]]:
    """The texts above the step under each kind of edit."""
    edits = twin_edits(made.trace, made.finding)
    return {e.kind: [m.content or "" for m in apply_edit(made.trace, 1, e)[0].messages] for e in edits}


@pytest.mark.parametrize(
    ("request_", "things", "left"),
    [
        (THREE, ["box"], "I need a map and a bell in Porto."),
        (THREE, ["map"], "I need a box and a bell in Porto."),
        (THREE, ["bell"], "I need a box and a map in Porto."),
        (THREE, ["box", "bell"], "I need a map in Porto."),
        (THREE, ["map", "bell"], "I need a box in Porto."),
        (THREE, ["bell", "map"], "I need a box in Porto."),
        ("Find a box or a map.", ["map"], "Find a box."),
        ("In Oslo, I need the old park and a bench.", ["bench"], "In Oslo, I need the old park."),
        ("Get my car, the bus, and the old van now.", ["old van"], "Get my car, and the bus now."),
        # nothing is left, no list, no other item beside it, not by itself an item, more than once
        (THREE, ["box", "map", "bell"], None),
        ("I need a bank.", ["bank"], None),
        ("I need a bank, please.", ["bank"], None),
        ("Find a bus and a station in Oslo.", ["sta"], None),
        ("Find parks and zoos.", ["zoos"], None),
        ("Find a box and a map, then sell the map.", ["map"], None),
    ],
)
def test_a_request_without_what_is_missing_is_still_a_sentence(request_, things, left):
    assert without_things(request_, things) == left
    if left is not None:
        (change,) = smallest_change(request_, left, 3)
        assert request_.count(change.old) == change.count == 1 and change.index == 3
        assert request_.replace(change.old, change.new) == left


def test_the_request_wants_less():
    texts = edited(case())
    assert set(texts) == {"unasked", "waived", "had"}
    assert texts["unasked"][0] == "I need a box in Porto."
    assert texts["waived"][0] == THREE + " The map and the bell are not needed."
    assert texts["had"][0] == THREE + " I have the map and the bell."
    assert edited(case(facts={"thing": "map"}))["waived"][0].endswith(" The map is not needed.")


def test_an_observation_holds_what_the_trace_finds_later_and_nothing_else():
    texts = edited(case(*MAP, *BELL))
    assert set(texts) == {"unasked", "waived", "had", "observation", "nested", "done"}
    both = {"box": "A1", "map": "B2", "place": "C3"}  # of a call that names the thing, all that it gives
    assert texts["observation"][2] == json.dumps(both)
    assert texts["nested"][2] == json.dumps({"status": "ok", "result": both})
    assert texts["done"][2] == json.dumps({**both, "done": True})
    # one of the two is never found, or its look-up fails, or another thing is found
    for later in (MAP, (*MAP, *BELL[:2], tool('{"error": "busy"}')), (*MAP, *BELL[:1], *MAP[1:])):
        assert set(edited(case(*later))) == {"unasked", "waived", "had"}


def test_an_earlier_observation_may_hold_it():
    made = case(*MAP, facts={"missing": ["map"]})
    messages = (*made.trace.messages[:3], call("find_bell", "{}"), tool('{"bell":"C3"}'), *made.trace.messages[3:])
    trace = Trace(id="t", messages=messages)
    finding = Finding(step=2, error_class="premature_finish", facts={"missing": ["map"]})
    texts = {e.kind: [m.content for m in apply_edit(trace, 2, e)[0].messages] for e in twin_edits(trace, finding)}
    assert texts["earlier"][2] == '{"box": "A1", "map": "B2"}' and texts["earlier"][4] == '{"bell":"C3"}'
    assert texts["observation"][4] == '{"bell":"C3","map":"B2"}'  # spaced as it was


@pytest.mark.parametrize("found", ['{"error": "busy"}', "A1", '["A1"]', '{"map": null}'])
def test_a_failure_and_words_are_not_added_to(found):
    assert set(edited(case(*MAP, found=found, facts={"thing": "map"}))) == {"unasked", "waived", "had"}


def test_what_is_missing_is_said_by_the_facts():
    for facts, things in (({"missing": "map"}, ("map",)), ({"expected": "a map in Oslo"}, ("a map in Oslo",))):
        assert missing_things(case(facts=facts)) == things
    for facts in ({}, {"missing": []}, {"missing": ["map", ""]}, {"missing": 3}):
        with pytest.raises(TwinError, match="does not say what is missing"):
            missing_things(case(facts=facts))


def test_a_step_that_goes_on_has_no_such_twin():
    trace = Trace(id="t", messages=(said("user", THREE), call("find_box", "{}")))
    with pytest.raises(TwinError) as refused:
        twin_edits(trace, Finding(step=0, error_class="stopped_early", facts={"thing": "map"}))
    assert refused.value.reason == "no_edit"
