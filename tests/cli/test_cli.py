"""The smaller commands, through the real entry point."""

from __future__ import annotations

import json
import shlex

import pytest
from conftest import ROOT, STUDENT, TOOLWORLD
from support.command import hintdistill
from typer.testing import CliRunner

import hintdistill as hd
from hintdistill.cli.main import app
from hintdistill.core.errors import TraceError


def test_version_and_help():
    assert hintdistill("--version").stdout.strip() == hd.__version__
    assert "Exit codes" in hintdistill("--help").stdout
    hintdistill("nonsense", expect=2)
    hintdistill("run", expect=2)
    gone = hintdistill("ablate", "configs/ablate.yaml", "--sweep", "run.dir=x", expect=2).stderr
    assert "python -m benchmarks.ablation benchmarks/ablation/ablate.yaml" in gone


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
    assert "relative to this file" in (folder / "hintdistill.yaml").read_text()
    config = hd.load_config(folder / "hintdistill.yaml")
    assert config.critic.prompts == str(folder / "prompts")
    assert "already exists" in hintdistill("init", str(folder), expect=2).stderr
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


def test_init_with_model_and_traces_writes_a_config_that_runs(tmp_path):
    folder, traces, tools = tmp_path / "my own", str(TOOLWORLD / "traces.jsonl"), tmp_path / "tools.json"
    function = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
    tools.write_text(json.dumps([{"type": "function", "function": function}]))
    given = ("--model", str(STUDENT), "--traces", traces, "--tools", str(tools))
    out = hintdistill("init", str(folder), *given).stdout
    config = hd.load_config(folder / "hintdistill.yaml")
    assert config.run.model == str(STUDENT) and config.traces.path == (traces,) and list(config.critic.use) == ["rules"]
    assert config.traces.tools == str(tools)
    commands = [line for line in out.splitlines() if line.startswith("hintdistill ")]
    assert [c.split()[1] for c in commands] == ["doctor", "run", "run"]
    for command in commands[:2]:
        words = shlex.split(command, comments=True)[1:]
        hintdistill(*words, *(["traces.limit=3"] if "--dry-run" in words else []))
    done = hintdistill(
        "run", str(folder / "hintdistill.yaml"), "--until", "inject", "--limit", "20", f"run.dir={tmp_path / 'r'}"
    )
    assert "injections" in done.stdout


def test_init_without_a_folder_writes_where_one_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = CliRunner().invoke(app, ["init", "--model", str(STUDENT), "--traces", str(TOOLWORLD / "traces.jsonl")])
    assert written.exit_code == 0 and "hintdistill run hintdistill.yaml --dry-run" in written.stdout
    assert hd.load_config(tmp_path / "hintdistill.yaml").critic.prompts == str(tmp_path / "prompts")


def test_init_with_a_critic(tmp_path):
    given = ("--model", "owner/model", "--traces", str(TOOLWORLD / "traces.jsonl"))
    server = ("--critic", "http://localhost:8000/v1", "--critic-model", "big")
    hintdistill("init", str(tmp_path / "a"), *given, *server)
    config = hd.load_config(tmp_path / "a" / "hintdistill.yaml")
    assert list(config.critic.use) == ["llm"] and config.critic.llm.base_url == "http://localhost:8000/v1"
    assert config.critic.llm.model == "big" and config.critic.prompts == str(tmp_path / "a" / "prompts")
    hintdistill("init", str(tmp_path / "b"), *given, "--critic", str(TOOLWORLD / "critic"))
    local = hd.load_config(tmp_path / "b" / "hintdistill.yaml").critic.llm
    assert local.backend == "local" and local.model == str(TOOLWORLD / "critic")
    away = ("--critic", "https://critic.example/v1", "--critic-model", "big")
    assert "--send-traces" in hintdistill("init", str(tmp_path / "c"), *given, *away, expect=2).stderr
    hintdistill("init", str(tmp_path / "c"), *given, *away, "--send-traces")
    assert hd.load_config(tmp_path / "c" / "hintdistill.yaml").critic.allow_hosts == ("critic.example",)
    for wrong in (("--critic", "nobody"), ("--critic", "http://localhost:1/v1"), ("--model", "./nowhere/at/all")):
        hintdistill("init", str(tmp_path / "d"), *wrong, expect=2)
    hintdistill("init", str(tmp_path / "d"), "--traces", str(tmp_path / "none.jsonl"), expect=3)
    assert not (tmp_path / "d").exists(), "nothing is written where something is wrong"


def test_shipped_configs_are_listed_shown_and_copied(tmp_path):
    listed = json.loads(hintdistill("configs", "list", "--json").stdout)
    assert {"quickstart", "own-traces", "llm-critic"} <= {r["name"] for r in listed} and all(r["about"] for r in listed)
    assert hintdistill("configs", "show", "quickstart").stdout == (ROOT / "configs" / "quickstart.yaml").read_text()
    copy = tmp_path / "deep" / "mine.yaml"
    hintdistill("configs", "copy", "quickstart", str(copy))
    ours, theirs = hd.load_config(copy), hd.load_config(ROOT / "configs" / "quickstart.yaml")
    assert ours == theirs, "the copy means the same from another folder"
    assert "already exists" in hintdistill("configs", "copy", "quickstart", str(copy), expect=2).stderr
    assert "available: " in hintdistill("configs", "show", "nothing", expect=2).stderr


