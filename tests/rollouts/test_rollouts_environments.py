"""Environments that hang or lie cost their episode; a real environment library behind the adapter; hinted play."""

from __future__ import annotations

import json
import time

import pytest
from conftest import TOOLWORLD
from world import Toolworld, ToolworldEnvironment, label_steps

from hintdistill.config import CHECKS, InjectSection
from hintdistill.core.errors import ConfigError, EnvironmentFailure
from hintdistill.core.types import Critique, Message, ToolCall, Trace
from hintdistill.critics import merge
from hintdistill.critics.rules import RulesCritic
from hintdistill.injection.splice import Injector
from hintdistill.prompts import PromptLibrary
from hintdistill.rollouts.environment import Reply, Start, TaskSuite
from hintdistill.rollouts.evaluate import Outcome, outcome_of, summarise
from hintdistill.rollouts.guard import GuardedEnvironment
from hintdistill.rollouts.hinted import play_hinted
from hintdistill.rollouts.sampling import Branch, Episode, Sampler, SamplingOptions

USER = Message(role="user", content="hi")
START, DONE = Start((USER,), ()), Reply((), True, 1.0)


class Scripted:
    """An environment that answers what it is told to."""

    def __init__(self, start=START, reply=DONE, delay: float = 0.0) -> None:
        self.start, self.reply, self.delay, self.closed = start, reply, delay, False

    def reset(self, task):
        return self.start

    def step(self, message):
        time.sleep(self.delay)
        return self.reply

    def close(self):
        self.closed = True


def test_a_hanging_environment_costs_its_time_and_no_more():
    guarded = GuardedEnvironment(lambda: Scripted(delay=30), timeout_s=0.1)
    guarded.reset("t")
    began = time.monotonic()
    with pytest.raises(EnvironmentFailure, match=r"step did not return within 0\.1 s"):
        guarded.step(USER)
    assert time.monotonic() - began < 5


def test_an_environment_of_its_own_thread_is_closed_there():
    environment = Scripted()
    guarded = GuardedEnvironment(lambda: environment, timeout_s=5)
    guarded.reset("t")
    assert guarded.step(USER).reward == 1.0
    guarded.close()
    for _ in range(100):
        if environment.closed:
            return
        time.sleep(0.01)
    raise AssertionError("close was never called")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (Scripted(start=None), "reset returned NoneType, not a Start"),
        (Scripted(start=Start((), ())), "returned no message"),
        (Scripted(start=Start(({"role": "user"},), ())), "returned dict, not a Message"),
        (Scripted(start=Start((USER,), ("x",))), "tools that are not objects"),
        (Scripted(reply=None), "step returned NoneType, not a Reply"),
        (
            Scripted(reply=Reply((Message(role="assistant", content="x"),), False)),
            "role assistant, which only the student may have",
        ),
        (Scripted(reply=Reply("text", False)), "messages of type str"),
        (Scripted(reply=Reply((), False)), "returned no message although the episode is not done"),
        (Scripted(reply=Reply((), True, float("nan"))), "the reward nan"),
        (Scripted(reply=Reply((), "yes")), "done='yes'"),
        (Scripted(start=Start((USER,), ({"a": object()},))), "tools that are not JSON"),
        (Scripted(reply=Reply((Message(role="tool", content="\ud800"),), False)), "a message that is not JSON"),
    ],
)
def test_what_an_environment_returns_is_checked(environment, message):
    guarded = GuardedEnvironment(lambda: environment, timeout_s=5)
    with pytest.raises(EnvironmentFailure, match=message):
        guarded.reset("t")
        guarded.step(USER)


def test_a_timeout_error_of_the_environments_own_is_called_so():
    class Own(Scripted):
        def step(self, message):
            raise TimeoutError("upstream")

    guarded = GuardedEnvironment(Own, timeout_s=5)
    guarded.reset("t")
    with pytest.raises(EnvironmentFailure, match="step raised TimeoutError: upstream"):
        guarded.step(USER)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_an_environment_that_exits_costs_its_episode_and_not_the_run(error):
    class Exits(Scripted):
        def step(self, message):
            raise error

    guarded = GuardedEnvironment(Exits, timeout_s=5)
    guarded.reset("t")
    with pytest.raises(EnvironmentFailure, match=f"raised {type(error).__name__}"):
        guarded.step(USER)


@pytest.mark.parametrize(
    ("check", "message"),
    [(lambda trace: 1 / 0, "check raised ZeroDivisionError"), (lambda trace: [1], "something other than findings")],
)
def test_a_checker_that_breaks_costs_the_episode(check, message):
    suite = Toolworld()
    suite.check = check
    trace = Trace(id="t", messages=(USER, Message(role="assistant", content="x")), reward=1.0)
    outcome = outcome_of(suite, Episode("t", trace))
    assert not outcome.success and message in outcome.failure


def test_outcomes_add_up():
    played = [Outcome("a", True, ()), Outcome("b", False, ("x", "y")), Outcome("c", False, ("x",), "cut")]
    got = summarise(played)
    assert (got.episodes, got.success_rate, got.error_rate) == (3, 1 / 3, 2 / 3)
    assert got.errors == {"x": 2 / 3, "y": 1 / 3} and got.failures == {"cut": 1}
    with pytest.raises(EnvironmentFailure, match="all 1 episodes failed"):
        summarise([Outcome("a", False, (), "cut")])


# -- Gymnasium -----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lake():
    pytest.importorskip("gymnasium")
    from hintdistill.rollouts.gymnasium_adapter import GymnasiumSuite

    return GymnasiumSuite(
        "FrozenLake-v1", "Cross the lake.", actions=("left", "down", "right", "up"), is_slippery=False, max_turns=12
    )


