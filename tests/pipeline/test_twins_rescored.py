"""Twins in a run from rescoring on: scored once, trained on, planned, reported, and nothing of their text shared."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from support.command import hintdistill
from support.twinnable import TWINNABLE

from hintdistill.config import TrainSection
from hintdistill.config.file import load_config
from hintdistill.core.model_shape import ModelShape
from hintdistill.core.types import Finding, Replacement, Twin, TwinEdit
from hintdistill.engines.transformers import load_model
from hintdistill.pipeline import rescore, to_score, train, twins
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.twin_contexts import union
from hintdistill.pipeline.variants import twin_targets
from hintdistill.planning.workload import gather
from hintdistill.reporting.share import shareable
from hintdistill.training.rows import build_rows
from hintdistill.training.stage import make_trainer

SETTINGS = (*TWINNABLE, "rescore.top_k=8", "rescore.part_rows=7", "train.watch.every=0")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A run up to training with one twin per finding; its context."""
    folder = tmp_path_factory.mktemp("twins") / "run"
    config = load_config(None, [*SETTINGS, "train.twins.per_finding=1", "train.epochs=1", f"run.dir={folder}"])
    run(config, folder, until="train", console=Console(quiet=True))
    return RunContext(config, RunDir.open(folder), Console(quiet=True))


def test_every_twin_has_a_target_and_the_accepted_ones_train(done):
    stored, made = rescore.load(done), twins.load(done)
    items = to_score.twin_items(done)
    assert len(items) == len(made) > 5
    heads = {h.key: h for h in stored.heads if h.kind == "twin"}
    assert heads.keys() == {i.key for i in items}
    hints = {h.key: h for h in stored.heads if h.kind == "hint"}
    for item in items:
        head, hint = heads[item.key], hints[item.of]
        assert (head.trace_id, head.step, head.split) == (hint.trace_id, hint.step, hint.split)
        assert head.accepted == (not head.reasons) and set(head.reasons) <= {"not_done_here"}
        if hint.measurement.position is not None:
            assert head.measurement.position == hint.measurement.position
    chosen = train.selected(done)
    taken = {h.key for h in chosen.heads if h.kind == "twin"}
    assert taken == {k for k, h in heads.items() if h.accepted and h.split == "train"} and taken
    summary = json.loads((done.student_folder / "hintdistill.json").read_text())
    assert summary["twin_rows"] == len(taken)
    metrics = next((done.rundir.path / "train").glob("*/metrics.jsonl")).read_text()
    assert "twin_kl" in metrics


def test_a_resumed_run_scores_only_the_twins_that_are_owed(done, tmp_path):
    """Switched on in a finished run: no hint is scored again, and the twins come out the same."""
    folder = tmp_path / "run"
    before = load_config(None, [*SETTINGS, f"run.dir={folder}"])
    run(before, folder, until="rescore", console=Console(quiet=True))
    hints = {p.name: p.stat().st_mtime_ns for p in (folder / "targets").glob("part-*")}
    after = load_config(None, [*SETTINGS, "train.twins.per_finding=1", f"run.dir={folder}"])
    run(after, folder, until="rescore", console=Console(quiet=True), resume=True)
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "targets").iterdir() if p.name in hints} == hints
    late = rescore.load(RunContext(after, RunDir.open(folder), Console(quiet=True))).where(lambda t: t.kind == "twin")
    first = rescore.load(done).where(lambda t: t.kind == "twin")
    assert [(h.key, h.accepted, h.reasons) for h in late.heads] == [(h.key, h.accepted, h.reasons) for h in first.heads]
    for a, b in zip(late, first, strict=True):
        assert abs(a.plain_sampled - b.plain_sampled).max() < 1e-5


def test_twins_neither_pull_nor_push_the_student_where_it_starts(done, tmp_path):
    """They are held to what it says there; so only a hint can move it first, and a hint without a pull never does."""
    every = list(train.selected(done))
    section = done.config.train.model_copy(update={"warmup_ratio": 0.0})

    def gradient(kind: str) -> torch.Tensor:
        model = load_model(done.initial_folder, torch.float32, torch.device("cpu"))
        rows = build_rows([t for t in every if t.kind == kind], section)
        trainer = make_trainer(model, rows, done.config.run, section, tmp_path / kind)
        batch = list(trainer.train_dataset.rows)
        count = trainer._get_num_items_in_batch([{"rows": batch}], torch.device("cpu"))
        loss = trainer.compute_loss(model, {"rows": batch}, num_items_in_batch=count)
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    # what is left is the float32 rounding of two forwards in batches of other shapes
    assert gradient("twin").norm() <= 3e-5 * gradient("hint").norm()


