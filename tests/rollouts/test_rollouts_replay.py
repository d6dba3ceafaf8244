"""`rollout.source: replay`: one fresh step at recorded prefixes, which a critic reads with what was recorded after it."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from conftest import STUDENT, TOOLWORLD
from support.command import hintdistill

from hintdistill.config import CHECKS
from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError
from hintdistill.core.extra_keys import CONTINUATION
from hintdistill.core.types import Trace
from hintdistill.critics.record import FOLLOWED, whole
from hintdistill.critics.rules import RulesCritic
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.critique import without_given
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.replaying import Replayer
from hintdistill.pipeline.store import RunDir
from hintdistill.rollouts.generation import SamplingOptions
from hintdistill.rollouts.replay import OF, Prefix, draw_positions, fresh_steps
from hintdistill.rollouts.sampling import Sampler
from hintdistill.traces.reading import read_traces

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def recorded() -> list[Trace]:
    """Six shipped traces of several steps."""
    found = (t for t in read_traces([TOOLWORLD / "traces.jsonl"]) if isinstance(t, Trace) and len(t.own_steps) > 2)
    return [next(found) for _ in range(6)]


@pytest.fixture(scope="module")
def fresh(recorded, student_engine, student_renderer) -> list[Trace]:
    """What the student does at the second step of each."""
    options = SamplingOptions(temperature=1.0, max_new_tokens=64, batch_size=4, seed=3, logprobs=True)
    prefixes = [Prefix(t, 1, student_renderer.step(t, 1).context_ids) for t in recorded]
    episodes = list(fresh_steps(Sampler(student_engine, student_renderer, options), prefixes))
    rest = fresh_steps(Sampler(student_engine, student_renderer, options), prefixes[4:], first=4)
    assert [e.trace for e in rest] == [e.trace for e in episodes[4:]], "a batch alone is the same batch"
    assert all(e.failure is None for e in episodes)
    return [e.trace for e in episodes]


def test_the_student_acts_once_below_what_the_recorded_agent_had_read(recorded, fresh, student_renderer):
    for old, new in zip(recorded, fresh, strict=True):
        at = old.step_indices[1]
        assert new.own_steps == (1,) and new.given_steps == {0} and len(new.messages) == at + 1
        assert [(m.role, m.content, m.tool_calls) for m in new.messages[:at]] == [
            (m.role, m.content, m.tool_calls) for m in old.messages[:at]
        ]
        step = new.step(1)
        assert step.prompt_token_ids == student_renderer.step(old, 1).context_ids
        assert step.token_ids and len(step.logprobs or ()) == len(step.token_ids) and step.own_logprobs
        assert new.extra[OF] == [old.id, 1] and (new.tools, new.task_id) == (old.tools, old.task_id)
        rendered = student_renderer.step(new, 1)
        assert rendered.fidelity == "ids" and rendered.step_ids == step.token_ids


def test_a_critic_reads_what_was_recorded_after_it_and_judges_the_fresh_step_alone(recorded, fresh):
    old, new = recorded[0], fresh[0]
    lines = [json.loads(line.text) for line in whole(new).lines]
    assert whole(new).steps == (1,)
    head = lines.index({"note": FOLLOWED})
    assert lines[head - 1]["step"] == 1 and all(x["recorded"] and "step" not in x for x in lines[head + 1 :])
    assert len(lines) - head - 1 == len(old.messages) - old.step_indices[1]
    assert FOLLOWED not in whole(old).text
    odd = new.model_copy(update={"extra": {CONTINUATION: "something of another program"}})
    assert FOLLOWED not in whole(odd).text
    for trace in fresh:
        ((_, said),) = RulesCritic(CHECKS).critique([trace])
        assert {f.step for f in without_given(trace, said).findings} <= {1}


def test_positions_are_drawn_uniformly_and_none_twice_before_all_once():
    drawn = draw_positions([3, 0, 2], 12, 1, 0)
    every = {(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)}
    assert set(drawn[:5]) == set(drawn[5:10]) == every and max(Counter(drawn).values()) == 3
    assert drawn == draw_positions([3, 0, 2], 12, 1, 0) != draw_positions([3, 0, 2], 12, 2, 0)
    assert draw_positions([0], 3, 1, 0) == []


def test_a_prefix_without_room_comes_to_nothing_and_says_so(recorded, student_engine, student_renderer):
    options = SamplingOptions(temperature=1.0, max_new_tokens=student_engine.max_length, batch_size=4)
    prefix = Prefix(recorded[0], 1, student_renderer.step(recorded[0], 1).context_ids)
    (episode,) = fresh_steps(Sampler(student_engine, student_renderer, options), [prefix])
    assert "leaves no room" in (episode.failure or "") and not episode.trace.own_steps


REPLAY = (
    f"run.model={STUDENT}",
    "run.rounds=1",
    "run.device=cpu",
    "rollout.source=replay",
    "rollout.sample.episodes=8",
    "rollout.batch_size=8",
    "rollout.max_new_tokens=48",
    f"traces.path={TOOLWORLD / 'traces.jsonl'}",
    "traces.limit=6",
)


def test_what_was_sampled_is_kept_and_another_student_is_asked_anew(tmp_path, student_engine):
    config = load_config(None, REPLAY)
    top = RunContext(config, RunDir.create(tmp_path / "run", config, resume=False), Console(quiet=True))
    top.engines[top.model_folder] = student_engine
    one = Replayer(top).episodes(1, top.model_folder, tmp_path / "one")
    rows = (tmp_path / "one" / "episodes.jsonl").read_text()
    assert len(one) == 8 and len({e.trace.id for e in one}) == 8
    assert Replayer(top).episodes(1, top.model_folder, tmp_path / "one") == one
    assert (tmp_path / "one" / "episodes.jsonl").read_text() == rows
    assert [e.trace.extra[OF] for e in Replayer(top).episodes(2, top.model_folder, tmp_path / "two")] != [
        e.trace.extra[OF] for e in one
    ]
    top.rundir.close()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["run.rounds="], "set run.rounds"),
        (["traces.path=[]"], "set traces.path"),
        (["rollout.source=environment"], "leave traces.path empty"),
        (["rollout.overlap=true", "rollout.sample.server.base_url=http://localhost:1/v1"], "samples single steps"),
    ],
)
def test_what_replay_needs_is_said(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(None, [*REPLAY, *overrides])


@pytest.mark.slow
def test_a_loop_without_an_environment_trains_and_goes_on_where_it_was(tmp_path):
    """Two rounds; the second acts with the first one's student, and a finished run has nothing left to do."""
    settings = (
        *(o for o in REPLAY if not o.startswith(("traces.limit", "run.rounds", "rollout.sample.episodes"))),
        "run.rounds=2",
        "rollout.sample.episodes=64",
        "traces.limit=60",
        "critic.use=[rules]",
        "train.epochs=1",
        "report.off_target_steps=8",
    )
    config = tmp_path / "replay.yaml"
    config.write_text("run: {}\n")
    folder = tmp_path / "run"
    hintdistill("run", str(config), *settings, f"run.dir={folder}")
    rounds = json.loads((folder / "rounds.json").read_text())
    assert [r["trained"] for r in rounds["rounds"]] == [True, True] and rounds["initial"] == {}
    models = {
        t.model
        for n in ("01", "02")
        for t in read_traces([folder / "rounds" / n / "rollouts.jsonl"])
        if isinstance(t, Trace)
    }
    assert len(models) == 2 and (folder / "student" / "model.safetensors").is_file()
    for row in rounds["rounds"]:
        assert row["episodes"]["played"] == 64 and "success_rate" not in row["episodes"] and row["off_target"]
    before = (folder / "rounds.jsonl").read_text()
    hintdistill("run", str(config), *settings, f"run.dir={folder}", "--resume")
    assert (folder / "rounds.jsonl").read_text() == before