def test_prompts(tmp_path):
    listed = json.loads(hintdistill("prompts", "list", "--json").stdout)
    assert {"name", "hash", "file"} == set(listed[0]) and "critic/all_at_once.jinja" in {r["name"] for r in listed}
    checked = json.loads(hintdistill("prompts", "check", "--json").stdout)
    assert checked["problems"] == checked["advice"] == []
    (tmp_path / "hints").mkdir()
    (tmp_path / "hints" / "unknown_tool.jinja").write_text("There is no {{ wrong }}.")
    done = hintdistill("prompts", "check", "--prompts", str(tmp_path))
    assert "advice: " in done.stdout and "it mentions the wrong word first" in done.stdout
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
    assert '"step":0' in text and "the steps are" in text
    ids = [json.loads(line)["id"] for line in (TOOLWORLD / "traces.jsonl").read_text().splitlines()]
    alias = next(i for i in ids if ".alias." in i)
    done = hintdistill("prompts", "render", "placebo/generic.jinja", *traces, "--trace", alias, "--json")
    assert json.loads(done.stdout)["texts"]
    assert (
        "no trace nope"
        in hintdistill("prompts", "render", "critic/all_at_once.jinja", *traces, "--trace", "nope", expect=3).stderr
    )


def test_the_agents_call(unknown_tool_case):
    """From plain OpenAI messages to what a hint would have done, in one call."""
    trace, _, hint = unknown_tool_case
    engine = hd.load_engine(str(STUDENT), device="cpu")
    messages = [{"role": m.role, "content": m.content} for m in trace.before(0)]
    step = trace.step(0).tool_calls[0]
    wrong_call = {"id": "1", "type": "function", "function": {"name": step.name, "arguments": step.arguments_raw}}
    messages += [
        {"role": "assistant", "content": None, "tool_calls": [wrong_call]},
        {"role": "tool", "content": "error"},
    ]
    call = {"step": 0, "quote": step.name, "engine": engine, "tools": trace.tools}
    target = hd.rescore(messages, hint=hint, **call)
    assert step.name.endswith(target.decision.token) and target.decision.effect < -1
    assert target.hint_effect.shape == (len(target.tokens),) and target.legal_mass_gain > 0
    assert target.shifts(2)[0].token == target.decision.token
    useless = hd.rescore(messages, hint="Be polite to the user.", **call)
    assert not useless.accepted and useless.hint_effect.min() > target.hint_effect.min()
    below = hd.rescore(messages, hint=hint, placement="observation", **call)
    assert below.decision.effect < -1 and below.insert_at != target.insert_at
    # typed messages carry more than a dict can, recorded ids for one
    typed = hd.rescore(trace.messages, hint=hint, **call)
    assert typed.fidelity == "ids" and tuple(typed.step_ids) == trace.step(0).token_ids
    with pytest.raises(TraceError, match=r"steps 0\.\.0, not 3"):
        hd.rescore(messages, hint="x", **{**call, "step": 3})
    with pytest.raises(TraceError):
        hd.rescore([], step=0, hint="x", engine=engine)


def test_doctor_of_a_config_says_first_what_the_student_will_not_see(tmp_path):
    deaf = tmp_path / "deaf.jinja"
    deaf.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{{ stamp or '' }}{% endif %}"
    )
    where = (
        "doctor",
        str(ROOT / "configs" / "quickstart.yaml"),
        "--json",
        "traces.limit=3",
        f"run.template.file={deaf}",
    )
    server = ("critic.use=[llm]", "critic.llm.backend=server", "critic.llm.base_url=http://127.0.0.1:9/v1")
    checks = json.loads(
        hintdistill(*where, *server, "critic.llm.model=m", "run.template.options={stamp: A}", expect=3).stdout
    )
    first = checks[0]
    assert (first["name"], first["status"]) == ("not seen by the student", "warn")
    for part in ("tools hd_weather", "calls of hd_weather", "reasoning of message 1"):
        assert part in first["detail"]
    assert "system prompt" not in first["detail"]
    by_name = {c["name"]: c for c in checks}
    assert by_name["template options"]["detail"] == "stamp=A"
    assert by_name["critic server"]["status"] == "fail" and "OPENAI_API_KEY" in by_name["critic server"]["detail"]
    # the shipped template prints all but reasoning
    plain = json.loads(
        hintdistill("doctor", str(ROOT / "configs" / "quickstart.yaml"), "--json", "traces.limit=3").stdout
    )
    assert plain[0]["detail"] == "reasoning: the template does not print the reasoning of message 1"
    assert {c["name"]: c for c in plain}["context length"]["status"] == "ok"
