"""A critic that answers nothing: a run stops before it trains on the rest, or trains without what is owed where that is allowed."""

from __future__ import annotations

from conftest import ROOT, TOOLWORLD
from support.bad_server import bad_server
from support.command import hintdistill, rows


def test_owed_critiques_stop_training_and_a_share_that_is_allowed_does_not(tmp_path):
    with bad_server() as server:
        settings = [
            str(ROOT / "configs" / "quickstart.yaml"),
            "-q",
            f"run.dir={tmp_path / 'run'}",
            f"traces.path={TOOLWORLD / 'traces.jsonl'}",
            "traces.limit=14",
            "critic.use=[rules, llm]",
            f"critic.llm={{base_url: {server.url('busy')}, model: m, retries: 0, context_tokens: 100000}}",
            "rescore.top_k=4",
            "train.epochs=0.5",
            "train.anchor.weight=0",
            "train.watch.steps=1",
            "run.device=cpu",
        ]
        stopped = hintdistill("run", *settings, "--until", "train", expect=5)
        assert "14 of 14 traces lack a critique (14 status)" in stopped.stderr
        assert "critic.allow_owed=1 trains without them" in stopped.stderr
        assert not (tmp_path / "run" / "injections.jsonl").exists() and not (tmp_path / "run" / "student").exists()
        # a share below what is owed stops as well
        hintdistill("run", *settings, "--until", "train", "--resume", "critic.allow_owed=0.9", expect=5)
        hintdistill("run", *settings, "--until", "train", "--resume", "critic.allow_owed=1.0")
    # what the rules found is trained on
    assert rows(tmp_path / "run", "injections") and (tmp_path / "run" / "student" / "model.safetensors").is_file()
    failures = [r["failure"]["reason"] for r in rows(tmp_path / "run", "critiques") if "failure" in r]
    assert failures and set(failures) == {"status"}
