"""The one order of stages: names, parts of it, what each stage needs, and what is kept of its warnings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_type_hints

import pytest
from conftest import ROOT, STUDENT, TOOLWORLD

from hintdistill.config.file import validate
from hintdistill.core.errors import ConfigError, EmptyFunnelError, InputError
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.stages import (
    ORDER,
    STAGES,
    each_stage,
    kept_warnings,
    run_stages,
    stage_named,
    stages_between,
)
from hintdistill.pipeline.store import RunDir

pytestmark = pytest.mark.usefixtures("one_thread")


def context(folder: Path, **sections: dict) -> RunContext:
    """A run on the first traces of the shipped world, in `folder`."""
    lines = (TOOLWORLD / "traces.jsonl").read_text().splitlines(keepends=True)
    folder.mkdir(exist_ok=True)
    # the second line is no record: read warns of it
    (folder / "traces.jsonl").write_text("".join([lines[0], "{}\n", *lines[1:12]]))
    settings = {
        "run": {"model": str(STUDENT), "dir": str(folder / "run")},
        "traces": {"path": [str(folder / "traces.jsonl")], "holdout": 0.0},
        "critic": {"use": ["rules"], "prompts": str(TOOLWORLD / "prompts")},
    }
    for name, values in sections.items():
        settings[name] = settings.get(name, {}) | values
    config = validate(settings, "test")
    return RunContext(config, RunDir.create(folder / "run", config, resume=True), Console(quiet=True))


def warned(ctx: RunContext, stage: str) -> list[str] | None:
    return ctx.rundir.index(f"{stage}-warnings")


def test_the_order_has_names_and_parts():
    assert STAGES == ("read", "critique", "inject", "rescore", "train", "report")
    assert tuple(stage_named(name) for name in STAGES) == ORDER == stages_between()
    assert [s.name for s in stages_between("inject", "train")] == ["inject", "rescore", "train"]
    with pytest.raises(ConfigError, match="no stage 'revise'"):
        stage_named("revise")
    with pytest.raises(ConfigError, match="read comes before inject"):
        stages_between("inject", "read")


def test_the_command_line_names_the_stages_in_their_order():
    from hintdistill.cli import main

    until = get_type_hints(main.run, include_extras=True)["until"].__metadata__[0].help
    assert until == f"Last stage: {', '.join(STAGES[:-1])} or {STAGES[-1]}."
    assert main.run.__doc__ == f"Run all stages: {', '.join(STAGES)}."


def test_only_stages_that_need_weights_load_them(tmp_path):
    ctx = context(tmp_path)
    for name in each_stage(ctx, until="rescore"):
        assert bool(ctx.engines) == stage_named(name).needs_weights
        assert ctx.rundir.index(name) is not None and warned(ctx, name) is not None
    assert name == "rescore" and ctx.rundir.index("rescore") and ctx.rundir.index("train") is None
    assert len(warned(ctx, "read")) == 1 and warned(ctx, "critique") == []
    assert kept_warnings(ctx.rundir) == [*warned(ctx, "read"), *warned(ctx, "inject"), *warned(ctx, "rescore")]


def test_a_skipped_stage_keeps_its_rows_and_a_failing_one_its_warnings(tmp_path):
    ctx = context(tmp_path)
    run_stages(ctx, until="inject")
    before = {name: ctx.rundir.index(name) for name in ("read", "critique", "inject")}
    ctx.rundir.set_index("critique", before["critique"][:1])
    run_stages(ctx, until="inject", skip={"critique"})
    assert ctx.rundir.index("critique") == before["critique"][:1]
    assert ctx.rundir.index("inject") == [k for k in before["inject"] if k in ctx.rundir.index("inject")]
    (tmp_path / "traces.jsonl").write_text("{}\n")
    with pytest.raises(EmptyFunnelError):
        run_stages(ctx, until="read")
    assert len(warned(ctx, "read")) == 1 and warned(ctx, "inject") == []


def test_rewards_are_required_before_a_critic_is_asked_and_only_where_training_follows(tmp_path):
    outcome = {"recipe": {"preset": "hint_sd", "coupling": {"kind": "additive", "weight": 0.5}}}
    ctx = context(tmp_path, train=outcome | {"outcome": {"baseline": "round"}})
    text = (tmp_path / "traces.jsonl").read_text()
    (tmp_path / "traces.jsonl").write_text(re.sub(r'"reward": ?[0-9.]+', '"reward": null', text))
    with pytest.raises(InputError, match="reward"):
        run_stages(ctx)
    assert ctx.rundir.index("read") and ctx.rundir.index("critique") is None
    run_stages(ctx, until="critique")
    assert ctx.rundir.index("critique")


def test_no_other_file_lists_the_stages():
    pattern = re.compile(r'"read",\s*"critique"')
    files = [*(ROOT / "hintdistill").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    # the card unpacks the funnel of a report, whose sections have the stages' names
    found = {p.name for p in files if pattern.search(p.read_text())}
    assert found <= {"card.py"}


def test_what_a_stage_lacks_is_said_for_the_stages_that_run(tmp_path):
    from hintdistill.pipeline.stages import check_inputs

    config = context(tmp_path).config
    gone = config.model_copy(update={"run": config.run.model_copy(update={"model": str(tmp_path / "gone")})})
    check_inputs(gone, "critique")
    for until in STAGES[2:]:
        with pytest.raises(Exception, match="gone"):
            check_inputs(gone, until)
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["config"]["run"]["model"] == str(STUDENT)
