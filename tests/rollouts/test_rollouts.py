"""Rollouts are token in, token out; an environment that misbehaves costs its episode."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import TOOLWORLD
from transformers.cache_utils import DynamicLayer
from world import Toolworld, ToolworldEnvironment

from hintdistill.core.errors import ConfigError, EnvironmentFailure
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.types import Message
from hintdistill.rollouts.cache import GrowingLayer
from hintdistill.rollouts.environment import Reply, Start
from hintdistill.rollouts.evaluate import evaluate, load_suite, outcome_of, tasks_of
from hintdistill.rollouts.parsing import parse_hermes
from hintdistill.rollouts.sampling import Sampler, SamplingOptions

pytestmark = pytest.mark.usefixtures("one_thread")
GREEDY = SamplingOptions(temperature=0.0, max_new_tokens=64, max_steps=8, batch_size=8)


@pytest.fixture(scope="module")
def episodes(student_engine, student_renderer):
    options = SamplingOptions(temperature=1.0, max_new_tokens=64, max_steps=8, batch_size=5, seed=3, logprobs=True)
    tasks = tasks_of(Toolworld(), "validation", 12)
    return tasks, list(Sampler(student_engine, student_renderer, options).episodes(Toolworld(), tasks))


def test_every_task_is_played_once_in_order(episodes):
    tasks, played = episodes
    assert [e.task for e in played] == tasks
    assert all(e.failure is None and e.trace.reward in (0.0, 1.0) for e in played)
    assert all(e.trace.task_id == e.task for e in played)


def test_recorded_ids_and_logprobs_are_what_was_sampled(episodes, student_engine, student_renderer):
    _, played = episodes
    for e in played:
        previous: tuple[int, ...] = ()
        for i in e.trace.step_indices:
            m = e.trace.messages[i]
            assert m.prompt_token_ids[: len(previous)] == previous, "a context continues the one before it"
            previous = m.prompt_token_ids + m.token_ids
            step = student_renderer.step(e.trace, e.trace.step_indices.index(i))
            assert (step.context_ids, step.step_ids, step.fidelity) == (m.prompt_token_ids, m.token_ids, "ids")
            request = ScoreRequest(np.array(previous), len(m.prompt_token_ids), len(previous))
            assert np.abs(student_engine.score([request], 1)[0].sampled - np.array(m.logprobs)).max() < 1e-4


def test_same_seed_same_episodes_other_seed_others(student_engine, student_renderer):
    tasks = tasks_of(Toolworld(), "validation", 6)

    def play(seed):
        options = SamplingOptions(temperature=1.0, max_new_tokens=64, max_steps=8, seed=seed)
        return [
            e.trace.messages for e in Sampler(student_engine, student_renderer, options).episodes(Toolworld(), tasks)
        ]

    assert play(1) == play(1) != play(2)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_is_kept_between_turns_changes_nothing(temperature, student_engine, student_renderer):
    from hintdistill.rollouts.generation import TransformersGenerator

    tasks = tasks_of(Toolworld(), "validation", 16)
    options = SamplingOptions(temperature=temperature, max_new_tokens=64, max_steps=8, batch_size=8, seed=4)
    played = []
    for reuse in (True, False):
        generator = TransformersGenerator(student_engine, reuse)
        assert generator.reuse == reuse
        episodes = Sampler(generator, student_renderer, options).episodes(Toolworld(), tasks)
        played.append([[m.token_ids for m in e.trace.messages if m.role == "assistant"] for e in episodes])
    assert played[0] == played[1]


class Suite:
    """Toolworld with a fault."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def splits(self):
        return {"test": ["weather.none.none.old.1", "weather.none.none.old.2"]}

    def check(self, trace):
        return []

    def make(self):
        fault = self.fault

        class Broken(ToolworldEnvironment):
            def reset(self, task):
                if fault == "reset" and task.endswith("1"):
                    raise RuntimeError("no tasks today")
                return super().reset(task)

            def step(self, message):
                if fault == "step" and self.task.name.endswith("1"):
                    raise RuntimeError("boom")
                if fault == "malformed" and self.task.name.endswith("1"):
                    return None
                if fault == "endless":
                    return Reply((Message(role="user", content="again"),), False)
                return super().step(message)

        return Broken()


def test_a_growing_cache_holds_what_the_librarys_does():
    """Prefill, single tokens past its first room, rows selected in between, a crop: bit for bit."""
    torch.manual_seed(0)
    ours, theirs = GrowingLayer(), DynamicLayer()
    for tokens, rows in ((5, None), *((1, None),) * 70, (3, [2, 0]), (1, None)):
        if rows is not None:
            for layer in (ours, theirs):
                layer.batch_select_indices(torch.tensor(rows))
                layer.crop(-2)
        new = torch.randn(2, 3 if theirs.keys is None else len(theirs.keys), 2, tokens, 4)
        for a, b in zip(ours.update(*new), theirs.update(*new), strict=True):
            assert torch.equal(a, b)
        assert ours.get_seq_length() == theirs.get_seq_length()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("reset", "reset raised RuntimeError: no tasks today"),
        ("step", "step raised RuntimeError: boom"),
        ("malformed", "returned NoneType, not a Reply"),
    ],
)
def test_a_broken_environment_costs_its_episode(fault, reason, student_engine, student_renderer):
    first, second = Sampler(student_engine, student_renderer, GREEDY).episodes(
        Suite(fault), Suite(fault).splits()["test"]
    )
    assert reason in first.failure and second.failure is None and second.trace.reward == 1.0
    kept = []
    suite, keep = Suite(fault), lambda episode, outcome: kept.append((episode.task, outcome.success))
    got = evaluate(student_engine, student_renderer, suite, suite.splits()["test"], GREEDY, keep=keep)
    assert [ended for _, ended in kept] == [False, True] and kept[0][0] == first.task
    assert got.success_rate == 0.5 and sum(got.failures.values()) == 1


