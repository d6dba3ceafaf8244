"""Twins in a run: rows of the inject stage, keyed, resumed, counted, off by default."""

from __future__ import annotations

import json

import pytest
from conftest import TOOLWORLD, WEATHER, call
from support.twinnable import TWINNABLE

import hintdistill as hd
from hintdistill.config.file import load_config
from hintdistill.core.errors import QuoteNotFoundError, TwinError
from hintdistill.core.types import Finding, Replacement, Trace, TwinEdit
from hintdistill.injection.twins import TwinBuilder
from hintdistill.pipeline import inject, twins
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.pipeline.store import RunDir
from hintdistill.traces.reading import read_traces


def made(folder, *overrides, resume=False):
    config = load_config(None, [*TWINNABLE, *overrides])
    run(config, folder, until="inject", console=Console(quiet=True), resume=resume)
    rundir = RunDir.open(folder)
    return RunContext(config, rundir, Console(quiet=True)), rundir.current("twins", "twins")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("twins") / "run"
    return folder, *made(folder, "train.twins.per_finding=2")


def test_a_row_per_injected_finding_and_its_twins_are_loaded(two):
    _, ctx, rows = two
    injections = inject.load(ctx)
    assert len(rows) == len(injections) > 10 and [r["trace"] for r in rows] == [i.trace_key for i in injections]
    loaded = twins.load(ctx)
    assert [t.trace_key for t in loaded] == [r["trace"] for r in rows for _ in r["twins"]]
    assert len({t.key for t in loaded}) == len(loaded) and {t.split for t in loaded} <= {"train", "holdout"}
    for row, injected in zip(rows, injections, strict=True):
        mine = [hd.Twin.model_validate(t) for t in row["twins"]]
        assert len(mine) <= 2 and len({t.edit.kind for t in mine}) == len(mine)
        assert mine or row["dropped"] or row["reason"] in ("no_edit", "no_value")
        for twin in mine:
            assert (twin.finding, twin.span) == (injected.injection.finding, injected.injection.span)
            assert twin.step_ids == injected.injection.step_ids and twin.context_ids != injected.injection.context_ids
    reasons = {d["reason"] for r in rows for d in r["dropped"]}
    assert "state_changing" in reasons
    booked = [r for r in rows if r["finding"].get("quote") == "book_room"]
    assert booked and not any(r["twins"] for r in booked)
    # findings of one class get different kinds
    assert (
        len({t["edit"]["kind"] for r in rows for t in r["twins"] if r["finding"]["error_class"] == "unknown_tool"}) >= 3
    )


