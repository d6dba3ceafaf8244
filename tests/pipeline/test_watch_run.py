"""What is watched in a run: scored, stored, read, never trained on; tripwires and foreign targets stop the stage."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

from hintdistill.config.file import load_config
from hintdistill.core.errors import InputError, TripwireError
from hintdistill.pipeline import critique, rescore
from hintdistill.pipeline import train as train_stage
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.store import TargetStore
from hintdistill.training.stage import read_summary

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = [
    "critic.use=[rules,recorded]",
    "traces.limit=70",
    "traces.holdout=0.3",
    "train.epochs=1",
    "train.batch_size=8",
    "train.logging_steps=2",
    "train.save_steps=2",
    "train.watch.steps=6",
    "report.html=false",
]


def settings(folder: Path, *overrides: str):
    return load_config(ROOT / "configs" / "quickstart.yaml", [f"run.dir={folder}", *SMALL, *overrides])


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> Path:
    """A run up to its targets."""
    folder = tmp_path_factory.mktemp("scored") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return run(settings(folder), folder, until="rescore", console=Console(quiet=True))


@pytest.fixture
def folder(scored, tmp_path, monkeypatch) -> Path:
    """A copy of it."""
    monkeypatch.chdir(ROOT)
    shutil.copytree(scored, tmp_path / "run")
    return tmp_path / "run"


def context(folder: Path, *overrides: str) -> RunContext:
    return RunContext(settings(folder, *overrides), RunDir(folder), Console(quiet=True))


def go_on(folder: Path, *overrides: str) -> Console:
    console = Console(quiet=True)
    run(settings(folder, *overrides), folder, resume=True, until="train", console=console)
    return console


def metrics(folder: Path) -> list[dict]:
    (file,) = (folder / "train").glob("*/metrics.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_what_is_watched_is_scored_read_and_never_trained_on(folder):
    console = go_on(folder)
    ctx = context(folder)
    trained = train_stage.selected(ctx)
    watch = train_stage.watched(ctx, trained)
    taken = {t.key for t in trained}
    assert watch.off_target and {t.split for t in watch.off_target} == {"train"}
    assert len(watch.heldout) == 6 and {t.split for t in watch.heldout} == {"holdout"}
    assert not taken & {t.key for t in (*watch.off_target, *watch.heldout)}
    critiques = {c.trace_id: c for c in critique.load(ctx).values()}
    assert all(not critiques[t.trace_id].findings for t in watch.heldout), "clean traces"
    assert all(t.step not in {f.step for f in critiques[t.trace_id].findings} for t in watch.off_target), "clean steps"
    rows = metrics(folder)
    read = [r for r in rows if "off_target_kl" in r]
    steps = read_summary(folder / "student").steps
    assert [r["step"] for r in read] == sorted({*range(2, steps + 1, 2), steps})
    assert all(0 < r["off_target_kl"] < 0.1 and 0 <= r["heldout_kl"] < 0.1 for r in read)
    assert any(n.startswith("decision_probability/") for n in read[0]) and 0 < read[0]["loss_tokens"] < 1
    assert not [r for r in rows if "tripwire" in r] and not [w for w in console.warnings if "tripwires" in w]
    funnel = json.loads((folder / "report.json").read_text())["funnel"]
    assert funnel["rescore"]["watched"] == 6
    assert funnel["train"]["anchors"] == sum(t.kind == "anchor" for t in trained) < funnel["rescore"]["anchors"]


def test_without_anchors_the_sets_are_scored_all_the_same(folder):
    go_on(folder, "train.anchor.weight=0")
    ctx = context(folder, "train.anchor.weight=0")
    trained = train_stage.selected(ctx)
    watch = train_stage.watched(ctx, trained)
    assert {t.kind for t in trained} == {"hint"} and len(watch.off_target) == len(watch.heldout) == 6
    assert any("off_target_kl" in r for r in metrics(folder))
    before = {t.key for t in rescore.load(ctx)}
    off = ["train.anchor.weight=0", "train.watch.every=0"]
    rescore.run(context(folder, *off))
    left = rescore.load(context(folder, *off))
    assert {t.kind for t in left} == {"hint"} and {t.key for t in left} < before


def test_a_crossed_bound_stops_the_stage_and_a_wider_one_goes_on(folder):
    stop = ["train.tripwires.action=stop", "train.learning_rate=1e-3"]
    with pytest.raises(TripwireError, match=r"^off_target_kl is .* at step 2, above") as error:
        go_on(folder, *stop, "train.tripwires.max_off_target_kl=1e-7")
    assert error.value.exit_code == 6 and not (folder / "student").exists()
    # the reading is taken before the checkpoint of its step is written
    assert "no checkpoint was written before" in error.value.hint
    go_on(folder, *stop, "train.tripwires.max_off_target_kl=10", "train.tripwires.max_heldout_kl=10")
    assert (folder / "student").is_dir() and len(list((folder / "train").iterdir())) == 1, "the same training"
    # a bound that is drawn tighter afterwards is held against the student that is there
    with pytest.raises(TripwireError, match=r"^off_target_kl is .* at step \d+, above"):
        go_on(folder, *stop, "train.tripwires.max_off_target_kl=1e-7")


@pytest.mark.parametrize(
    ("entry", "what"), [("weights", "the teacher's weights"), ("renderer", "the tokenizer or the chat template")]
)
def test_targets_that_others_made_are_refused_by_key(entry, what, folder):
    ctx = context(folder)
    first = train_stage.selected(ctx)[0]
    store = TargetStore(folder / "targets")
    for part in store.parts():
        old = list(store.read_part(part))
        if first.key in {t.key for t in old}:
            store.append(
                [replace(t, versions={**t.versions, entry: "0ther"}) if t.key == first.key else t for t in old]
            )
    with pytest.raises(InputError, match=rf"1 of \d+ targets .* for example {first.key} .*: {what} changed: 0ther → "):
        go_on(folder)
    assert not (folder / "student").exists()
