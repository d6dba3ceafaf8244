"""The on-policy loop through the real command line: curves, resume after real kills, stop rules, tripwires."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import ROOT, STUDENT, TOOLWORLD
from safetensors.torch import load_file
from support.command import hintdistill
from support.killing import kill_when
from world import Toolworld

from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError, TripwireError
from hintdistill.core.scores import ScoreRequest
from hintdistill.pipeline.playing import draw_tasks
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.rescoring.drift import movement
from hintdistill.rollouts.evaluate import tasks_of

SMALL = [
    "rollout.sample.episodes=24",
    "rollout.batch_size=8",
    "rollout.splits=[validation]",
    "rollout.limit=8",
    "train.epochs=1",
    "train.batch_size=8",
    "train.save_steps=2",
    "rescore.part_rows=10",
    "report.off_target_steps=12",
    "report.html=false",
]


def loop(*args: str, expect: int = 0) -> subprocess.CompletedProcess:
    return hintdistill("run", "configs/rounds.yaml", *args, expect=expect)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """As the loop's own processes run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """Two uninterrupted rounds."""
    folder = tmp_path_factory.mktemp("rounds") / "run"
    assert "report:" in loop(f"run.dir={folder}", *SMALL).stdout
    return folder


def document(folder: Path) -> dict:
    return json.loads((folder / "rounds.json").read_text().replace(str(folder), "RUN"))


def test_rounds_append_to_one_folder(straight):
    got = document(straight)
    assert [r["round"] for r in got["rounds"]] == [1, 2] and got["stop"] is None
    assert set(got["initial"]) == {"validation@0", "validation@1"}
    for r in got["rounds"]:
        assert r["trained"] and r["episodes"]["played"] == 24
        assert sum(r["findings"]["by_class"].values()) == r["findings"]["roots"] >= r["effect"]["scored"] > 0
        assert set(r["environment"]) == set(got["initial"])
        assert 0 < max(m["kl_per_token"] for m in r["off_target"].values()) < 1
    first, last = (load_file(straight / "rounds" / n / "run" / "student" / "model.safetensors") for n in ("01", "02"))
    final = load_file(straight / "student" / "model.safetensors")
    assert all(torch.equal(final[k], last[k]) for k in final) and any(
        not torch.equal(final[k], first[k]) for k in final
    )


def test_the_second_round_plays_the_first_rounds_student_and_keeps_the_initial_teacher(straight):
    from hintdistill.core.models import model_key

    rows = [json.loads(line) for line in (straight / "rounds" / "02" / "episodes.jsonl").read_text().splitlines()]
    student = model_key(straight / "rounds" / "01" / "run" / "student").weights
    initial = model_key(STUDENT).weights
    assert {r["trace"]["model"].split("-")[0] for r in rows} == {student}
    for message in (m for r in rows for m in r["trace"]["messages"] if m["role"] == "assistant"):
        assert len(message["token_ids"]) == len(message["logprobs"]) > 0
    from hintdistill.rescoring.store import TargetStore

    second = list(TargetStore(straight / "rounds" / "02" / "run" / "targets").read())
    assert {t.versions["weights"].split("-")[0] for t in second} == {initial}


KILL_WHEN = {
    "play": lambda f: (f / "rounds" / "02" / "episodes.jsonl").exists(),
    "rescore": lambda f: any((f / "rounds" / "01" / "run" / "targets").glob("part-*.parquet")),
    "train": lambda f: any((f / "rounds" / "02" / "run" / "train").glob("*/checkpoint-*/trainer_state.json")),
}


@pytest.mark.parametrize("moment", [pytest.param(m, marks=pytest.mark.slow) for m in ("rescore", "play", "train")])
def test_killed_in_any_round_it_resumes_to_the_same_curves(moment, straight, tmp_path):
    folder = tmp_path / "run"
    kill_when(lambda: KILL_WHEN[moment](folder), "run", "configs/rounds.yaml", "-q", f"run.dir={folder}", *SMALL)
    loop("-q", "--resume", f"run.dir={folder}", *SMALL)
    assert document(folder) == document(straight)
    ours, theirs = (load_file(f / "student" / "model.safetensors") for f in (folder, straight))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def config(folder: Path, *overrides: str):
    return load_config(ROOT / "configs" / "rounds.yaml", [f"run.dir={folder}", "run.rounds=1", *SMALL, *overrides])