def test_hints_without_a_pull_beside_twins_are_said(done):
    """An ignored error: the student gives the right continuation 1 in 30,000, where a bounded divergence is flat."""
    chosen, said = train.selected(done), list[str]()
    console = Console(quiet=True)
    console.warn = said.append

    def told(divergence: str, weight: float) -> list[str]:
        section = done.config.train.model_dump(mode="json")
        section |= {"recipe": {"terms": {"distill": {"divergence": {"kind": divergence}}}}}
        section["twins"] |= {"weight": weight}
        config = done.config.model_copy(update={"train": TrainSection.model_validate(section)})
        said.clear()
        train.warn_if_hints_do_not_pull(RunContext(config, done.rundir, console), chosen)
        return list(said)

    (warning,) = told("jsd", 1.0)
    assert "ignored_error" in warning and "divergence.kind=fkl" in warning
    assert "unknown_tool" not in warning.partition(": the student")[0]
    assert told("fkl", 1.0) == [] and told("jsd", 0.0) == []


def test_the_plan_counts_what_is_scored_and_trained(done):
    shape = ModelShape.of(done.model_folder)
    work = gather(done.config, shape)
    hints, anchors, twinned = to_score.hint_items(done), to_score.anchor_items(done), to_score.twin_items(done)
    assert work.targets == len(hints) + len(anchors) + len(twinned)
    asked = sum(2 + len(h.injection.placebos) for h in hints) + len(anchors) + len(twinned)
    assert sum(map(len, work.calls)) == asked
    assert len(work.rows) == len(build_rows(train.selected(done), done.config.train))
    batches = rescore.batched(hints, anchors, twinned, 7, together=True)
    assert sorted(i.key for b in batches for i in b) == sorted(
        i.key for some in (hints, anchors, twinned) for i in some
    )
    assert max(map(len, batches)) <= 7
    alone = rescore.batched(hints, anchors, (), 7, together=True)
    assert alone == [list(some[at : at + 7]) for some in (hints, anchors) for at in range(0, len(some), 7)]


def test_the_report_has_them_and_no_text_of_theirs_leaves(done):
    folder = done.rundir.path
    hintdistill("report", str(folder))
    document = json.loads((folder / "report.json").read_text())
    told = document["twins"]
    assert told["all"]["twins"] == len(to_score.twin_items(done)) == told["kept"]["twins"] + told["dropped"]["twins"]
    assert told["all"]["trained"] == document["funnel"]["train"]["twins"] == document["train"]["twin_rows"]
    for name, x in told["by_class"].items():
        mine = [f for f in document["findings"] if f["error_class"] == name]
        assert x["findings"] == len(mine)
        assert x["covered"] == sum(any(t["accepted"] for t in f["twins"]) for f in mine)
    finding = next(f for f in document["findings"] if f["twins"])
    shown = hintdistill("show", str(folder), f"{finding['trace']}:{finding['step']}").stdout
    twin = finding["twins"][0]
    assert f"twin {twin['maker']}/{twin['kind']}" in shown and f"{twin['here']:.4f} here" in shown
    assert twin["edit"]["replacements"] or twin["edit"]["removed"]
    assert "edit" not in json.dumps(shareable(document)["findings"]) and shareable(document)["twins"] is not None
    page = (folder / "report.html").read_text()
    # coverage stands before any figure of success
    assert "Findings with a twin" in page and page.index('<section id="twins"') < page.index('<section id="classes"')
    assert "held where it is right" in (done.student_folder / "README.md").read_text()


def test_twins_of_a_trace_share_a_context_where_they_can(done):
    by_trace: dict[str, list[Twin]] = {}
    for loaded in twins.load(done):
        by_trace.setdefault(loaded.trace_key, []).append(loaded.twin)
    noted = [t for some in by_trace.values() for t in some if any(n.startswith("combined ") for n in t.notes)]
    for some in by_trace.values():
        joint = [t for t in some if t in noted]
        for first, second in pairwise(joint):
            assert (
                second.finding.step <= first.finding.step or second.plain_ids[: len(first.plain_ids)] == first.plain_ids
            )
    assert noted, "no trace of the sample has two findings whose twins share a context"


def edit(*replacements):
    return TwinEdit(kind="k", replacements=tuple(replacements), maker="m")


def at(index, old, new, where="tools"):
    return Replacement(where=where, index=index, old=old, new=new)


def test_edits_go_together_where_neither_writes_or_reads_the_others_text():
    a, b = at(0, '"find"', '"search"'), at(1, '"get"', '"fetch"')
    assert union([edit(a), edit(b)]) == (a, b)
    assert union([edit(a), edit(a, b)]) == (a, b)
    assert union([edit(a), edit(at(0, '"q"', '"query"'))]) == (a, at(0, '"q"', '"query"'))
    assert union([edit(a), edit(at(0, '"find"', '"look"'))]) is None
    assert union([edit(a), edit(at(0, '"search"', '"look"'))]) is None
    first, second = at(1, "", "One.", "message"), at(1, "", "Two.", "message")
    assert union([edit(first), edit(second)]) == (first, second)


def test_targets_of_given_twins_are_not_judged(done):
    twin = twins.load(done)[0].twin
    other = twin.model_copy(update={"finding": Finding(step=twin.finding.step, error_class="other")})
    targets = twin_targets(done, [twin, other], "arm")
    assert [t.kind for t in targets] == ["twin", "twin"] and all(t.accepted for t in targets)
    assert len({t.key for t in targets}) == 2
