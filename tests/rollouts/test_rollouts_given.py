"""Demonstrations and greetings are context everywhere; a step that was cut gets no hint. Real episodes of the shipped student."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from conftest import CHECKS, RulesCritic, call, tool
from support.observers import config_of
from world import Toolworld, ToolworldEnvironment

from hintdistill.core.types import Critique, Finding, Message, Trace
from hintdistill.critics.record import whole
from hintdistill.pipeline.critique import without_given
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.rollouts.environment import Start
from hintdistill.rollouts.greetings import with_greetings_given
from hintdistill.rollouts.measure import off_target_sets, step_requests
from hintdistill.rollouts.sampling import Branch, Episode, Sampler, SamplingOptions
from hintdistill.traces.formats import native
from hintdistill.traces.reading import read_traces

pytestmark = pytest.mark.usefixtures("one_thread")
GREETING = Message(role="assistant", content="Hello, how can I help?")
TASKS = ["weather.none.none.old.1", "weather.none.none.old.2"]


class Shown(Toolworld):
    """The shipped world, which greets and shows one call of a tool that does not exist."""

    def make(self) -> ToolworldEnvironment:
        class Opened(ToolworldEnvironment):
            def reset(self, task: str) -> Start:
                start = super().reset(task)
                shown = call("no_such_tool", "{}").model_copy(update={"given": True})
                demo = (Message(role="user", content="Show me."), shown, tool("done", name="no_such_tool"))
                return Start((GREETING, *demo, *start.messages), start.tools)

        return Opened()


@pytest.fixture(scope="module")
def episodes(student_engine, student_renderer) -> Sequence[Episode]:
    options = SamplingOptions(temperature=0.0, max_new_tokens=48, max_steps=6)
    return list(Sampler(student_engine, student_renderer, options).episodes(Shown(), TASKS))


def test_an_episode_that_opens_with_assistant_messages_is_played_and_they_are_no_steps(episodes, student_renderer):
    for episode in episodes:
        trace = episode.trace
        assert trace.given_steps == {0, 1} and trace.own_steps and min(trace.own_steps) == 2
        assert trace.messages[0].given and trace.messages[0].content == GREETING.content
        found = RulesCritic(CHECKS).check(trace)
        assert all(f.step >= 2 for f in found.findings), "the tool that does not exist was shown, not called"
        record = whole(trace).text.splitlines()
        assert '"step"' not in record[0] and any('"step":2' in line for line in record)
    every = [k for e in episodes for k in e.trace.own_steps]
    sets = off_target_sets(Shown(), student_renderer, episodes, 99, 0)
    assert sum(len(s) for s in sets.values()) <= len(every)
    good = [e for e in episodes if (e.trace.reward or 0) > 0.5]
    assert len(step_requests(student_renderer, episodes, 99, 0)) == sum(len(e.trace.own_steps) for e in good)


def test_an_episode_with_a_demonstration_is_taken_up_in_the_middle(episodes, student_engine, student_renderer):
    trace = episodes[0].trace
    step = max(trace.own_steps)
    context = trace.step(step).prompt_token_ids
    sampler = Sampler(
        student_engine, student_renderer, SamplingOptions(temperature=0.0, max_new_tokens=48, max_steps=6)
    )
    (again,) = sampler.branches(Shown(), [Branch(trace, step, context, context)])
    assert again.failure is None and again.trace.step(step).token_ids == trace.step(step).token_ids


def test_a_finding_on_a_given_step_is_dropped_with_a_note(episodes):
    trace = episodes[0].trace
    found = (Finding(step=1, error_class="x"), Finding(step=2, error_class="y", caused_by=1))
    kept = without_given(trace, Critique(trace_id=trace.id, verdict="findings", findings=found))
    assert [(f.step, f.caused_by) for f in kept.findings] == [(2, None)] and kept.notes == ("dropped: step 1 is given",)
    assert without_given(trace, Critique(trace_id=trace.id, verdict="findings", findings=found[:1])).verdict == "none"


def test_a_greeting_of_a_recorded_trace_is_given_and_the_first_step_of_an_agent_without_a_user_is_not(tmp_path):
    user, said = Message(role="user", content="Hi."), Message(role="assistant", content="Done.")
    worked = (call("get_weather", "{}"), tool("{}"), said, user, said)
    cases = {
        "greeted": ((GREETING, user, said), {0}),
        "system": ((Message(role="system", content="s"), GREETING, user, said), {0}),
        "plain": ((user, said), set()),
        "worked": (worked, set()),
        "alone": ((GREETING,), set()),
        "sampled": ((GREETING.model_copy(update={"token_ids": (1, 2)}), user, said), set()),
    }
    for name, (messages, given) in cases.items():
        assert Trace(id=name, messages=with_greetings_given(messages)).given_steps == given, name
    lines = [{"id": n, "messages": [m.model_dump(exclude_defaults=True) for m in ms]} for n, (ms, _) in cases.items()]
    lines.append(
        {"id": "only", "messages": [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "?"}]}
    )
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(line) for line in lines[:2] + lines[-1:]))
    read = list(read_traces([tmp_path / "t.jsonl"]))
    assert [t.given_steps for t in read[:2]] == [{0}, {0}]
    assert read[2].given_steps == set(), "an agent that says nothing later has not only greeted: its trace is kept"


def test_a_cut_step_is_never_hinted_and_its_earlier_errors_are(tmp_path, unknown_tool_case):
    trace, _, _ = unknown_tool_case
    rambling = Message(role="assistant", content="and then and then", cut=True)
    messages = (*trace.messages, Message(role="user", content="?"), rambling)
    native.write(tmp_path / "t.jsonl", [trace.model_copy(update={"messages": messages})])
    last = len(trace.step_indices)
    findings = [{"trace": trace.id, "step": k, "error_class": "unknown_tool", "hint": "Stop."} for k in (0, last)]
    (tmp_path / "f.jsonl").write_text("\n".join(json.dumps(f) for f in findings))
    config = config_of(
        [f"traces.path={tmp_path / 't.jsonl'}", "critic.use=[recorded]", f"critic.recorded.path={tmp_path / 'f.jsonl'}"]
    )
    run(config, tmp_path / "run", until="inject", console=Console(quiet=True))
    rows = [json.loads(line) for line in (tmp_path / "run" / "injections.jsonl").read_text().splitlines()]
    assert [r.get("skipped") for r in rows] == [None, "cut_step"]
