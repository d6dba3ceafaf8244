"""`hintdistill critique` and `hintdistill prompts` as a user types them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from conftest import STUDENT, TOOLWORLD, real_file
from support.scripted_server import scripted_server
from typer.testing import CliRunner

from hintdistill.cli.main import app
from hintdistill.core.errors import ConfigError, HintdistillError, InputError, PromptError, ServiceError
from hintdistill.prompts import PromptLibrary
from hintdistill.reporting.spending import spending, spent

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


def test_hints_that_repair_the_labelled_step(config):
    """The hints of the rules on their own world: most pass the gate, and most steps change to ones no rule objects to."""
    ask = ("critique", config, "--labels", TOOLWORLD / "findings.jsonl", "traces.limit=40", "--hints")
    result = json.loads(run(*ask, "--json"))
    hints, said = result["hints"], sum(result["named_classes"].values())
    assert hints["findings"] == said > 3 and hints["judged_by"] == ["rules"]
    assert hints["accepted"]["n"] == hints["repaired"]["n"] == said
    assert hints["accepted"]["hits"] + sum(hints["reasons"].values()) >= said and hints["accepted"]["hits"] > 0
    assert hints["repaired"]["hits"] == hints["decoded"]["kept"] - hints["decoded"]["unchanged"] > said / 2
    assert result["quotes"]["hits"] == result["quotes"]["n"] > 0
    text = run(*ask, "traces.limit=12")
    assert "accepted by the gate" in text and "step repaired" in text and "quotes found" in text
    assert "--hints needs --labels" in run("critique", config, "--hints", expect=ConfigError)


def test_labels_of_published_sets(config):
    path = real_file("annotated")
    result = json.loads(run("critique", config, "--labels", path, "traces.limit=500", "--json"))
    assert result["traces"] == {"erring": 161, "clean": 58, "not_student": 20} and result["unread"] == 0
    assert result["guessing"]["constant"].startswith("always step")
    assert len(result["cases"]) == 239 and result["failed"]["hits"] == 0
    assert sum(of["exact"]["n"] for of in result["by_set"].values()) == 161 and len(result["by_set"]) > 1
    named = [case["named"] for case in result["cases"] if case["verdict"] == "findings"]
    assert named and None not in named and all("confidence" in f for case in result["cases"] for f in case["findings"])


def test_a_dry_run_of_labels_asks_nothing_and_a_critic_that_fails_is_no_success(config, tmp_path):
    labels = ("--labels", TOOLWORLD / "findings.jsonl", "traces.limit=3", "critic.use=[llm]")
    server = ("critic.llm.base_url=http://127.0.0.1:9", "critic.llm.model=m", "critic.llm.retries=0")
    asked = json.loads(
        run("critique", config, *labels, *server, "critic.llm.context_tokens=16000", "--dry-run", "--json")
    )
    assert asked["critics"]["llm"]["requests"] == asked["traces"] == 3
    with scripted_server("nonsense") as other:
        server = (f"critic.llm.base_url={other.url}", "critic.llm.model=m", "critic.llm.repair_rounds=0")
        failed = run("critique", config, *labels, *server, "critic.llm.context_tokens=16000", expect=ServiceError)
    assert "every critic failed on all 3 labelled traces" in failed
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["failed"]["hits"] == 3


def test_labels_that_are_not_there(config):
    said = run("critique", config, "--labels", "nowhere.jsonl", expect=InputError)
    assert "nowhere.jsonl does not exist" in said and "--labels" in said


def test_a_cascade_is_one_config(config, tmp_path):
    """Rules, a cheap critic, and a strong one that is asked only where the others leave something open."""
    finding = {
        "step": 0,
        "quote": None,
        "error_class": "wrong_answer",
        "hint": "Read the last result once more.",
        "confidence": 0.9,
        "caused_by": None,
    }
    found = json.dumps({"verdict": "findings", "findings": [finding]})
    with scripted_server(NONE) as cheap, scripted_server(found) as strong:
        settings = ["critic.use=[strong,rules,llm]", "critic.escalate=[disagreement]"]
        for name, server in (("llm", cheap), ("strong", strong)):
            settings += [
                f"critic.{name}.base_url={server.url}",
                f"critic.{name}.model=m",
                f"critic.{name}.context_tokens=16000",
            ]
        document = json.loads(run("critique", config, *settings, "--json"))
        assert len(cheap.received) == 12 and 0 < len(strong.received) < 12
    rows = [json.loads(line) for line in (tmp_path / "run" / "critiques.jsonl").read_text().splitlines()]
    said = {
        name: {r["trace_id"]: r["critique"]["verdict"] for r in rows if r["critic"] == name}
        for name in ("rules", "llm", "strong")
    }
    assert set(said["strong"]) == {t for t, verdict in said["rules"].items() if verdict == "findings"}, (
        "the cheap one says none"
    )
    assert document["funnel"]["critique"]["findings"] == len(said["strong"]), "its word replaces theirs"
    assert document["funnel"]["critique"]["by_class"].keys() == {"wrong_answer"}


SECRETS = [
    "AKIA" + "IOSFODNN7EXAMPLQ",
    "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8",
    "maria.lopez@example.com",
    "hunter2secret!",
    "sk-proj-" + "aB3dE5fG7hI9jK1lM3nO5",
]


def test_a_recording_server_never_sees_a_planted_secret(config, tmp_path):
    """Keys, a password and an e-mail address, each in a message, in call arguments, in a result: the traces that hold one
    are failed rows that say what stands where, the others are asked about, and the run goes on."""
    traces = []
    for secret in SECRETS:
        said = f'password = "{secret}"' if "hunter2" in secret else secret
        arguments = json.dumps({"password": secret, "note": said})
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
        for n, messages in enumerate(
            (
                [{"role": "user", "content": f"Here:\n{said}"}, {"role": "assistant", "content": "Thanks."}],
                [{"role": "user", "content": "Go."}, {"role": "assistant", "content": None, "tool_calls": [call]}],
                [
                    {"role": "user", "content": "Go."},
                    {"role": "assistant", "content": "I look."},
                    {"role": "tool", "content": json.dumps({"data": json.dumps({"api_key": secret, "text": said})})},
                ],
            )
        ):
            traces.append({"id": f"{len(traces)}-{n}", "messages": messages})
    traces += [
        {
            "id": f"clean-{i}",
            "messages": [{"role": "user", "content": "Go."}, {"role": "assistant", "content": f"Gone {i}."}],
        }
        for i in range(3)
    ]
    path = tmp_path / "secrets.jsonl"
    path.write_text("".join(json.dumps(t) + "\n" for t in traces))
    with scripted_server(NONE) as server:
        settings = [
            f"traces.path={path}",
            "traces.limit=null",
            "critic.use=[llm]",
            "critic.secret_scan=always",
            f"critic.llm.base_url={server.url}",
            "critic.llm.model=m",
            "critic.llm.context_tokens=16000",
        ]
        text = run("critique", config, *settings, "-q", "--json")
        received = json.dumps(server.received, ensure_ascii=False)
        assert len(server.received) == 3 and "Gone 2." in received
    assert [s for s in SECRETS if s in received] == []
    rows = [json.loads(line) for line in (tmp_path / "run" / "critiques.jsonl").read_text().splitlines()]
    failed = [r["failure"] for r in rows if "failure" in r]
    assert len(failed) == 3 * len(SECRETS) and all("was not sent: message " in f["message"] for f in failed)
    assert [s for s in SECRETS if any(s in f["message"] for f in failed) or s in text] == []


def test_every_prompts_hash_is_in_the_run_folder(config, tmp_path):
    run("critique", config, "-q")
    library = PromptLibrary(TOOLWORLD / "prompts")
    noted = json.loads((tmp_path / "run" / "manifest.json").read_text())["prompts"]
    assert noted == {name: library.hash(name) for name in library.names()} and "critic/step.jinja" in noted


EVIL = "\x1b[2J\x1b]0;owned\x07\x9b31m\u202e<script>alert(1)</script>[bold red]"


@pytest.fixture
def hostile(tmp_path, config):
    """A config whose traces call a tool, and whose critic names classes, that would clear the screen."""
    tool = {"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {}}}}
    call = {"id": "1", "type": "function", "function": {"name": EVIL, "arguments": "{}"}}
    path = tmp_path / "hostile.jsonl"
    path.write_text(
        json.dumps(
            {
                "id": f"t{EVIL}",
                "tools": [tool],
                "messages": [
                    {"role": "user", "content": EVIL},
                    {"role": "assistant", "content": EVIL, "tool_calls": [call]},
                    {"role": "tool", "content": EVIL},
                    {"role": "assistant", "content": EVIL},
                ],
            }
        )
        + "\n"
    )
    return [config, f"traces.path={path}", "traces.limit=null", "traces.holdout=0"], path


def is_quiet(text: str) -> bool:
    return not any(c in text for c in "\x1b\x07\x9b\u202e")


def test_nothing_of_a_trace_or_an_answer_reaches_the_terminal_raw(hostile, tmp_path):
    (config, *settings), path = hostile
    finding = {
        "step": 1,
        "quote": EVIL,
        "error_class": EVIL,
        "hint": f"Say {EVIL} or not.",
        "confidence": 0.9,
        "caused_by": None,
    }
    with scripted_server(json.dumps({"verdict": "findings", "findings": [finding]})) as server:
        llm = [
            "critic.use=[llm]",
            f"critic.llm.base_url={server.url}",
            "critic.llm.model=m",
            "critic.llm.context_tokens=16000",
        ]
        said = CliRunner().invoke(app, ["critique", str(config), *settings, *llm])
        assert said.exit_code == 0 and is_quiet(said.output) and is_quiet(said.stderr)
        as_json = run("critique", config, *settings, *llm, "--json")
        compared = run("critique", config, *settings, "--compare", "critic.use=[rules]", *llm)
    assert is_quiet(as_json) and json.loads(as_json)["funnel"]["critique"]["findings"] == 1
    assert "\\u001b[2J" in compared and is_quiet(compared)
    page = (tmp_path / "run" / "report.html").read_text()
    assert is_quiet(page) and "<script>alert" not in page
    rendered = run("prompts", "render", "hints/call_error.jinja", "--traces", path)
    assert rendered.startswith("Before calling \\u001b[2J") and is_quiet(rendered)
    again = json.loads(run("prompts", "render", "hints/call_error.jinja", "--traces", path, "--json"))
    assert EVIL in again["texts"][0], "in JSON the same text, escaped"
    assert is_quiet(run("prompts", "render", "critic/all_at_once.jinja", "--traces", path))


def test_an_error_message_quotes_no_raw_control_characters(tmp_path):
    """As a process, because the message is printed by the entry point."""
    path = tmp_path / "f.jsonl"
    path.write_text(
        json.dumps({"id": "a", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]})
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "hintdistill.cli",
            "prompts",
            "render",
            "hints/unknown_tool.jinja",
            "--traces",
            str(path),
            "--trace",
            EVIL.replace("\x00", ""),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3 and "no trace \\u001b[2J" in done.stderr and is_quiet(done.stderr)


def test_a_budget_stops_the_command_cleanly(config, tmp_path):
    """What was done is kept and the rest is owed; a second call with more to spend asks only for that."""
    with scripted_server(NONE) as server:
        llm = (
            "critic.use=[llm]",
            f"critic.llm.base_url={server.url}",
            "critic.llm.model=m",
            "critic.llm.context_tokens=16000",
            "critic.llm.concurrency=4",
            "critic.llm.max_tokens=100",
        )
        server.prompt_tokens = 1500
        first = json.loads(run("critique", config, *llm, "critic.budget_tokens=9000", "--json"))
        asked = len(server.received)
        assert 0 < asked < 12 and first["funnel"]["critique"]["usage"]["requests"] == asked
        assert any("the budget of 9000 tokens is spent" in w for w in first["warnings"])
        second = json.loads(run("critique", config, *llm, "--json"))
        assert len(server.received) == 12 and second["funnel"]["critique"]["usage"]["requests"] == 12


def test_a_dry_run_asks_nothing(config):
    with scripted_server(NONE) as server:
        settings = ("critic.use=[rules,llm]", f"critic.llm.base_url={server.url}", "critic.llm.model=m")
        found = json.loads(run("critique", config, *settings, "--dry-run", "--json"))["critics"]
        assert found["rules"] == {"requests": 0, "prompt_tokens": 0, "answer_tokens": 0, "money": 0.0}
        assert found["llm"]["requests"] == 12 and found["llm"]["prompt_tokens"] > 5000
        assert [r for r in server.received if r] == []
        text = run("critique", config, *settings, "critic.llm.strategy=step_by_step", "--dry-run")
        assert "llm: " in text and "at most" in text and "prompt tokens" in text


def test_usage_and_money_are_in_the_report(config, tmp_path):
    with scripted_server(NONE) as server:
        said = run(
            "critique",
            config,
            "critic.use=[llm]",
            f"critic.llm.base_url={server.url}",
            "critic.llm.model=m",
            "critic.llm.context_tokens=16000",
            "critic.llm.price=[2,10]",
            "-q",
        )
        assert len(server.received) == 12
    usage = json.loads((tmp_path / "run" / "report.json").read_text())["funnel"]["critique"]["usage"]
    assert usage["requests"] == 12 and usage["prompt_tokens"] == 84
    assert usage["money"] == pytest.approx((84 * 2 + 36 * 10) / 1e6)
    line = "critics: 12 requests, 84 prompt and 36 answer tokens; cost 0.0005"
    assert line in said and line in (tmp_path / "run" / "report.html").read_text()
    assert len((tmp_path / "run" / "answers.jsonl").read_text().splitlines()) == 12


def test_spending_per_accepted_finding():
    rows = [
        {"critic": "llm", "critique": {"usage": {"requests": 1, "prompt_tokens": 100, "completion_tokens": 20}}},
        {"critic": "llm", "failure": {"usage": {"requests": 2, "prompt_tokens": 200, "completion_tokens": 0}}},
        {"critic": "rules", "critique": {}},
    ]
    got = spending(rows, {"critic": {"llm": {"price": [1.0, 2.0]}}}, accepted=4)
    assert (got["requests"], got["tokens_per_accepted_finding"], got["money"]) == (3, 80.0, pytest.approx(340e-6))
    assert spent(got) == (
        "critics: 3 requests, 300 prompt and 20 answer tokens, 80 per accepted finding; cost 0.0003, 0.000085 per accepted finding"
    )
    assert spent(spending(rows[2:], {"critic": {}}, accepted=4)) is None, "rules cost nothing"
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
        finding = {
            "step": 0,
            "quote": None,
            "error_class": "wrong_answer",
            "hint": "Call the tool that is listed for this.",
            "confidence": 0.9,
            "caused_by": None,
        }
        return json.dumps({"verdict": "findings", "findings": [finding]})

    with scripted_server(answer) as server:
        settings = (
            f"critic.prompts={folder}",
            "critic.use=[llm]",
            f"critic.llm.base_url={server.url}",
            "critic.llm.model=m",
            "critic.llm.context_tokens=16000",
            "traces.limit=2",
        )
        sides = ("--compare", "critic.llm.prompt=critic/all_at_once.jinja", "critic.llm.prompt=critic/mine.jinja")
        got = json.loads(run("critique", config, *settings, *sides, "--json"))
        again = json.loads(run("critique", config, *settings, "--compare", got["a"], got["b"], "--json"))
    assert again == got
    assert len(got["findings"]["gained"]) == 2 and got["findings"]["lost"] == got["findings"]["moved"] == []
    assert got["tokens"]["n"] == 2 and got["tokens"]["low"] <= got["tokens"]["difference"] <= got["tokens"]["high"]
    assert got["accepted"]["a"] == 0.0
    text = run("critique", config, "--compare", got["a"], got["b"], "-q")
    assert "2 gained, 0 lost, 0 moved" in text


def marked(step: int) -> str:
    finding = {"step": step, "quote": None, "error_class": "wrong_answer", "hint": "Read the list of tools once more."}
    finding |= {"confidence": 0.9, "caused_by": None}
    return json.dumps({"verdict": "findings", "findings": [finding]})


def judged_by_the_prompt(request):
    """Step 0 is wrong under the prompt that says so; nothing under any other."""
    return marked(0) if "Judge step 0." in request["messages"][0]["content"] else NONE


@pytest.fixture
def llm(tmp_path):
    """Settings of an LLM critic, its server, and the path of a prompt under which it says something else."""
    path = tmp_path / "elsewhere.jinja"
    path.write_text("Judge step 0. {{ legal_steps }} {{ schema }}")
    with scripted_server(judged_by_the_prompt) as server:
        yield (
            [
                "critic.use=[llm]",
                f"critic.llm.base_url={server.url}",
                "critic.llm.model=m",
                "critic.llm.context_tokens=16000",
                "critic.llm.price=[2,10]",
                "critic.llm.fields=[]",
            ],
            server,
            path,
        )


def test_two_prompts_on_labelled_traces(config, tmp_path, llm):
    """A finds nothing, B calls step 0 wrong everywhere: what B gains on erring traces it loses on clean ones."""
    settings, server, path = llm
    ask = ("critique", config, "--labels", TOOLWORLD / "findings.jsonl", "traces.limit=30", *settings)
    got = json.loads(run(*ask, "--compare", "critic.llm.prompt=critic/all_at_once.jinja", path, "--json"))
    assert len(server.received) == 60 and got["traces"] == 30 and got["left_out"] == 0
    one = json.loads((tmp_path / "run" / "b" / "evaluation.json").read_text())
    for name, of in (("exact", one["erring"]["exact"]), ("false_alarm", one["clean"]["false_alarm"])):
        assert got[name]["a"] == 0.0 and got[name]["b"] == got[name]["difference"] == of["rate"] > 0
        assert got[name]["n"] == of["n"] and got[name]["low"] <= got[name]["difference"] <= got[name]["high"]
    assert got["tokens"] == {"a": 10.0, "b": 10.0, "difference": 0.0, "low": 0.0, "high": 0.0, "n": 30}
    assert got["money"]["a"] == pytest.approx((7 * 2 + 3 * 10) / 1e6)
    text = run(*ask, "--compare", tmp_path / "run" / "a", tmp_path / "run" / "b")
    assert len(server.received) == 60, "what is scored is read"
    assert "false_alarm  A   0.0%  B 100.0%  B−A +100.0 points" in text and "money" in text


@pytest.mark.parametrize("more", [(), ("--labels", TOOLWORLD / "findings.jsonl")])
def test_an_unknown_prompt_fails_before_anything_is_paid(config, llm, more):
    settings, server, path = llm
    said = run(
        "critique",
        config,
        *settings,
        *more,
        "--compare",
        path,
        "critic.llm.prompt=critic/nix.jinja",
        expect=PromptError,
    )
    assert "no prompt 'critic/nix.jinja'" in said and server.received == []
    said = run("critique", config, *settings, *more, "--compare", path, "nowhere.jinja", expect=InputError)
    assert "nowhere.jinja is neither a run folder" in said and server.received == []


def test_an_edited_hint_that_no_finding_uses_is_said(config, tmp_path):
    folder = tmp_path / "edited"
    shutil.copytree(TOOLWORLD / "prompts", folder)
    (folder / "hints").mkdir(exist_ok=True)
    for name in ("policy_violation", "unknown_tool"):
        (folder / "hints" / f"{name}.jinja").write_text("Read the rules above first.")
    sides = ("--compare", "critic.select=decisive", f"critic.prompts={folder}")
    labels = ("--labels", TOOLWORLD / "findings.jsonl", "traces.limit=60")
    got = json.loads(run("critique", config, *labels, *sides, "--json"))
    assert got["unused_hints"] == ["hints/policy_violation.jinja"] and got["exact"]["difference"] == 0.0
    assert "hints/policy_violation.jinja differs, but no finding uses it" in run("critique", config, *labels, *sides)


def test_what_both_sides_inject_is_scored_once(config, tmp_path, monkeypatch):
    """B asks for sure findings only: all its injections are A's as well, and the engine reads none of them again."""
    from hintdistill.rescoring.scorer import Scorer
    from hintdistill.rescoring.store import TargetStore

    scored: list[str] = []
    score = Scorer.score

    def counted(self, items, *more, **named):
        scored.extend(item.key for item in items)
        return score(self, items, *more, **named)

    monkeypatch.setattr(Scorer, "score", counted)
    sides = ("--compare", "critic.min_confidence=0", "critic.min_confidence=0.6")
    got = json.loads(run("critique", config, *sides, "--json"))
    a, b = ({t.key: t for t in TargetStore(tmp_path / "run" / s / "targets").read() if t.kind == "hint"} for s in "ab")
    assert b and b.keys() <= a.keys() and len(scored) == len(set(scored)) == len(a)
    assert all((a[k].teacher_logprobs == b[k].teacher_logprobs).all() and a[k].accepted == b[k].accepted for k in b)
    assert got["unused_hints"] == []