def test_endless_episodes_are_failures_and_cut_ones_are_traces_that_say_so(student_engine, student_renderer):
    options = SamplingOptions(temperature=0.0, max_new_tokens=64, max_steps=2)
    assert {
        e.failure
        for e in Sampler(student_engine, student_renderer, options).episodes(
            Suite("endless"), ["weather.none.none.old.1"]
        )
    } == {"not done after 2 steps"}
    short = SamplingOptions(temperature=0.0, max_new_tokens=3)
    (cut,) = Sampler(student_engine, student_renderer, short).episodes(Toolworld(), ["weather.none.none.old.1"])
    assert cut.failure is None and cut.cut == "a step was cut after 3 tokens" and cut.trace.reward == 0.0
    last = cut.trace.messages[-1]
    assert last.cut and len(last.token_ids) == 3 and cut.trace.own_steps == ()
    judged = outcome_of(Toolworld(), cut)
    assert not judged.success and judged.failure == cut.cut
    with pytest.raises(EnvironmentFailure, match="all 1 episodes failed"):
        evaluate(student_engine, student_renderer, Toolworld(), ["weather.none.none.old.1"], short)


def test_suites_are_loaded_by_file_and_by_module():
    suite = load_suite(f"{TOOLWORLD}/world.py:Toolworld")
    assert "test" in suite.splits() and load_suite("world:Toolworld").splits() == suite.splits()
    with pytest.raises(ConfigError, match="no split 'nope'"):
        tasks_of(suite, "nope", None)
    for spec, message in (
        ("x", "not of the form"),
        ("nowhere.py:X", "no environment file"),
        ("world:Nope", "cannot load"),
        ("world:Task", "cannot load|no TaskSuite"),
        ("no.such.module:X", "cannot load"),
    ):
        with pytest.raises((ConfigError, TypeError), match=f"{message}|missing"):
            load_suite(spec)


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("hello", "hello", []),
        ('<tool_call>{"name":"f","arguments":{"a":  1}}</tool_call>', None, [("f", '{"a":  1}')]),
        (
            'Wait. <tool_call>\n{"arguments": {"b": "}"}, "name": "g"}\n</tool_call>\n<tool_call>{"name":"h"}</tool_call>',
            "Wait.",
            [("g", '{"b": "}"}'), ("h", "{}")],
        ),
        (
            '<tool_call>{"name":"f","arguments":{"a":1}</tool_call>',
            '<tool_call>{"name":"f","arguments":{"a":1}</tool_call>',
            [],
        ),
        ("<tool_call>search</tool_call>", "<tool_call>search</tool_call>", []),
    ],
)
def test_hermes_parser_keeps_raw_arguments(text, content, calls):
    message = parse_hermes(text)
    assert message.content == content and message.raw_text == text
    assert [(c.name, c.arguments_raw) for c in message.tool_calls] == calls


def test_protocol_is_small():
    start = ToolworldEnvironment().reset("weather.none.none.old.1")
    assert isinstance(start, Start) and [m.role for m in start.messages] == ["system", "user"]


def test_only_kernels_that_kept_their_weights_are_packed_again():
    """vLLM's own workers have it in tests/vllm; here is which layers it touches."""
    from hintdistill.rollouts.vllm_worker import PackedKernels

    class Packs:
        def process_weights_after_loading(self, layer):
            weight = layer.weight.clone()
            layer.cpu_linear = lambda x: x @ weight.T

    model = torch.nn.ModuleDict(
        {"head": torch.nn.Linear(2, 2), "given_away": torch.nn.Linear(2, 2), "norm": torch.nn.LayerNorm(2)}
    )
    for name in ("head", "given_away"):
        model[name].quant_method = Packs()
        model[name].quant_method.process_weights_after_loading(model[name])
    model["given_away"].weight = torch.nn.Parameter(torch.empty(0))
    worker = PackedKernels()
    worker.model_runner = SimpleNamespace(get_model=lambda: model)
    with torch.no_grad():
        model["head"].weight.mul_(2)
    x, before = torch.ones(1, 2), model["given_away"].cpu_linear
    assert not torch.equal(model["head"].cpu_linear(x), x @ model["head"].weight.T)
    assert worker.pack_again() == ["head"]
    assert (
        torch.equal(model["head"].cpu_linear(x), x @ model["head"].weight.T)
        and model["given_away"].cpu_linear is before
    )
