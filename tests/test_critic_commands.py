"""`hintdistill critique` and `hintdistill prompts` as a user types them."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import STUDENT, TOOLWORLD, real_file
from scripted_server import scripted_server
from typer.testing import CliRunner

from hintdistill.cli import app
from hintdistill.errors import HintdistillError, PromptError
from hintdistill.reporting.spending import spending

NONE = json.dumps({"verdict": "none", "findings": []})


def run(*args: str, expect: type[HintdistillError] | None = None) -> str:
    result = CliRunner().invoke(app, [str(a) for a in args])
    if expect is not None:
        assert isinstance(result.exception, expect), result.output
        return str(result.exception)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.stdout


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"run: {{model: {STUDENT}, dir: {tmp_path / 'run'}}}\ntraces: {{path: {TOOLWORLD / 'traces.jsonl'}, limit: 12}}\n"
        f"critic: {{use: [rules], prompts: {TOOLWORLD / 'prompts'}}}\n"
    )
    return path


def test_labels_score_a_critic(config, tmp_path):
    """The rules on their own world: what they can see they find, a skipped look-up never, and nothing on clean traces."""
    result = json.loads(run("critique", config, "--labels", TOOLWORLD / "findings.jsonl", "traces.limit=200", "--json"))
    classes = result["by_class"]
    for name in ("unknown_tool", "wrong_argument", "ignored_error"):
        assert classes[name]["class"]["rate"] == 1.0
    assert classes["skipped_lookup"]["exact"]["rate"] == 0.0
    assert result["clean"]["false_alarm"]["hits"] == 0 and result["clean"]["false_alarm"]["high"] < 0.1
    assert 0 < result["guessing"]["random"] < result["guessing"]["best_constant"] <= 1
    text = run("critique", config, "--labels", TOOLWORLD / "findings.jsonl", "-q")
    assert "exact step" in text and "best constant" in text and (tmp_path / "run" / "evaluation.json").is_file()


def test_labels_of_published_sets(config):
    path = real_file("annotated")
    result = json.loads(run("critique", config, "--labels", path, "traces.limit=500", "--json"))
    assert result["traces"] == {"erring": 177, "clean": 58, "not_student": 4} and result["unread"] == 0
    assert result["guessing"]["constant"].startswith("always step")
    assert len(result["cases"]) == 239 and result["failed"]["hits"] == 0


def test_a_dry_run_asks_nothing(config):
    with scripted_server(NONE) as server:
        settings = ("critic.use=[rules,llm]", f"critic.llm.base_url={server.url}", "critic.llm.model=m")
        found = json.loads(run("critique", config, *settings, "--dry-run", "--json"))
        assert found["rules"] == {"requests": 0, "prompt_tokens": 0}
        assert found["llm"]["requests"] == 12 and found["llm"]["prompt_tokens"] > 5000
        assert [r for r in server.received if r] == []
        text = run("critique", config, *settings, "critic.llm.strategy=step_by_step", "--dry-run")
        assert "llm: " in text and "prompt tokens at most" in text


def test_usage_and_money_are_in_the_report(config, tmp_path):
    with scripted_server(NONE) as server:
        run("critique", config, "critic.use=[llm]", f"critic.llm.base_url={server.url}", "critic.llm.model=m",
            "critic.llm.context_tokens=16000", "critic.llm.price_in=2", "critic.llm.price_out=10", "-q")  # fmt: skip
        assert len(server.received) == 12
    usage = json.loads((tmp_path / "run" / "report.json").read_text())["funnel"]["critique"]["usage"]
    assert usage["requests"] == 12 and usage["prompt_tokens"] == 84
    assert usage["money"] == pytest.approx((84 * 2 + 36 * 10) / 1e6)
    assert len((tmp_path / "run" / "answers.jsonl").read_text().splitlines()) == 12


def test_spending_per_accepted_finding():
    rows = [{"critic": "llm", "critique": {"usage": {"requests": 1, "prompt_tokens": 100, "completion_tokens": 20}}},
            {"critic": "llm", "failure": {"usage": {"requests": 2, "prompt_tokens": 200, "completion_tokens": 0}}},
            {"critic": "rules", "critique": {}}]  # fmt: skip
    got = spending(rows, {"critic": {"llm": {"price_in": 1.0, "price_out": 2.0}}}, accepted=4)
    assert (got["requests"], got["tokens_per_accepted_finding"], got["money"]) == (3, 80.0, pytest.approx(340e-6))
    assert spending(rows, {"critic": {"llm": {}}}, accepted=4)["money"] is None
    assert spending(rows, {"critic": {"llm": {}}}, accepted=0)["tokens_per_accepted_finding"] is None


def test_compare_two_prompts_on_the_same_traces(config, tmp_path):
    """Two prompts under a server that finds the first step wrong under one of them."""
    folder = tmp_path / "prompts"
    shutil.copytree(TOOLWORLD / "prompts", folder)
    (folder / "critic").mkdir(exist_ok=True)
    (folder / "critic" / "mine.jinja").write_text("Judge it. {{ legal_steps }}")

    def answer(request):
        if "Judge it." not in request["messages"][0]["content"]:
            return NONE
        finding = {"step": 0, "quote": None, "error_class": "wrong_answer", "hint": "Call the tool that is listed for this.",
                   "confidence": 0.9, "caused_by": None}  # fmt: skip
        return json.dumps({"verdict": "findings", "findings": [finding]})

    with scripted_server(answer) as server:
        settings = (f"critic.prompts={folder}", "critic.use=[llm]", f"critic.llm.base_url={server.url}", "critic.llm.model=m",
                    "critic.llm.context_tokens=16000", "traces.limit=2")  # fmt: skip
        sides = ("--compare", "critic.llm.prompt=critic/all_at_once.jinja", "critic.llm.prompt=critic/mine.jinja")
        got = json.loads(run("critique", config, *settings, *sides, "--json"))
        again = json.loads(run("critique", config, *settings, "--compare", got["a"], got["b"], "--json"))
    assert again == got
    assert len(got["findings"]["gained"]) == 2 and got["findings"]["lost"] == got["findings"]["moved"] == []
    assert got["tokens"]["n"] == 2 and got["tokens"]["low"] <= got["tokens"]["difference"] <= got["tokens"]["high"]
    assert got["accepted"]["a"] == 0.0
    text = run("critique", config, "--compare", got["a"], got["b"], "-q")
    assert "2 gained, 0 lost, 0 moved" in text


def test_eject_writes_prompts_that_check(tmp_path):
    written = run("prompts", "eject", tmp_path / "mine").split()
    assert f"{tmp_path / 'mine' / 'critic' / 'all_at_once.jinja'}" in written
    assert "no problems" in run("prompts", "check", "--prompts", tmp_path / "mine")
    assert "is there already" in run("prompts", "eject", tmp_path / "mine", "critic/step.jinja", expect=PromptError)
    assert run("prompts", "eject", tmp_path / "one", "critic/step.jinja").split() == [
        str(tmp_path / "one" / "critic" / "step.jinja")
    ]


@pytest.mark.parametrize(
    "name", ["critic/all_at_once.jinja", "critic/step.jinja", "critic/half.jinja", "critic/toolworld.jinja"]
)
def test_render_shows_what_the_critic_reads(name):
    text = run("prompts", "render", name, "--traces", TOOLWORLD / "traces.jsonl")
    assert '{"role":"system"' in text and '{"step":0,' in text
    assert text.startswith("The following lines are the record") == (name != "critic/toolworld.jinja")
