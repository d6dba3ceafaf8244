"""What tools do to the world: said by an environment, by a file of schemas, or by a schema itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hintdistill.core.effects import tool_effect
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.core.types import Message, Trace
from hintdistill.pipeline.context import trace_key
from hintdistill.rollouts.environment import effects_of
from hintdistill.traces.formats import native
from hintdistill.traces.options import ReadOptions
from hintdistill.traces.reading import load_tool_effects, load_tools, read_traces

MESSAGES = (Message(role="user", content="Book a room."), Message(role="assistant", content="Done."))


def schema(name: str, **said: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": {}}, **said}


def test_an_effect_is_known_from_the_environment_the_schema_or_the_protocols_annotation() -> None:
    tools = (
        schema("book", effect="changes"),
        {"name": "find", "effect": "reads"},
        {"type": "function", "function": {"name": "pay", "annotations": {"readOnlyHint": False}}},
        schema("look", annotations={"readOnlyHint": True}),
        schema("unsaid", annotations={"title": "?"}),
    )
    trace = Trace(id="t", messages=MESSAGES, tools=tools, tool_effects={"book": "reads"})
    said = {name: tool_effect(trace, name) for name in ("book", "find", "pay", "look", "unsaid", "made_up")}
    expected = {"book": "reads", "find": "reads", "pay": "changes", "look": "reads", "unsaid": None, "made_up": None}
    assert said == expected, "the environment's word is taken before the schema's"


def test_a_file_of_schemas_says_effects_that_the_student_never_reads(tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    inside = {"type": "function", "function": {"name": "find", "effect": "reads"}}
    tools.write_text(json.dumps([{"name": "book", "effect": "changes"}, inside, {"name": "other"}]))
    assert "effect" not in json.dumps(load_tools(tools)) and len(load_tools(tools)) == 3
    assert load_tool_effects(tools) == {"book": "changes", "find": "reads"}
    path = tmp_path / "traces.jsonl"
    own = Trace(id="own", messages=MESSAGES, tools=(schema("find"), schema("pay")))
    native.write(path, [Trace(id="bare", messages=MESSAGES), own])
    options = ReadOptions(tools=load_tools(tools), tool_effects=load_tool_effects(tools))
    bare, kept = (t for t in read_traces([path], options) if isinstance(t, Trace))
    assert bare.tool_effects == {"book": "changes", "find": "reads"}
    assert kept.tool_effects == {"find": "reads"} and kept.tools == own.tools
    tools.write_text(json.dumps([{"name": "book", "effect": "writes"}]))
    with pytest.raises(InputError, match="the effect of book must be `reads` or `changes`, not 'writes'"):
        load_tools(tools)


def test_a_suite_may_say_what_its_tools_do_and_is_refused_where_it_says_nonsense() -> None:
    class Suite:
        def splits(self) -> dict[str, list[str]]:
            return {}

        def make(self) -> None:
            return None

        def check(self, trace: Trace) -> list[object]:
            return []

    class Saying(Suite):
        said: object = {"book": "changes"}

        def tool_effects(self) -> object:
            return self.said

    assert effects_of(Suite()) == {}  # type: ignore[arg-type]
    suite = Saying()
    assert effects_of(suite) == {"book": "changes"}  # type: ignore[arg-type]
    suite.said = {"book": "writes"}
    with pytest.raises(ConfigError, match="gives the effect 'writes' for 'book'"):
        effects_of(suite)  # type: ignore[arg-type]


def test_a_trace_without_effects_keeps_its_key_and_one_with_them_has_another() -> None:
    trace = Trace(id="t", messages=MESSAGES)
    assert trace_key(trace) != trace_key(trace.model_copy(update={"tool_effects": {"book": "changes"}}))
