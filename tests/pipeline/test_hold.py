"""Hold traces: read, scored by the initial policy, trained on and reported; never critiqued, never hinted, in rounds as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import TOOLWORLD
from support.observers import config_of

from hintdistill.core.errors import ConfigError, EmptyFunnelError
from hintdistill.core.model_shape import ModelShape
from hintdistill.core.models import resolve_model
from hintdistill.core.types import Message
from hintdistill.pipeline import hold, rescore, train
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.pipeline.store import RunDir
from hintdistill.planning.workload import gather
from hintdistill.traces.formats import native
from hintdistill.traces.reading import read_traces

pytestmark = pytest.mark.usefixtures("one_thread")
TRACES = TOOLWORLD / "traces.jsonl"
SMALL = [
    f"traces.path={TRACES}",
    "traces.limit=14",
    "critic.use=[rules]",
    "rescore.top_k=4",
    "train.epochs=0.5",
    "train.watch.every=0",
    "report.html=false",
    "report.off_target_steps=2",
]
ROLLOUT = [
    f"rollout.environment={TOOLWORLD / 'world.py'}:Toolworld",
    "rollout.max_steps=6",
    "rollout.max_new_tokens=48",
]


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def held(tmp_path_factory) -> RunContext:
    """A run without anchors, with hold traces: four good ones, one broken line, one that is also a training trace."""
    folder = tmp_path_factory.mktemp("hold")
    near = list(read_traces([TOOLWORLD / "near_misses.jsonl"]))[:4]
    # a demonstration above the trace is context, and no step of it is held
    shown = (Message(role="user", content="Hello."), Message(role="assistant", content="Hello!", given=True))
    near[0] = near[0].model_copy(update={"messages": (near[0].messages[0], *shown, *near[0].messages[1:])})
    native.write(folder / "near.jsonl", [*near, next(iter(read_traces([TRACES])))])
    with (folder / "near.jsonl").open("a") as file:
        file.write("{broken\n")
    overrides = [
        *SMALL,
        f"train.hold={{path: {folder / 'near.jsonl'}, per_trace: 2, weight: 1.5}}",
        "train.anchor.weight=0",
    ]
    config = config_of(overrides)
    run(config, folder / "run", console=Console(quiet=True))
    rundir = RunDir.create(folder / "run", config, resume=True)
    return RunContext(config, rundir, Console(quiet=True))


def test_each_record_is_a_row_and_nothing_of_it_is_critiqued_or_injected(held):
    kept = rows(held.rundir.path / "hold.jsonl")
    reasons = [r["failure"]["reason"] for r in kept if "failure" in r]
    assert sum("trace" in r for r in kept) == 4 and sorted(reasons) == ["also_trained", "not_json"]
    keys = {r["key"] for r in kept}
    for stage in ("critiques", "injections"):
        assert not keys & {r.get("trace_key") or r["key"] for r in rows(held.rundir.path / f"{stage}.jsonl")}
    assert not keys & {r["key"] for r in rows(held.rundir.path / "traces.jsonl")}


def test_its_steps_are_held_at_the_initial_policy_with_a_weight_per_slot(held):
    from hintdistill.training.rows import build_rows

    targets = [t for t in rescore.load(held) if t.kind == "hold"]
    assert len(targets) == 8, "two of each of the four traces"
    for target in targets:
        assert np.array_equal(target.teacher_logprobs, target.plain_logprobs) and not len(target.block_ids)
    given = next(trace for _, trace in hold.load(held) if trace.given_steps)
    assert given.given_steps == {0} and all(t.step != 0 for t in targets if t.trace_id == given.id)
    term = held.config.train.effective_recipe.terms["hold"]
    assert term.rows == "hold" and term.coef == 1.5 and "anchor" not in held.config.train.effective_recipe.terms
    chosen = train.selected(held)
    made = list(build_rows(chosen, held.config.train))
    slots = [s for row in made for s in row.slots if s.kind == "hold"]
    sums = [float(s.weights["hold"].sum()) for s in slots]
    assert len(slots) <= 8 and sum(sums) == pytest.approx(len(slots)), (
        "one slot weighs as one, however many hints there are"
    )


def test_report_and_card_count_them_and_say_that_no_other_step_was_held(held):
    document = json.loads((held.rundir.path / "report.json").read_text())
    funnel = document["funnel"]
    assert funnel["hold"] == {"traces": 4, "failed": {"also_trained": 1, "not_json": 1}}
    assert funnel["rescore"]["holds"] == 8 and funnel["train"]["holds"] == 8 and funnel["train"]["anchors"] == 0
    assert 0 < document["train"]["hold_rows"] <= 8
    card = (held.student_folder / "README.md").read_text()
    assert f"Held at the initial model's distribution: {document['train']['hold_rows']} steps of hold traces." in card
    assert "| hold traces (never critiqued, never hinted) | 4; failed: 1 also_trained, 1 not_json |" in card
    assert any("is also a training trace" in w for w in document["warnings"])


def test_too_little_held_is_warned_of_with_what_to_do(held):
    hints = [t for t in train.selected(held) if t.kind == "hint"]
    console = Console(quiet=True)
    ctx = RunContext(held.config, held.rundir, console)
    train.warn_if_little_is_held(ctx, train.selected(held))
    assert not console.warnings
    train.warn_if_little_is_held(ctx, hints)
    assert len(console.warnings) == 1
    for word in (f"{len(hints)} hints, but only 0 steps", "train.anchor.weight", "train.hold"):
        assert word in console.warnings[0]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.hold={path: x.jsonl, split: near}"], "set either path or split"),
        (["train.hold.split=near"], "needs rollout.environment"),
        ([*ROLLOUT, "rollout.splits=[test]", "train.hold.split=test"], "is also measured by rollout.splits"),
    ],
)
def test_what_contradicts_itself_is_refused(overrides, said):
    with pytest.raises(ConfigError, match=said):
        config_of([f"traces.path={TRACES}", *overrides])


def test_files_without_one_usable_trace_stop_the_run(tmp_path):
    (tmp_path / "none.jsonl").write_text('{"no": "trace"}\n')
    config = config_of([*SMALL, f"train.hold.path={tmp_path / 'none.jsonl'}"])
    with pytest.raises(EmptyFunnelError, match="no usable hold trace in"):
        run(config, tmp_path / "run", until="read", console=Console(quiet=True))


def test_the_plan_counts_a_split_before_it_is_played(tmp_path):
    """Five tasks of two held steps each: laid out from opening messages, as long as an episode may be."""
    base = [*SMALL, *ROLLOUT, "rollout.splits=[test]", f"run.dir={tmp_path / 'run'}"]
    without = config_of(base)
    shape = ModelShape.of(resolve_model(without.run.model))
    split = config_of([*base, "train.hold={split: test_clean, limit: 5, per_trace: 2}"])
    before, after = gather(without, shape), gather(split, shape)
    assert after.targets == before.targets + 10
    assert len(after.rows) == len(before.rows) + 5
    assert max(row.tokens for row in after.rows) >= 6 * 48, "every episode is taken to its limits"
    assert "10 steps of test_clean, not played yet" in after.source
