"""Several hints for one finding: scored alike, one of them trained on, the others kept with their reason."""

from __future__ import annotations

from collections import defaultdict

import pytest
from conftest import STUDENT, TOOLWORLD

from hintdistill.config.file import load_config
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.rescore import load
from hintdistill.pipeline.stages import run_stages
from hintdistill.pipeline.store import RunDir

pytestmark = pytest.mark.usefixtures("one_thread")
SETTINGS = (
    f"run.model={STUDENT}",
    f"traces.path={TOOLWORLD / 'traces.jsonl'}",
    "traces.limit=8",
    "critic.use=[rules]",
    f"critic.prompts={TOOLWORLD / 'prompts'}",
    "inject.candidates=3",
    "rescore.top_k=8",
    "train.watch.every=0",
    "train.anchor.per_trace=0",
)


def test_candidates_compete_and_at_most_one_of_a_finding_is_accepted(tmp_path):
    config = load_config(None, SETTINGS)
    rundir = RunDir.create(tmp_path / "run", config, resume=False)
    try:
        ctx = RunContext(config, rundir, Console(quiet=True))
        run_stages(ctx, until="rescore")
        targets = [t for t in load(ctx) if t.kind == "hint"]
        before = (tmp_path / "run" / "injections.jsonl").read_bytes()
        run_stages(ctx, first="inject", until="rescore")
        assert (tmp_path / "run" / "injections.jsonl").read_bytes() == before, "a resumed run finds them all"
    finally:
        rundir.close()
    by_finding = defaultdict(list)
    for t in targets:
        by_finding[t.trace_id, t.step].append(t)
    several = [group for group in by_finding.values() if len(group) > 1]
    assert len(several) >= 3
    for group in several:
        assert {t.candidate for t in group} <= {"critic", "principle", "action", "template"}
        assert sum(t.choice == "best" for t in group) == 1 and sum(t.accepted for t in group) <= 1
        for level in {t.level for t in group}:
            of = [t for t in group if t.level == level]
            first = max(of, key=lambda t: t.measurement.odds)
            assert {t.choice for t in of if t is not first} <= {"outranked"} and first.choice != "outranked"
            assert all("outranked" in t.reasons for t in of if t is not first)
