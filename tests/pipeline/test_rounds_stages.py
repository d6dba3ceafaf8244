"""A round runs the same stages in the same order as a run: rejected hints are revised there, and warnings are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import ROOT, STUDENT
from support.scripted_server import scripted_server

from hintdistill.config import CHECKS
from hintdistill.config.file import load_config
from hintdistill.critics.rules import RulesCritic
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run
from hintdistill.traces.reading import read_traces

pytestmark = pytest.mark.usefixtures("one_thread")
LEAKING = "The code will be 99123."


class Critic:
    """A critic model that finds the first unknown tool of each episode, and whose first hints always leak."""

    def __init__(self, rollouts: Path) -> None:
        self.rollouts = rollouts

    def __call__(self, request: dict) -> str:
        """Answer a request about one of the round's episodes, which lie in a file by now."""
        text = request["messages"][0]["content"]
        revising = request["response_format"]["json_schema"]["schema"].get("title") == "HintAnswer"
        for trace in read_traces([self.rollouts]):
            said = [json.dumps(m.content) for m in trace.messages if m.role == "user"]
            if not all(s in text for s in said):
                continue
            for finding in RulesCritic(CHECKS).check(trace).findings:
                wrong = finding.facts.get("wrong")
                if finding.error_class != "unknown_tool" or (revising and wrong not in text):
                    continue
                if revising:
                    assert LEAKING in text and "leak: it names something" in text
                    hint = f"There is no tool {wrong}. The tools are {', '.join(trace.tool_schemas)}."
                    return json.dumps({"hint": hint})
                found = {"step": finding.step, "quote": wrong, "error_class": "unknown_tool", "hint": LEAKING}
                return json.dumps(
                    {"verdict": "findings", "findings": [{**found, "confidence": 1.0, "caused_by": None}]}
                )
        assert not revising
        return json.dumps({"verdict": "none", "findings": []})


@pytest.fixture(scope="module")
def round_of_one(tmp_path_factory) -> Path:
    """The run folder of the first round of a loop whose critic's first hints are all rejected."""
    folder = tmp_path_factory.mktemp("rounds") / "run"
    overrides = [
        f"run.dir={folder}",
        f"run.model={STUDENT}",
        "run.rounds=1",
        "critic.use=[llm]",
        "critic.checker=",
        "critic.revise=true",
        "critic.llm.backend=server",
        "critic.llm.prompt=critic/all_at_once.jinja",
        "critic.llm.context_tokens=16000",
        "rollout.sample.episodes=12",
        "rollout.batch_size=12",
        'rollout.sample.tasks=["*.old.*"]',
        "rollout.splits=[validation]",
        "rollout.limit=2",
        "train.epochs=1",
        "train.batch_size=8",
        "train.tripwires.action=stop",
        "report.off_target_steps=4",
        "report.html=false",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        with scripted_server(Critic(folder / "rounds" / "01" / "rollouts.jsonl")) as server:
            model = [f"critic.llm.base_url={server.url}", "critic.llm.model=m"]
            config = load_config(ROOT / "configs" / "rounds.yaml", [*overrides, *model])
            run(config, folder, console=Console(quiet=True))
    return folder / "rounds" / "01" / "run"


def test_a_rejected_hint_is_revised_in_a_round(round_of_one):
    rows = [json.loads(line) for line in (round_of_one / "revisions.jsonl").read_text().splitlines()]
    assert rows and all(row["hint"].startswith("There is no tool") for row in rows)
    revised = json.loads((round_of_one / "report.json").read_text())["funnel"]["rescore"]["revised"]
    assert revised["scored"] == len(rows) and revised["accepted"] >= 1
    row = json.loads((round_of_one.parents[2] / "rounds.json").read_text())["rounds"][0]
    assert row["trained"] and row["effect"]["accepted"] == revised["accepted"]


def test_a_round_keeps_what_its_stages_warned_of(round_of_one):
    kept = {
        p.stem.removesuffix("-warnings"): json.loads(p.read_text()) for p in round_of_one.glob("index/*-warnings.json")
    }
    assert set(kept) >= {"read", "critique", "inject", "rescore", "train"}
    unread = [w for w in kept["train"] if w.startswith("train.tripwires.max_heldout_kl has no effect")]
    assert len(unread) == 1 and not any(w in kept["read"] for w in unread)
    assert set(unread) <= set(json.loads((round_of_one / "report.json").read_text())["warnings"])
