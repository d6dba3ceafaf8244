"""The report: all trace text is escaped, the JSON has no NaN, the page is self-contained and quiet in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from rich.console import Console
from support.page import taken_apart
from support.stored_targets import make_target

from hintdistill.config.file import load_config
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.types import Critique, Finding, Injection
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console as Progress
from hintdistill.pipeline.report import _tripwires
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.train import WORK_INDEX
from hintdistill.reporting import printable
from hintdistill.reporting.build import ReportInput, build, dumps
from hintdistill.reporting.entries import read_document, write_document
from hintdistill.reporting.findings import After
from hintdistill.reporting.html import render_html
from hintdistill.reporting.listing import show_finding, show_findings
from hintdistill.reporting.terminal import show_summary
from hintdistill.rescoring.drift import Movement, movement
from hintdistill.rollouts.evaluate import Evaluation

ATTACK = '</span><script>document.title="owned"</script><img src=x onerror="document.title=1">\x1b[2J\u202e'


@pytest.fixture
def document():
    finding = Finding(step=2, error_class=ATTACK, quote=ATTACK, critic="rules", evidence=ATTACK)
    injection = Injection(
        trace_id=ATTACK,
        finding=finding,
        hint=ATTACK,
        context_ids=(5, 6, 7),
        insert_at=1,
        block_ids=(3,),
        step_ids=(8, 9),
        span=(1, 2),
        quote_found="exact",
        fidelity="ids",
        placement="message",
        role="user",
        notes=(ATTACK,),
        guards=(ATTACK,),
    )
    target = make_target(
        trace_id=ATTACK,
        error_class=ATTACK,
        hint=ATTACK,
        tokens=(ATTACK, "b"),
        instead=(ATTACK, "d"),
        guards=(ATTACK,),
        accepted=True,
        reasons=(),
    )
    rejected = make_target("b", split="train", reasons=("no_effect", "leak"))
    config = load_config(None, ["run.model=m", "traces.path=x"])
    evaluation = Evaluation(10, 0.4, 0.5, {"unknown_tool": 0.5}, {})
    return build(
        ReportInput(
            manifest={"config": config.model_dump(mode="json"), "versions": {}, "model": {}, "prompts": {}},
            trace_rows=[
                {"key": "k", "trace": {"messages": [{"role": "assistant"}]}},
                {"key": "f", "failure": {"reason": "not_json"}},
            ],
            splits={"k": "holdout"},
            critique_rows=[{"key": "c"}],
            critiques={"k": Critique(trace_id="t", verdict="findings", findings=(finding,))},
            injection_rows=[
                {"injection": injection.model_dump(mode="json")},
                {"skipped": "consequence", "trace_id": ATTACK, "finding": {"step": 1, "error_class": ATTACK}},
            ],
            failures=[{"reason": "context_length"}],
            targets=[target, rejected],
            injections={"a": injection},
            contexts={"a": (ATTACK, ATTACK)},
            trained=["a"],
            train_summary={"engine_floor_nats": 0.0, "steps": 3},
            after={"a": After(np.array([-1.0, -2.0]), 1, [(9, -0.5), (8, -2.0)])},
            decode=lambda ids: f"{ATTACK}{ids}",
            evaluations={"test": {"before": evaluation, "after": evaluation}},
            off_target={ATTACK: Movement(1, 10, 0.001, 0.01, 0.1, 0.0)},
            warnings=[ATTACK],
            folder=Path("runs/my run"),
            owed=2,
            tripwires=[{"step": 3, "tripwire": "max_heldout_kl", "value": 0.7, "bound": 0.5}],
        )
    )


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags, self.attributes = set(), set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def test_trace_text_is_never_markup(document):
    page = taken_apart(render_html(document, 10))
    seen = Tags()
    seen.feed(page.static)
    assert "script" not in seen.tags and "img" not in seen.tags
    assert not any(a.startswith("on") or a == "style" for a in seen.attributes)
    assert "\x1b" not in page.static and "\u202e" not in page.static and "\\u001b[2J\\u202e" in page.static
    assert page.details[0]["hint"] == ATTACK, "an island holds text as it is; the page's script makes text nodes of it"


def test_the_page_is_self_contained(document):
    page = taken_apart(render_html(document, 10))
    static = page.static.replace(str(escape(printable(ATTACK))), "")
    for part in (static, page.style, page.script):
        assert not re.search(r"src\s*=|@import|url\(|https?://|fetch\(|innerHTML|outerHTML|insertAdjacent|eval\(", part)
    links = re.findall(r"href\s*=\s*\"([^\"]*)", static)
    assert links and all(link.startswith("#") and f'id="{link[1:]}"' in static for link in links), (
        "links stay on the page"
    )


def test_the_policy_names_the_pages_own_script_and_style(document):
    page = taken_apart(render_html(document, 10))
    for kind, content in (("script-src", page.script), ("style-src", page.style)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in page.policy
    assert page.policy.startswith("default-src 'none'; ") and "unsafe" not in page.policy


def test_the_page_says_what_the_document_says(document):
    page = render_html(document, 10)
    for words in ("40.0\u00a0%", "off-target KL", "no_effect, leak", "1 consequence", "1 not_json", "1 context_length"):
        assert words in page, words


def test_few_findings_show_every_kind(document):
    many = dict(document)
    many["findings"] = [dict(document["findings"][0], key=f"x{i}", error_class="a") for i in range(50)] + [
        dict(document["findings"][1], error_class="b")
    ]
    page = render_html(many, 4)
    assert page.count('<article id="f-') == 4 and ">b</h3>" in page


def test_the_document_says_which_run_it_is_and_what_is_open(document):
    run = document["run"]
    assert run["name"] == "my run" and run["command"] == "hintdistill run 'runs/my run/config.yaml'"
    assert run["data"] and re.fullmatch("[0-9a-f]{24}", run["config_hash"])
    assert document["funnel"]["critique"]["owed"] == 2 and document["train"]["tripwires"][0]["value"] == 0.7


def test_crossed_tripwires_are_read_from_the_metrics_of_the_current_training(tmp_path):
    ctx = RunContext(load_config(None, ["run.model=m", "traces.path=x"]), RunDir(tmp_path), Progress(quiet=True))
    assert _tripwires(ctx) is None, "not known is not none"
    ctx.rundir.set_index(WORK_INDEX, ["now"])
    assert _tripwires(ctx) is None
    crossed = {"step": 3, "tripwire": "max_heldout_kl", "value": 0.7, "bound": 0.5}
    for name, found in (
        ("before", [crossed, crossed]),
        ("now", [{"step": 1, "loss": 0.5}, crossed | {"message": "m"}]),
    ):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found))
    assert _tripwires(ctx) == [crossed]


def test_json_has_a_finding_in_a_line_and_refuses_nan(document, tmp_path):
    path = tmp_path / "report.json"
    write_document(path, document)
    whole = document | {"findings": list(document["findings"])}
    assert json.loads(path.read_text(encoding="utf-8")) == json.loads(json.dumps(whole)) and whole["findings"]
    again = read_document(path)
    assert (
        len(again["findings"]) == len(whole["findings"])
        and list(again["findings"]) == json.loads(json.dumps(whole))["findings"]
    )
    path.write_text(json.dumps(whole, indent=1), encoding="utf-8")
    assert read_document(path) == json.loads(json.dumps(whole)), "as a release before wrote it"
    with pytest.raises(ValueError, match="JSON compliant"):
        write_document(path, document | {"x": float("nan")})
    with pytest.raises(ValueError, match="JSON compliant"):
        dumps({"x": float("nan")})


def test_the_terminal_shows_control_characters_instead_of_obeying_them(document):
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=False)
    show_summary(document, console)
    show_findings(document, console)
    for finding in document["findings"]:
        show_finding(finding, console)
    text = out.getvalue()
    assert "\x1b" not in text and "\u202e" not in text and "\\u001b" in text


def test_counts(document):
    f = document["funnel"]
    assert f["read"] == {"records": 2, "traces": 1, "steps": 1, "failed": {"not_json": 1}, "split": {"holdout": 1}}
    assert f["inject"]["skipped"] == {"consequence": 1} and f["rescore"]["failed"] == {"context_length": 1}
    assert f["rescore"]["accepted"] == 1 and f["rescore"]["reasons"] == {"no_effect": 1, "leak": 1}
    assert document["effects"]["accepted"]["n"] == 1 and document["effects"]["all"]["n"] == 2
    assert document["off_target_kl_nats"] == pytest.approx(0.001)
    assert document["effects"]["accepted"]["error_probability"]["after"] == pytest.approx(np.exp(-2.0))


def test_a_run_that_trained_nothing_has_a_report_too(document):
    bare = dict(
        document, environment=None, off_target={}, off_target_kl_nats=None, train=None, findings=[], unscored=[]
    )
    assert "hintdistill report" in render_html(bare, 10)


def test_movement_is_the_kl_of_the_definition(tiny_model):
    import copy

    import torch

    from hintdistill.engines.transformers import TransformersEngine

    a = tiny_model("qwen3")
    b = copy.deepcopy(a)
    with torch.no_grad():
        b.model.norm.weight.mul_(0.9)
    rng = np.random.default_rng(0)
    requests = [ScoreRequest(rng.integers(0, 1024, 20), 12, 20) for _ in range(5)]
    got = movement(TransformersEngine(a, "a"), TransformersEngine(b, "b"), requests, batch=2)
    kls, flips = [], []
    for r in requests:
        with torch.no_grad():
            p, q = (m(input_ids=torch.tensor(r.ids)[None]).logits[0, 11:19].log_softmax(-1) for m in (a, b))
        kls.append((p.exp() * (p - q)).sum(-1).numpy())
        flips.append((p.argmax(-1) != q.argmax(-1)).numpy())
    assert got.tokens == 40 and got.steps == 5
    assert got.kl_per_token == pytest.approx(np.concatenate(kls).mean(), rel=1e-3)
    assert got.kl_per_step == pytest.approx(np.mean([k.sum() for k in kls]), rel=1e-3)
    assert got.top1_flip_rate == pytest.approx(np.concatenate(flips).mean())
    same = movement(TransformersEngine(a, "a"), TransformersEngine(a, "a"), requests)
    assert same.kl_per_token == 0 and same.top1_flip_rate == 0
    assert movement(TransformersEngine(a, "a"), TransformersEngine(a, "a"), []) is None