def test_a_resumed_run_makes_only_what_is_owed(two):
    folder, _, rows = two
    file = folder / "twins.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(lines[:-2]) + lines[-2][:50])
    made(folder, "train.twins.per_finding=2", resume=True)
    assert sorted(file.read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert RunDir.open(folder).current("twins", "twins") == rows


def test_numbers_by_class_are_in_the_report(two):
    folder, _, rows = two
    said = json.loads((folder / "report.json").read_text())["funnel"]["inject"]["twins"]
    assert said == twins.counts(rows) and said["findings"] == len(rows)
    assert said["covered"] == sum(bool(r["twins"]) for r in rows) == sum(c["covered"] for c in said["classes"].values())
    assert said["classes"]["skipped_lookup"]["dropped"]["named"]["state_changing"] >= 1


def test_off_by_default_and_switched_off_again(tmp_path, two):
    ctx, rows = made(tmp_path / "off")
    assert rows == [] and not (tmp_path / "off" / "twins.jsonl").exists() and twins.load(ctx) == []
    assert "twins" not in json.loads((tmp_path / "off" / "report.json").read_text())["funnel"]["inject"]
    made(tmp_path / "off", "train.twins.per_finding=1", resume=True)
    _, rows = made(tmp_path / "off", resume=True)
    assert rows == []


def test_the_users_checker_judges_twins(student_renderer, weather_trace, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from hintdistill.core.types import Finding\n"
        "def check(trace):\n"
        "    names = {t['function']['name'] for t in trace.tools}\n"
        "    return [Finding(step=0, error_class='old_name')] if 'get_forecast' in names else []\n"
    )
    finding = Finding(step=0, error_class="unknown_tool", facts={"right": "get_weather"})
    for checker, reason in ((None, None), (f"{tmp_path / 'mine.py'}:check", "finds_error")):
        making = twins.Making(TwinBuilder(student_renderer), twins.judge(checker), 3, False, 0)
        edit = next(e for e in twins.twin_edits(weather_trace, finding) if e.kind == "rename")
        if reason is None:
            assert making.twin(weather_trace, finding, edit, (0, 1)).edit == edit
            continue
        with pytest.raises(TwinError, match="old_name under the edit") as refused:
            making.twin(weather_trace, finding, edit, (0, 1))
        assert refused.value.reason == reason


def test_the_environment_judges_twins_where_the_run_has_one(student_renderer, tmp_path):
    """A name is no order's number in toolworld, whoever says so; that no general check can see."""
    traces = {t.id: t for t in read_traces([TOOLWORLD / "traces.jsonl"])}
    trace = traces["order.urgent.none.old.26219#1"]
    finding = Finding(step=0, error_class="skipped_lookup", quote="track_order")
    edit = next(e for e in twins.twin_edits(trace, finding) if e.kind == "named")
    alone = twins.Making(TwinBuilder(student_renderer), twins.judge(), 1, False, 0)
    assert "order_id Victor" in student_renderer.decode(alone.twin(trace, finding, edit, (0, 1)).context_ids)
    world = twins.judge(environment=f"{TOOLWORLD / 'world.py'}:Toolworld")
    with pytest.raises(TwinError, match="skipped_lookup under the edit"):
        twins.Making(TwinBuilder(student_renderer), world, 1, False, 0).twin(trace, finding, edit, (0, 1))
    (tmp_path / "broken.py").write_text("def check(trace):\n    raise KeyError('id')\n")
    broken = twins.Making(TwinBuilder(student_renderer), twins.judge(f"{tmp_path / 'broken.py'}:check"), 1, False, 0)
    with pytest.raises(TwinError, match="KeyError") as refused:
        broken.twin(trace, finding, edit, (0, 1))
    assert refused.value.reason == "not_judged"


def test_a_critics_edit_never_licenses_a_change_even_where_twins_may(student_renderer):
    book = {"type": "function", "function": {"name": "book_hotel", "parameters": {"type": "object", "properties": {}}}}
    messages = (hd.Message(role="user", content="Book one, but ask me first."), call("book_hotel", "{}"))
    trace = Trace(id="t", messages=messages, tools=(book,))
    part = Replacement(where="message", index=0, old=", but ask me first", new="")
    edit = TwinEdit(kind="critic", replacements=(part,), maker="unknown_tool")
    making = twins.Making(TwinBuilder(student_renderer), twins.judge(), 1, True, 0)
    finding = Finding(step=0, error_class="missing_confirmation", twin=edit)
    with pytest.raises(TwinError, match="book_hotel") as refused:
        making.twin(trace, finding, edit, (0, 1))
    assert refused.value.reason == "state_changing"
    # the same edit of a maker is licensed on request
    assert making.twin(trace, finding.model_copy(update={"twin": None}), edit, (0, 1)).step_ids


def test_the_call_makes_one_twin(student_engine, student_renderer, weather_trace):
    engine = hd.LoadedModel(student_engine, student_renderer, "transformers")
    asked = {"step": 0, "engine": engine, "tools": weather_trace.tools}
    name = ('"name": "get_weather"', '"name": "get_forecast"')
    made = hd.twin(list(weather_trace.messages), edit=[name], quote="get_forecast", **asked)
    assert "get_forecast(city:string" in student_renderer.decode(made.context_ids)
    assert student_renderer.decode(made.step_ids[slice(*made.span)]) == "get_forecast"
    again = hd.twin(list(weather_trace.messages), edit=made.edit, quote="get_forecast", **asked)
    assert again == made and made.edit.maker == "caller"
    for edit, quote, error in (
        ([("Paris", "Rome")], None, "unknown_tool under the edit"),
        ([("London", "Rome")], None, "occurs 0 times"),
        ([name], "no such words", "does not occur in step 0"),
    ):
        with pytest.raises((TwinError, QuoteNotFoundError), match=error):
            hd.twin(list(weather_trace.messages), edit=edit, quote=quote, **asked)
    assert WEATHER in weather_trace.tools
