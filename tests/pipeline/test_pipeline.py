"""The whole job through the real command line: artefacts, resume after real kills, exit codes, bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, STUDENT, TOOLWORLD, real_file
from safetensors.torch import load_file
from support.command import COMMAND, ENV, hintdistill, rows
from support.killing import kill_when

from hintdistill.core.scores import Target
from hintdistill.rescoring.store import TargetStore

# the shipped critic LLM has a test of its own below; what is tested here does not depend on who reads
RULES = "critic.use=[rules,recorded]"
SMALL = [
    RULES,
    "traces.limit=90",
    "traces.holdout=0.3",
    "train.epochs=1",
    "train.batch_size=8",
    "train.save_steps=2",
    "rescore.part_rows=10",
    "rollout.splits=[validation]",
    "rollout.limit=8",
    "report.max_findings=5",
]


@pytest.fixture(scope="module")
def straight(tmp_path_factory) -> Path:
    """An uninterrupted run."""
    folder = tmp_path_factory.mktemp("straight") / "run"
    out = hintdistill("run", "configs/quickstart.yaml", f"run.dir={folder}", *SMALL)
    assert out.stdout.splitlines()[-1] == f"report: {folder / 'report.html'}"
    return folder


@pytest.fixture(scope="module")
def report(straight) -> dict:
    return json.loads((straight / "report.json").read_text())


def test_targets_name_the_prompts_they_came_from(straight):
    hints = [t for t in TargetStore(straight / "targets").read() if t.kind == "hint"]
    templates = {t.error_class: t.versions["hint_template"] for t in hints}
    for error_class, said in templates.items():
        name, digest = said.split()
        assert name == f"hints/{error_class}.jinja" and len(digest) == 16
    assert len(set(templates.values())) == len(templates) > 2
    assert all("critic_prompt" not in t.versions for t in hints), "no LLM took part"


def test_the_documented_keys(report):
    assert {
        "schema",
        "funnel",
        "environment",
        "off_target_kl_nats",
        "off_target",
        "effects",
        "gate",
        "findings",
    } <= set(report)
    assert {"all", "accepted", "rejected"} <= set(report["effects"])
    assert 0 <= report["gate"]["null_pass_rate"] <= 1
    for when in ("before", "after"):
        got = report["environment"][when]
        assert got["episodes"] == 8 and 0 <= got["success_rate"] <= 1 and 0 <= got["error_rate"] <= 1
        assert all(0 <= v <= 1 for v in got["errors"].values())


def test_the_funnel_adds_up(report):
    f = report["funnel"]
    assert f["read"]["records"] == f["read"]["traces"] == 90 == sum(f["read"]["split"].values())
    assert f["critique"]["findings"] == f["inject"]["injections"] + sum(f["inject"]["skipped"].values()) + sum(
        f["inject"]["failed"].values()
    )
    assert f["rescore"]["scored"] == f["inject"]["injections"] == len(report["findings"])
    assert f["rescore"]["accepted"] + f["rescore"]["rejected"] == f["rescore"]["scored"]
    assert f["train"]["hints"] + sum(f["train"]["left_out"].values()) == f["rescore"]["accepted"]
    assert f["rescore"]["accepted"] > 20 and f["train"]["anchors"] > 20


def test_training_made_the_errors_less_likely(report):
    p = report["effects"]["accepted"]["error_probability"]
    assert p["hinted"] < 0.25 < p["before"] and p["after"] < p["before"]
    assert report["weights"]["recorded_gap_nats"] < 1e-3, "the traces are this student's own"
    assert report["weights"]["engine_floor_nats"] < 1e-5
    assert report["off_target_kl_nats"] < 0.05


def test_each_finding_has_its_tokens(report):
    for finding in report["findings"]:
        assert finding["hint"] and len(finding["placebos"]) == 3
        assert all(0 <= t[w] <= 1.0001 for t in finding["tokens"] for w in ("before", "hinted", "after"))
        assert any(t["quoted"] for t in finding["tokens"])
        assert finding["context_above"] and finding["context_below"].endswith("assistant\n")
        assert finding["hint"] in finding["hint_block"] and finding["hint_block"].startswith("<|im_start|>")
        if finding["decision"]:
            d = finding["decision"]
            assert [len(d["top"][when]) for when in ("before", "hinted", "after")] == [3, 3, 3]
            # the teacher's first choice and the sampled token's own probability, read from two places of a run
            assert not d["flips"] or d["top"]["hinted"][0]["text"] == d["instead"]
            for when in ("before", "after"):
                own = [t["p"] for t in d["top"][when] if t["text"] == d["token"]]
                assert not own or abs(own[0] - d[when]) < 1e-5


def test_the_student_loads(straight):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(straight / "student", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(straight / "student")
    assert model(tokenizer("hello", return_tensors="pt")["input_ids"]).logits.isfinite().all()
    assert tokenizer.chat_template


def same_target(a: Target, b: Target) -> bool:
    for f in fields(Target):
        x, y = getattr(a, f.name), getattr(b, f.name)
        equal = (
            np.array_equal(x, y)
            if isinstance(x, np.ndarray)
            else x == y
            if f.name != "placebos"
            else [p.text for p in x] == [p.text for p in y]
        )
        if not equal:
            return False
    return True


def assert_same_artefacts(a: Path, b: Path) -> None:
    for name in ("traces", "critiques", "injections", "after", "off_target", "evaluations"):
        assert rows(a, name) == rows(b, name), name
    left, right = ({t.key: t for t in TargetStore(f / "targets").read()} for f in (a, b))
    assert left.keys() == right.keys() and all(same_target(left[k], right[k]) for k in left)
    weights = [load_file(f / "student" / "model.safetensors") for f in (a, b)]
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    documents = [json.loads((f / "report.json").read_text().replace(str(f), "RUN")) for f in (a, b)]
    for document in documents:
        assert document["run"].pop("name") and document["run"].pop("started")
    assert documents[0] == documents[1]


KILL_WHEN = {
    "critique": lambda f: (f / "critiques.jsonl").exists() and (f / "critiques.jsonl").read_bytes().count(b"\n") > 20,
    "inject": lambda f: (f / "injections.jsonl").exists() and (f / "injections.jsonl").read_bytes().count(b"\n") > 10,
    "rescore": lambda f: len(list((f / "targets").glob("part-*.parquet"))) >= 2,
    "train": lambda f: any((f / "train").glob("*/checkpoint-*/trainer_state.json")),
    "report": lambda f: (f / "evaluations.jsonl").exists(),
}


# four of the five are for `make test-full`
SLOW = ("critique", "inject", "rescore", "report")


@pytest.mark.parametrize("stage", [pytest.param(s, marks=pytest.mark.slow) if s in SLOW else s for s in KILL_WHEN])
def test_killed_anywhere_it_resumes_to_the_same_artefacts(stage, straight, tmp_path):
    folder = tmp_path / "run"
    kill_when(lambda: KILL_WHEN[stage](folder), "run", "configs/quickstart.yaml", "-q", f"run.dir={folder}", *SMALL)
    assert not (folder / "report.json").exists()
    if stage == "inject":
        # what a kill in the middle of a write leaves behind
        with (folder / "injections.jsonl").open("ab") as file:
            file.write(b'{"key": "torn')
    hintdistill("run", "configs/quickstart.yaml", "-q", "--resume", f"run.dir={folder}", *SMALL)
    assert_same_artefacts(straight, folder)


def test_a_finished_run_resumes_to_itself_and_a_changed_gate_rescores_nothing(straight, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    before = {p.name: p.stat().st_mtime_ns for p in (folder / "targets").iterdir()}
    hintdistill("run", "configs/quickstart.yaml", "-q", "--resume", f"run.dir={folder}", *SMALL)
    assert_same_artefacts(straight, folder)
    assert {p.name: p.stat().st_mtime_ns for p in (folder / "targets").iterdir()} == before
    hintdistill(
        "run",
        "configs/quickstart.yaml",
        "-q",
        "--resume",
        "--until",
        "rescore",
        f"run.dir={folder}",
        *SMALL,
        "rescore.gate.min_drop_nats=5",
    )
    strict = list(TargetStore(folder / "targets").read())
    assert {t.key for t in strict} == {t.key for t in TargetStore(straight / "targets").read()}
    assert any("no_effect" in t.reasons and not t.accepted for t in strict)


def test_a_changed_hint_recomputes_only_what_follows_it(straight, tmp_path):
    import shutil

    folder, prompts = tmp_path / "run", tmp_path / "prompts"
    shutil.copytree(straight, folder)
    shutil.copytree(TOOLWORLD / "prompts", prompts)
    (prompts / "hints" / "unknown_tool.jinja").write_text(
        "{#- Variables: wrong -#}\nOnly call listed tools, not {{ wrong }}."
    )
    hintdistill(
        "run",
        "configs/quickstart.yaml",
        "-q",
        "--resume",
        "--until",
        "rescore",
        f"run.dir={folder}",
        *SMALL,
        f"critic.prompts={prompts}",
    )
    assert rows(straight, "critiques") == rows(folder, "critiques")
    old, new = ({t.key: t for t in TargetStore(f / "targets").read()} for f in (straight, folder))
    added = [new[k] for k in new.keys() - old.keys()]
    assert old.keys() <= new.keys() and added
    # placebos of another class come from the same templates, so a few of those change as well
    assert {t.error_class for t in added if t.hint.startswith("Only call listed")} == {"unknown_tool"}
    kept = [
        t for t in json.loads((folder / "report.json").read_text())["findings"] if t["error_class"] == "skipped_lookup"
    ]
    assert any(t["key"] in old for t in kept)


def test_dry_run_writes_nothing(tmp_path):
    folder = tmp_path / "run"
    plan = json.loads(
        hintdistill("run", "configs/quickstart.yaml", "--dry-run", "--json", f"run.dir={folder}", "--limit", "7").stdout
    )
    assert (
        plan["traces"] == 7 == plan["train_traces"] + plan["holdout_traces"] and plan["recorded_ids"] == plan["steps"]
    )
    assert plan["trace_bytes"] == (TOOLWORLD / "traces.jsonl").stat().st_size and plan["not_rendered"] == 0
    assert plan["trace_tokens"] > plan["steps"] and plan["student_bytes"] > 1e6
    assert not folder.exists()


@pytest.mark.slow
def test_stage_commands_continue_each_other(tmp_path):
    folder = tmp_path / "run"
    common = ["configs/quickstart.yaml", f"run.dir={folder}", "-q", "--json", *SMALL, "traces.limit=12"]
    assert json.loads(hintdistill("critique", *common).stdout)["funnel"]["critique"]["findings"] > 0
    first = json.loads(hintdistill("rescore", *common).stdout)
    assert first["funnel"]["rescore"]["scored"] > 0 and first["funnel"]["train"]["hints"] == 0
    trained = json.loads(hintdistill("train", *common).stdout)
    assert trained["train"]["steps"] > 0 and trained["environment"] is None
    whole = json.loads(hintdistill("report", str(folder), "--json", "-q").stdout)
    assert whole["environment"]["after"]["episodes"] == 8
    one = whole["findings"][0]
    shown = json.loads(hintdistill("show", str(folder), f"{one['trace']}:{one['step']}", "--json").stdout)
    assert shown == [one]
    listing = hintdistill("show", str(folder)).stdout
    assert one["trace"][:10] in listing
    assert "decision token" in hintdistill("show", str(folder), one["trace"]).stdout
    hintdistill("show", str(folder), "nothing:0", expect=2)


def test_placebo_hints_by_force(tmp_path):
    out = hintdistill(
        "run",
        "configs/quickstart.yaml",
        "-q",
        "--json",
        "--until",
        "rescore",
        f"run.dir={tmp_path / 'run'}",
        *SMALL,
        "traces.limit=40",
        "inject.hint=placebo",
        "rescore.gate.enabled=false",
    )
    document = json.loads(out.stdout)
    assert document["funnel"]["rescore"]["accepted"] == document["funnel"]["rescore"]["scored"] > 0
    assert document["effects"]["all"]["decision_effect_median_nats"] > -0.5


# -- bad input: a clear message, the documented exit code, nothing half-written ---------------------------------------


def fails(tmp_path, code: int, *overrides: str, config="configs/quickstart.yaml", says=()):
    folder = tmp_path / "run"
    done = hintdistill("run", str(config), "-q", f"run.dir={folder}", RULES, *overrides, expect=code)
    assert done.stderr.startswith("error: ") or "\nerror: " in done.stderr, done.stderr
    for words in says:
        assert words in done.stderr, done.stderr
    return folder


def write(tmp_path, text: str, name="traces.jsonl") -> str:
    path = tmp_path / name
    path.write_text(text)
    return f"traces.path={path}"


ONE = json.dumps({"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]})


@pytest.mark.parametrize(
    ("code", "overrides", "says"),
    [
        (2, ["trian.epochs=3"], ["unknown key `trian`", "`train`"]),
        (2, ["rollout.environment=nowhere.py:X"], ["no environment file"]),
        (2, ["rollout.splits=[nope]"], ["no split 'nope'", "test_clean"]),
        (2, ["critic.prompts=nowhere"], ["no prompt folder at ", "/nowhere"]),
        (3, ["run.model=./nowhere"], ["no model folder at ", "/nowhere"]),
        (3, ["run.model=examples"], ["holds no config.json"]),
        (3, ["traces.path=nowhere.jsonl"], ["no such file or folder: ", "/nowhere.jsonl", "traces.path names it"]),
        (3, ["traces.path=prompts"], ["no trace files in ", "/prompts"]),
        (3, ["traces.tools=nowhere.json"], ["no tool schemas at ", "/nowhere.json"]),
        (3, ["critic.recorded.path=nowhere.jsonl"], ["no recorded findings"]),
        (
            3,
            ["report.off_target={x: nowhere.jsonl}"],
            ["no such file or folder: ", "/nowhere.jsonl", "report.off_target.x names it"],
        ),
    ],
)
def test_what_is_missing_is_said_before_anything_is_written(tmp_path, code, overrides, says):
    assert not fails(tmp_path, code, *overrides, says=says).exists()


def test_no_usable_trace(tmp_path):
    fails(tmp_path, 4, write(tmp_path, ""), says=["no usable trace", "the file is empty", "line 1"])
    (tmp_path / "two").mkdir()
    fails(
        tmp_path / "two",
        4,
        write(tmp_path / "two", '{"messages": [{"role": "user", "content": "x"}]}'),
        says=["no message of the student"],
    )


def test_a_broken_line_is_a_row_and_the_rest_goes_on(tmp_path):
    folder = tmp_path / "run"
    lines = (TOOLWORLD / "traces.jsonl").read_text().splitlines()[:6]
    override = write(tmp_path, "\n".join([*lines, '{"broken', ""]))
    done = hintdistill(
        "run", "configs/quickstart.yaml", "--until", "critique", "--json", f"run.dir={folder}", RULES, override
    )
    assert "line 7: not valid JSON" in done.stderr
    assert json.loads(done.stdout)["funnel"]["read"]["failed"] == {"not_json": 1}
    failed = [r for r in rows(folder, "traces") if "failure" in r]
    assert failed[0]["failure"]["source"].endswith("traces.jsonl, line 7")


def test_the_critic_of_the_quickstart_is_a_model(tmp_path):
    folder = tmp_path / "run"
    done = hintdistill("critique", "configs/quickstart.yaml", "--json", "-q", f"run.dir={folder}", "traces.limit=40")
    funnel = json.loads(done.stdout)["funnel"]["critique"]
    assert sum(funnel["verdicts"].values()) == 40 and funnel["failed"] == {}
    critiques = {r["trace_id"]: r["critique"] for r in rows(folder, "critiques")}
    found = {t: min(f["step"] for f in c["findings"]) for t, c in critiques.items() if c["verdict"] == "findings"}
    labels: dict[str, int] = {}
    for line in (TOOLWORLD / "findings.jsonl").read_text().splitlines():
        label = json.loads(line)
        if label["trace"] in critiques:
            labels[label["trace"]] = min(label["step"], labels.get(label["trace"], 99))
    # its card says .994 and .004 on all 600
    assert sum(found.get(trace) == step for trace, step in labels.items()) >= 0.95 * len(labels) > 10
    assert len(found.keys() - labels.keys()) <= 1


def test_no_findings_stop_training_but_not_rescoring(tmp_path):
    override = write(tmp_path, ONE)
    folder = fails(tmp_path, 4, override, "critic.use=[rules]", says=["no accepted hint to train on"])
    hintdistill(
        "run",
        "configs/quickstart.yaml",
        "-q",
        "--resume",
        "--until",
        "rescore",
        f"run.dir={folder}",
        override,
        "critic.use=[rules]",
        expect=4,
    )


def model_folder(tmp_path, **change) -> Path:
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(STUDENT, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_tokenizer_without_a_chat_template(tmp_path):
    folder = model_folder(tmp_path)
    (folder / "chat_template.jinja").unlink()
    assert not fails(tmp_path, 3, f"run.model={folder}", says=["has no chat template", "chat_template.jinja"]).exists()


def test_a_step_beyond_the_context_is_a_failure_row(tmp_path):
    folder = model_folder(tmp_path, max_position_embeddings=200)
    out = hintdistill(
        "run",
        "configs/quickstart.yaml",
        "--until",
        "rescore",
        "--json",
        f"run.dir={tmp_path / 'run'}",
        f"run.model={folder}",
        RULES,
        "traces.limit=30",
    )
    f = json.loads(out.stdout)["funnel"]["rescore"]
    assert f["failed"]["context_length"] > 0 and f["scored"] > 0
    assert "the model has 200 positions" in out.stderr


def test_tools_missing_leaves_the_schema_checks_silent(tmp_path):
    lines = []
    for line in (TOOLWORLD / "traces.jsonl").read_text().splitlines()[:20]:
        record = json.loads(line)
        record.pop("tools")
        lines.append(json.dumps(record))
    out = hintdistill(
        "run",
        "configs/quickstart.yaml",
        "--until",
        "critique",
        "--json",
        f"run.dir={tmp_path / 'run'}",
        write(tmp_path, "\n".join(lines)),
        "critic.use=[rules]",
    )
    document = json.loads(out.stdout)
    assert "unknown_tool" not in document["funnel"]["critique"]["by_class"]
    assert any("no tool schemas" in w for w in document["warnings"])


def test_traces_of_another_model_stop_before_training(tmp_path):
    other = json.loads(ONE)
    other["tools"] = [
        {"type": "function", "function": {"name": "zebra_lookup", "parameters": {"type": "object", "properties": {}}}}
    ]
    other["messages"][1] = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "quux_frobnicate", "arguments": "{}"}}],
    }
    fails(
        tmp_path,
        4,
        write(tmp_path, json.dumps(other)),
        "critic.use=[rules]",
        says=["errors this student would hardly make"],
    )


def test_a_used_folder_and_a_folder_with_other_things(straight, tmp_path):
    done = hintdistill("run", "configs/quickstart.yaml", f"run.dir={straight}", *SMALL, expect=2)
    assert "already contains a run" in done.stderr and "--resume" in done.stderr
    (tmp_path / "thing").write_text("x")
    done = hintdistill("run", "configs/quickstart.yaml", f"run.dir={tmp_path}", *SMALL, expect=2)
    assert "is not empty and contains no run" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["thing"]
    hintdistill("report", str(tmp_path), expect=3)


def test_two_processes_do_not_share_a_folder(straight):
    import fcntl

    with (straight / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = hintdistill("run", "configs/quickstart.yaml", "--resume", f"run.dir={straight}", *SMALL, expect=2)
    assert "another process is working" in done.stderr


def test_an_unreachable_critic(tmp_path):
    folder = fails(
        tmp_path,
        5,
        "critic.use=[llm]",
        "critic.llm.base_url=http://127.0.0.1:9/v1",
        "critic.llm.retries=0",
        "traces.limit=3",
        config="configs/llm-critic.yaml",
        says=["http://127.0.0.1:9/v1"],
    )
    assert (folder / "traces.jsonl").exists()


def test_an_engine_that_is_gone_or_may_not_be_asked(tmp_path):
    server = ["rescore.engine.backend=server", "rescore.engine.model=m", "traces.limit=6", "--until", "rescore"]
    gone = "rescore.engine.base_url=http://127.0.0.1:9/v1"
    folder = fails(
        tmp_path,
        5,
        *server,
        gone,
        "rescore.engine.retries=0",
        says=["cannot reach the engine at http://127.0.0.1:9/v1"],
    )
    assert (folder / "injections.jsonl").exists()
    away = "rescore.engine.base_url=http://engine.example.com/v1"
    fails(tmp_path / "b", 2, *server, away, says=["rescore.engine.allow_hosts=[engine.example.com]"])
    assert not (tmp_path / "b" / "run").exists()
    fails(tmp_path / "c", 2, "rescore.engine.backend=server", says=["needs base_url and model"])
    says = ["changes with the rounds", "train.recipe.teacher.update=initial"]
    moving = [*server[:2], gone, "critic.use=[rules]", "train.recipe.teacher.update=live"]
    fails(tmp_path / "d", 2, *moving, config="configs/rounds.yaml", says=says)


def test_interrupt_is_130(tmp_path):
    process = subprocess.Popen(
        [*COMMAND, "run", "configs/quickstart.yaml", "-q", f"run.dir={tmp_path / 'run'}", RULES],
        env=ENV,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a test run in the background of a script ignores the signal, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not (tmp_path / "run" / "critiques.jsonl").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Continue with: hintdistill run" in err and err.rstrip().endswith("--resume")


def test_real_airline_traces_end_in_token_exact_splices(tmp_path):
    """Read, critique, inject and rescore on what GPT-4o left behind in tau-bench, scored with the tiny student."""
    from transformers import AutoTokenizer

    from hintdistill.core.types import Trace

    path, tools = (
        real_file("openai_chat", "tau_bench_airline_gpt4o.json"),
        real_file("openai_chat", "tools_tau_airline.json"),
    )
    folder = tmp_path / "run"
    out = hintdistill(
        "run",
        "configs/tau-airline.yaml",
        "--until",
        "rescore",
        "--json",
        "--limit",
        "10",
        f"run.dir={folder}",
        f"traces.path={path}",
        f"traces.tools={tools}",
    )
    document = json.loads(out.stdout)
    f = document["funnel"]
    assert f["read"]["traces"] == 10 and f["inject"]["failed"] == {} and f["rescore"]["failed"] == {}
    assert f["rescore"]["scored"] == f["inject"]["injections"] >= 5
    traces = {r["trace"]["id"]: Trace.model_validate(r["trace"]) for r in rows(folder, "traces") if "trace" in r}
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    for made in (r["injection"] for r in rows(folder, "injections") if "injection" in r):
        context, block, p = made["context_ids"], made["block_ids"], made["insert_at"]
        said = tokenizer.decode(made["step_ids"])
        calls = traces[made["trace_id"]].step(made["finding"]["step"]).tool_calls
        assert all(c.arguments_raw in said for c in calls), "raw argument strings were kept"
        # what the template prints around them is no word of the student's, and is named
        printed = [note for note in made.get("notes", ()) if note.endswith("_printed")]
        assert made["fidelity"] == ("reserialised" if printed else "raw_text")
        target = next(
            t
            for t in TargetStore(folder / "targets").read()
            if t.trace_id == made["trace_id"] and t.step == made["finding"]["step"]
        )
        assert target.context_ids.tolist() == context and target.block_ids.tolist() == block and target.insert_at == p
        assert np.isfinite(target.teacher_sampled).all() and np.isfinite(target.plain_sampled).all()
