"""A hint the gate rejects goes back to its critic once, with the measured reason, and is judged like any other."""

from __future__ import annotations

import json

from conftest import STUDENT, TOOLWORLD
from support.scripted_server import scripted_server

from hintdistill.config import CHECKS
from hintdistill.config.file import validate
from hintdistill.core.types import Trace
from hintdistill.critics.rules import RulesCritic
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.traces.formats import native
from hintdistill.traces.reading import read_traces


def test_a_rejected_hint_goes_back_once(tmp_path):
    chosen: dict[str, tuple[Trace, str]] = {}
    for trace in read_traces([TOOLWORLD / "traces.jsonl"]):
        found = RulesCritic(CHECKS).check(trace).findings
        if found and found[0].error_class == "unknown_tool" and found[0].step == 0 and len(chosen) < 3:
            chosen[trace.id] = (trace, found[0].facts["wrong"])
    native.write(tmp_path / "t.jsonl", [t for t, _ in chosen.values()])

    def answer(request):
        text = request["messages"][0]["content"]
        trace, wrong = next(v for v in chosen.values() if json.dumps(v[0].messages[1].content) in text)
        if request["response_format"]["json_schema"]["schema"].get("title") == "HintAnswer":
            assert "leak: it names something" in text and "The code will be 99123" in text
            return json.dumps({"hint": f"There is no tool {wrong}. The tools are {', '.join(trace.tool_schemas)}."})
        finding = {
            "step": 0,
            "quote": wrong,
            "error_class": "unknown_tool",
            "hint": "The code will be 99123.",
            "confidence": 1.0,
            "caused_by": None,
        }
        return json.dumps({"verdict": "findings", "findings": [finding]})

    with scripted_server(answer) as server:
        settings = {
            "run": {"model": str(STUDENT), "dir": str(tmp_path / "run")},
            "traces": {"path": [str(tmp_path / "t.jsonl")], "holdout": 0.0},
            "train": {"anchor": {"weight": 0.0}},
            "critic": {
                "use": ["llm"],
                "revise": True,
                "prompts": str(TOOLWORLD / "prompts"),
                "llm": {"base_url": server.url, "model": "m", "context_tokens": 16_000},
            },
        }
        config = validate(settings, "test")
        folder = run(config, tmp_path / "run", until="rescore", console=Console(quiet=True))
        document = json.loads((folder / "report.json").read_text())
        asked = len(server.received)
        run(config, tmp_path / "run", resume=True, until="rescore", console=Console(quiet=True))
        assert len(server.received) == asked == 6, "a question and a second hint per trace, and nothing on resume"
    assert document["funnel"]["rescore"]["revised"]["scored"] == 3
    accepted = [f for f in document["findings"] if f["accepted"]]
    assert document["funnel"]["rescore"]["revised"]["accepted"] == len(accepted) >= 2
    assert all(f["hint"].startswith("There is no tool") for f in document["findings"])
    assert all(len(f["placebos"]) >= 3 for f in document["findings"])
    assert json.loads((folder / "report.json").read_text())["funnel"] == document["funnel"]
