"""The smaller commands, through the real entry point."""

from __future__ import annotations

import json

import pytest
from conftest import STUDENT, TOOLWORLD
from test_pipeline import hintdistill

import hintdistill as hd
from hintdistill.errors import TraceError


def test_version_and_help():
    assert hintdistill("--version").stdout.strip() == hd.__version__
    assert "Exit codes" in hintdistill("--help").stdout
    hintdistill("nonsense", expect=2)
    hintdistill("run", expect=2)


def test_doctor():
    checks = {c["name"]: c for c in json.loads(hintdistill("doctor", "--json", "--model", str(STUDENT)).stdout)}
    assert all(c["status"] != "fail" for c in checks.values())
    assert checks["tool arguments"]["detail"] == "raw" and checks["hint as system"]["status"] == "ok"
    done = hintdistill("doctor", "--model", "./nowhere", expect=3)
    assert "fail  model: no model folder at ./nowhere" in done.stdout


def test_init_writes_a_config_that_loads(tmp_path):
    folder = tmp_path / "mine"
    written = hintdistill("init", str(folder)).stdout.splitlines()
    assert (
        str(folder / "hintdistill.yaml") in written and (folder / "prompts" / "critic" / "all_at_once.jinja").exists()
    )
    config = hd.load_config(folder / "hintdistill.yaml")
    assert config.critic.prompts == str(folder / "prompts")
    assert "is there already" in hintdistill("init", str(folder), expect=2).stderr
    plan = hintdistill(
        "run",
        str(folder / "hintdistill.yaml"),
        "--dry-run",
        f"run.model={STUDENT}",
        f"traces.path={TOOLWORLD / 'traces.jsonl'}",
        "--limit",
        "3",
    )
    assert "traces: 3" in plan.stdout


def test_prompts(tmp_path):
    listed = json.loads(hintdistill("prompts", "list", "--json").stdout)
    assert {"name", "hash", "file"} == set(listed[0]) and "critic/all_at_once.jinja" in {r["name"] for r in listed}
    assert json.loads(hintdistill("prompts", "check", "--json").stdout)["problems"] == []
    (tmp_path / "hints").mkdir()
    (tmp_path / "hints" / "bad.jinja").write_text("{{ nope }}")
    done = hintdistill("prompts", "check", "--prompts", str(tmp_path), expect=2)
    assert "bad.jinja:1: unknown variable 'nope'" in done.stdout
    assert (
        "no prompt"
        in hintdistill(
            "prompts", "render", "hints/nope.jinja", "--traces", str(TOOLWORLD / "traces.jsonl"), expect=2
        ).stderr
    )


def test_prompts_render():
    traces = ["--traces", str(TOOLWORLD / "traces.jsonl")]
    text = hintdistill("prompts", "render", "critic/all_at_once.jinja", *traces).stdout
    assert '"step": 0' in text and "the steps are" in text
    ids = [json.loads(line)["id"] for line in (TOOLWORLD / "traces.jsonl").read_text().splitlines()]
    alias = next(i for i in ids if ".alias." in i)
    done = hintdistill("prompts", "render", "placebo/generic.jinja", *traces, "--trace", alias, "--json")
    assert json.loads(done.stdout)["texts"]
    assert (
        "no trace nope"
        in hintdistill("prompts", "render", "critic/all_at_once.jinja", *traces, "--trace", "nope", expect=3).stderr
    )


def test_the_agents_call():
    engine = hd.load_engine(str(STUDENT), device="cpu")
    tools = [
        {
            "type": "function",
            "function": {"name": n, "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
        }
        for n in ("get_weather", "get_humidity")
    ]
    messages = [
        {"role": "system", "content": "You answer requests with tools."},
        {"role": "user", "content": "Tell me the forecast of Paris."},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "1", "function": {"name": "get_forecast", "arguments": '{"city":"Paris"}'}}],
        },
        {"role": "tool", "content": '{"error":"unknown tool get_forecast"}'},
    ]
    target = hd.rescore(
        messages,
        step=0,
        hint="There is no tool get_forecast. The tools are get_weather, get_humidity.",
        quote="get_forecast",
        engine=engine,
        tools=tools,
    )
    assert target.decision.token == "forecast" and target.decision.effect < -1
    assert target.hint_effect.shape == (len(target.tokens),) and target.legal_mass_gain > 0
    assert target.shifts(2)[0].token == "forecast"
    useless = hd.rescore(
        messages, step=0, hint="Be polite to the user.", quote="get_forecast", engine=engine, tools=tools
    )
    assert not useless.accepted and useless.hint_effect.min() > target.hint_effect.min()
    below = hd.rescore(
        messages, step=0, hint="There is no tool get_forecast.", engine=engine, tools=tools, placement="observation"
    )
    assert len(below.tokens) == len(target.tokens)
    with pytest.raises(TraceError, match=r"steps 0\.\.0, not 3"):
        hd.rescore(messages, step=3, hint="x", engine=engine)
    with pytest.raises(TraceError):
        hd.rescore([], step=0, hint="x", engine=engine)