def test_eject_writes_prompts_that_check(tmp_path):
    written = run("prompts", "eject", tmp_path / "mine").split()
    assert f"{tmp_path / 'mine' / 'critic' / 'all_at_once.jinja'}" in written
    assert "no problems" in run("prompts", "check", "--prompts", tmp_path / "mine")
    assert "already exists" in run("prompts", "eject", tmp_path / "mine", "critic/step.jinja", expect=PromptError)
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
    for role in ("half", "step"):
        asked = f'"{"half" if role == "half" else "mistake"}"'
        assert (asked in text.splitlines()[-1]) == (name == f"critic/{role}.jinja"), "the schema of the question it is"


def test_render_takes_files_and_says_what_is_missing(tmp_path):
    run("prompts", "eject", tmp_path, "critic/step.jinja", "hints/policy_violation.jinja")
    mine = tmp_path / "critic" / "step.jinja"
    mine.write_text("Is step {{ step }} of {{ legal_steps }} wrong?")
    traces = TOOLWORLD / "traces.jsonl"
    assert run("prompts", "render", mine, "--trace", traces).rstrip().endswith("Is step 0 of [0] wrong?")
    # a hint without facts needs no finding
    assert run("prompts", "render", "hints/policy_violation.jinja", "--trace", traces).startswith(
        "The instructions at the beginning"
    )
    assert "find no skipped_lookup" in run(
        "prompts", "render", "hints/skipped_lookup.jinja", "--trace", traces, expect=InputError
    )
    assert "no trace given to render the prompt for" in run("prompts", "render", "critic/step.jinja", expect=InputError)


def test_a_shared_report_holds_no_trace_text(config, tmp_path):
    """Every message of every trace, every hint and quote: nowhere in what is shared, though it is in the report."""
    run("run", config, "--until", "rescore", "traces.limit=4", "-q")
    folder = tmp_path / "run"
    shared = [folder / "report-share.json", folder / "report-share.html"]
    assert run("report", folder, "--share").split() == [str(p) for p in shared]
    full = json.loads((folder / "report.json").read_text())
    secret = {f["hint"] for f in full["findings"]} | {f["trace"] for f in full["findings"]}
    secret |= {f["quote"] for f in full["findings"] if f["quote"]}
    for line in (folder / "traces.jsonl").read_text().splitlines():
        secret |= {m["content"] for m in json.loads(line)["trace"]["messages"] if m.get("content")}
    assert len(secret) > 10
    for path in shared:
        text = path.read_text()
        assert [s for s in secret if s in text or json.dumps(s)[1:-1] in text] == []
    assert json.loads(shared[0].read_text())["effects"] == full["effects"]