@pytest.mark.slow
def test_rounds_with_the_critic_model_have_a_curve_of_their_own(tmp_path):
    """No rule, no label, no checker: the critic is a model, and a success label only measures."""
    folder = tmp_path / "run"
    loop("-q", f"run.dir={folder}", *SMALL, "critic.use=[llm]", "critic.checker=", "rollout.limit=4")
    got = document(folder)
    assert got["critics"] == ["llm"] and [r["trained"] for r in got["rounds"]] == [True, True]
    assert all(set(r["environment"]) == {"validation@0", "validation@1"} for r in got["rounds"])
    rows = [json.loads(x) for x in (folder / "rounds" / "02" / "run" / "critiques.jsonl").read_text().splitlines()]
    assert {r["critic"] for r in rows} == {"llm"}


def test_no_findings_left_ends_the_loop_in_peace(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = config(tmp_path / "run", "rollout.sample.episodes=8", "rollout.limit=2", "rollout.stop.min_findings=100")
    folder = run(settings, tmp_path / "run", console=Console(quiet=True))
    got = document(folder)
    assert got["stop"].startswith("no findings left") and not got["rounds"][0]["trained"]
    assert not (folder / "student").exists()


def test_a_bound_that_is_crossed_stops_with_the_last_good_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = config(
        tmp_path / "run",
        "rollout.limit=2",
        "rollout.sample.episodes=16",
        "train.learning_rate=0.05",
        "train.anchor.weight=0",
    )
    with pytest.raises(TripwireError, match=r"round 1: off-target KL .* is above 0.1"):
        run(settings, tmp_path / "run", console=Console(quiet=True))
    assert document(tmp_path / "run")["rounds"][0]["tripwire"] and not (tmp_path / "run" / "student").exists()


def test_a_tripwire_of_the_training_stops_its_round(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = config(
        tmp_path / "run",
        "rollout.limit=2",
        "rollout.sample.episodes=16",
        "train.tripwires.action=stop",
        "train.tripwires.max_off_target_kl=1e-9",
        "train.anchor.weight=0",
        "train.logging_steps=1",
    )
    console = Console(quiet=True)
    with pytest.raises(
        TripwireError, match=r"round 1: off_target_kl is .* above train.tripwires.max_off_target_kl=1e-09"
    ):
        run(settings, tmp_path / "run", console=console)
    row = document(tmp_path / "run")["rounds"][0]
    assert row["tripwire"] and not row["trained"] and row["stop"].startswith("off_target_kl is")
    assert not (tmp_path / "run" / "student").exists()
    assert not (tmp_path / "run" / "rounds" / "01" / "run" / "student").exists()
    assert "train.tripwires.max_heldout_kl has no effect" in " ".join(console.warnings), "no round holds traces out"


BROKEN = """
import sys
sys.path.insert(0, {folder!r})
from world import Toolworld, ToolworldEnvironment

class Broken(ToolworldEnvironment):
    def step(self, message):
        if ".old." in self.task.name:
            raise RuntimeError("no tools today")
        return super().step(message)

class Suite(Toolworld):
    def make(self):
        return Broken()
"""


def test_rounds_whose_episodes_come_to_nothing_are_a_collapse(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (tmp_path / "broken.py").write_text(BROKEN.format(folder=str(TOOLWORLD)))
    settings = config(
        tmp_path / "run",
        "rollout.sample.episodes=8",
        "rollout.limit=2",
        f"rollout.environment={tmp_path}/broken.py:Suite",
    )
    with pytest.raises(TripwireError, match="collapse: 8 of 8 episodes failed without a result"):
        run(settings, tmp_path / "run", console=Console(quiet=True))
    reasons = document(tmp_path / "run")["rounds"][0]["episodes"]["reasons"]
    assert reasons == {"step raised RuntimeError: no tools today": 8}


def test_a_student_that_collapses_in_play_is_not_the_last_good_one(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = BROKEN.format(folder=str(TOOLWORLD))
    # from the second round on nothing works, as if the first had ruined the student unseen
    broken = f"__import__('pathlib').Path({str(tmp_path / 'run' / 'rounds' / '02')!r}).exists()"
    (tmp_path / "broken.py").write_text(text.replace('".old." in self.task.name', broken))
    settings = config(
        tmp_path / "run",
        "run.rounds=2",
        "rollout.sample.episodes=16",
        "rollout.limit=2",
        f"rollout.environment={tmp_path}/broken.py:Suite",
    )
    with pytest.raises(TripwireError, match="round 2: collapse: 16 of 16") as caught:
        run(settings, tmp_path / "run", console=Console(quiet=True))
    first, second = document(tmp_path / "run")["rounds"]
    assert first["trained"] and second["collapsed_in_play"]
    assert not (tmp_path / "run" / "student").exists() and "the initial one" in caught.value.hint


def test_more_than_the_allowed_share_of_failed_episodes_is_a_collapse(tmp_path):
    from hintdistill.pipeline.rounds import collapsed

    settings = config(tmp_path / "run", "rollout.stop.max_failed_share=0.25")
    assert collapsed(5, 20, settings) is None and collapsed(6, 20, settings).startswith("collapse: 6 of 20 episodes")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["traces.path=x.jsonl"], "leave traces.path empty"),
        (["rollout.environment="], "needs rollout.environment"),
        (["rollout.source=replay"], "set traces.path"),
        (["critic.use=[recorded]", "critic.recorded.path=x"], "do not apply to fresh traces"),
        (["critic.checker="], "critic.checker is not set"),
    ],
)
def test_what_a_loop_cannot_do_is_said(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config(ROOT / "configs" / "rounds.yaml", overrides)


def test_a_loop_has_no_until_and_tasks_must_match(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="cannot end at 'critique'"):
        run(config(tmp_path / "a"), tmp_path / "a", until="critique", console=Console(quiet=True))
    with pytest.raises(ConfigError, match="no task of the split 'train' matches nothing"):
        run(config(tmp_path / "a", "rollout.sample.tasks=nothing.*"), tmp_path / "a", console=Console(quiet=True))
    assert not (tmp_path / "a").exists()


def test_tasks_are_drawn_anew_each_round_and_none_twice_before_all_once():
    tasks = tasks_of(Toolworld(), "train", 20)
    one, two = draw_tasks(tasks, 30, 1, 0), draw_tasks(tasks, 30, 2, 0)
    assert sorted(one[:20]) == sorted(tasks) and len(one) == 30 and one != two and one == draw_tasks(tasks, 30, 1, 0)
    urgent = tasks_of(Toolworld(), "train", None, ["*.urgent.*", "*.*.timeout.*"])
    assert urgent and all(t.split(".")[1] == "urgent" or t.split(".")[2] == "timeout" for t in urgent)


def test_comparing_two_engines_leaves_gradients_on(student_engine):
    """Measuring between two rounds must not switch off the next round's training."""
    import numpy as np

    requests = [ScoreRequest(np.arange(10, 30), 5, 20), ScoreRequest(np.arange(40, 60), 5, 20)]
    assert movement(student_engine, student_engine, requests).kl_per_token == 0.0
    assert not torch.is_inference_mode_enabled()


def test_a_checker_of_ones_own(tmp_path):
    from hintdistill.critics.checker import CheckerCritic
    from hintdistill.traces.reading import read_traces

    traces = list(read_traces([TOOLWORLD / "traces.jsonl"]))[:30]
    critic = CheckerCritic(f"{TOOLWORLD}/world.py:label_steps")
    said = {t.id: c for t, c in critic.critique(traces)}
    assert len(said) == 30 and any(c.verdict == "findings" for c in said.values())
    (tmp_path / "mine.py").write_text("def check(trace):\n    raise ValueError('odd trace')\nNUMBER = 3\n")
    ((_, failed),) = CheckerCritic(f"{tmp_path}/mine.py:check").critique(traces[:1])
    assert "raised ValueError on trace" in str(failed)
    for name in ("missing", "NUMBER"):
        with pytest.raises(ConfigError):
            CheckerCritic(f"{tmp_path}/mine.py:{name}")