def act(name: str) -> Message:
    return Message(
        role="assistant", tool_calls=(ToolCall(name="act", arguments_raw=json.dumps({"action": name}), id="c"),)
    )


def test_a_gymnasium_episode_as_messages(lake):
    assert isinstance(lake, TaskSuite) and lake.splits()["test"][0] == "FrozenLake-v1:1200"
    environment = lake.make()
    start = environment.reset("FrozenLake-v1:0")
    assert [m.role for m in start.messages] == ["system", "user"]
    assert start.messages[1].content == "[S]FFF\nFHFH\nFFFH\nHFFG", "the place of the student is marked without colours"
    assert start.tools[0]["function"]["parameters"]["properties"]["action"]["enum"] == ["left", "down", "right", "up"]
    for name in ("down", "down", "right", "right", "down"):
        reply = environment.step(act(name))
        assert not reply.done and reply.messages[0].tool_call_id == "c" and "[" in reply.messages[0].content
    reply = environment.step(act("right"))
    assert reply.done and reply.reward == 1.0


def test_what_is_no_action_is_answered_and_seen_by_the_check(lake):
    environment = lake.make()
    start = environment.reset("FrozenLake-v1:0")
    messages = list(start.messages)
    for wrong in (act("jump"), Message(role="assistant", content="I go down")):
        reply = environment.step(wrong)
        assert not reply.done and "error" in reply.messages[0].content
        messages += [wrong, *reply.messages]
    reply = environment.step(act("right"))
    from hintdistill.core.types import Trace

    trace = Trace(id="t", messages=(*messages, act("right"), *reply.messages))
    assert [f.step for f in lake.check(trace)] == [0, 1]
    with pytest.raises(ValueError, match="is not a task of FrozenLake-v1"):
        environment.reset("weather.none")


def test_an_endless_game_ends_and_other_spaces_are_refused(lake):
    from hintdistill.rollouts.gymnasium_adapter import GymnasiumSuite

    environment = lake.make()
    environment.reset("FrozenLake-v1:0")
    replies = [environment.step(act("left")) for _ in range(12)]
    assert [r.done for r in replies] == [False] * 11 + [True] and replies[-1].reward == 0.0
    with pytest.raises(ConfigError, match="only discrete and text actions"):
        GymnasiumSuite("Pendulum-v1", "Balance.")
    with pytest.raises(ConfigError, match="cannot make Nothing-v0"):
        GymnasiumSuite("Nothing-v0", "?")
    with pytest.raises(ConfigError, match="has 4 actions, but 2"):
        GymnasiumSuite("FrozenLake-v1", "?", actions=("a", "b"))


def test_the_student_plays_gymnasium_through_the_sampler(lake, student_engine, student_renderer):
    """It knows nothing of lakes; that every episode ends, with ids and a reason or a reward, does not depend on skill."""
    options = SamplingOptions(temperature=1.0, max_new_tokens=16, max_steps=3, batch_size=4, logprobs=True)
    played = list(Sampler(student_engine, student_renderer, options).episodes(lake, lake.splits()["test"][:4]))
    assert len(played) == 4
    for e in played:
        assert e.failure is not None or e.trace.reward is not None
        assert all(len(m.token_ids) == len(m.logprobs) for m in e.trace.messages if m.role == "assistant")


# -- the hinted student ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sampler(student_engine, student_renderer):
    return Sampler(
        student_engine,
        student_renderer,
        SamplingOptions(temperature=0.0, max_new_tokens=64, max_steps=8, batch_size=24),
    )


def judge(traces):
    critic = RulesCritic(CHECKS)
    return {t.id: merge(t.id, [critic.check(t), _as_critique(t)]) for t in traces}


def _as_critique(trace):
    found = tuple(label_steps(trace))
    return Critique(trace_id=trace.id, verdict="findings" if found else "none", findings=found, critics=("world",))


@pytest.fixture(scope="module")
def hinted(sampler, student_renderer):
    tasks = [t for t in Toolworld().splits()["validation"] if t.split(".")[1] in ("alias", "noun")][:20]
    plain = list(sampler.episodes(Toolworld(), tasks))
    injector = Injector(student_renderer, PromptLibrary(str(TOOLWORLD / "prompts")), InjectSection())
    return plain, play_hinted(sampler, Toolworld(), plain, judge, injector)


def test_the_hint_lifts_success_and_stands_above_its_step_only(hinted, student_renderer):
    plain, played = hinted
    before, after = (sum((e.trace.reward or 0) > 0.5 for e in es) for es in (plain, played.episodes))
    assert after >= before + 5 and played.unplaced == {}
    assert [e.task for e in played.episodes] == [e.task for e in plain]
    for c in played.corrected:
        step = c.episode.trace.step(c.step)
        assert step.extra == {"hinted": True}
        # the trace is the plain one: its ids are what the template prints without any hint
        text = student_renderer.render(c.episode.trace.before(c.step), c.episode.trace.tools, header=True)
        assert student_renderer.encode(text) == list(step.prompt_token_ids)


def test_an_environment_that_answers_otherwise_the_second_time_is_found_out(sampler, hinted):
    plain, _ = hinted

    class Fickle(ToolworldEnvironment):
        def step(self, message):
            reply = super().step(message)
            return Reply(
                tuple(m.model_copy(update={"content": "{}"}) for m in reply.messages), reply.done, reply.reward
            )

    class Suite(Toolworld):
        def make(self):
            return Fickle()

    trace = next(e.trace for e in plain if len(e.trace.step_indices) > 1)
    context = trace.step(1).prompt_token_ids
    (episode,) = sampler.branches(Suite(), [Branch(trace, 1, context, context)])
    assert episode.failure.startswith("the environment answered differently when the episode was replayed")
