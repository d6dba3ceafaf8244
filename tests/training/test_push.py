"""Publishing a student: off by default, refused without a token, and the files arrive; against a hub on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, STUDENT
from huggingface_hub import constants
from support import command
from support.hub_server import TOKEN, running_hub

from hintdistill.config.file import load_config
from hintdistill.core.errors import ConfigError
from hintdistill.pipeline.store import RunDir
from hintdistill.training.push import check_push

RUN = [
    "run",
    "configs/quickstart.yaml",
    "-q",
    "critic.use=[rules,recorded]",
    "traces.limit=12",
    "train.epochs=1",
    "rollout.environment=null",
    "report.off_target={}",
]


@pytest.fixture
def hub(tmp_path):
    with running_hub(tmp_path / "hub") as running:
        yield running


def hintdistill(tmp_path, *args: str, expect: int = 0, **env: str) -> subprocess.CompletedProcess:
    """Run the command under these variables, where nobody's token is found, with the upload that needs no service beside the hub."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            patch.delenv(name, raising=False)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "home" / "token"))
        patch.setattr(constants, "HF_STORED_TOKENS_PATH", str(tmp_path / "home" / "stored_tokens"))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        return command.hintdistill(*args, expect=expect)


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_run_pushes_its_student_when_told_and_only_then(tmp_path, hub):
    run = tmp_path / "run"
    hintdistill(tmp_path, *RUN, f"run.dir={run}", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert hub.calls == [], "push is off by default"
    before = (run / "student" / "hintdistill.json").stat().st_mtime_ns
    done = hintdistill(
        tmp_path, *RUN, "--resume", f"run.dir={run}", "train.push=me/corrected", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN
    )
    assert (run / "student" / "hintdistill.json").stat().st_mtime_ns == before, "nothing was trained again for it"
    assert hub.made["me/corrected"]["visibility"] == "private", done.stderr
    arrived = files(tmp_path / "hub" / "me" / "corrected")
    here = files(run / "student")
    assert here.pop("checksums.json"), "checksums are for resuming here; the hub has its own"
    assert arrived == here and {"model.safetensors", "README.md", "config.json"} <= arrived.keys()
    assert b"# corrected\n" in arrived["README.md"] and b"vllm serve me/corrected" in arrived["README.md"]
    # looking at a finished run sends nothing
    calls = len(hub.calls)
    hintdistill(tmp_path, "report", str(run), "-q", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert len(hub.calls) == calls


def finished(folder: Path) -> Path:
    """A run folder with a student in it."""
    run = RunDir.create(folder, load_config(ROOT / "configs" / "quickstart.yaml", ()), resume=False)
    shutil.copytree(STUDENT, run.path / "student")
    run.close()
    return folder


def test_the_command_pushes_a_finished_run(tmp_path, hub):
    run = finished(tmp_path / "run")
    done = hintdistill(tmp_path, "push", str(run), "me/student", "--public", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert done.stdout == f"{hub.url}/me/student/commit/1\n"
    assert hub.made["me/student"]["visibility"] == "public"
    assert files(tmp_path / "hub" / "me" / "student") == files(run / "student")
    # again, into the repository that is there now
    hintdistill(tmp_path, "push", str(run), "me/student", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)


def test_a_missing_token_or_a_bad_name_is_said_before_the_run(tmp_path, hub):
    run = tmp_path / "run"
    done = hintdistill(tmp_path, *RUN, f"run.dir={run}", "train.push=me/corrected", expect=2, HF_ENDPOINT=hub.url)
    assert "pushed to me/corrected on 127.0.0.1, but there is no token" in done.stderr and "HF_TOKEN" in done.stderr
    done = hintdistill(tmp_path, "push", str(finished(tmp_path / "done")), "me/x", expect=2, HF_ENDPOINT=hub.url)
    assert "there is no token" in done.stderr
    assert not run.exists() and hub.calls == []
    with pytest.raises(ConfigError, match=r"train\.push: ") as caught:
        check_push("a/b/c")
    assert "me/my-student" in caught.value.hint
    check_push(None)


def test_a_hub_that_refuses_or_is_gone_and_a_run_without_student(tmp_path, hub):
    run = finished(tmp_path / "run")
    done = hintdistill(tmp_path, "push", str(run), "me/x", expect=5, HF_ENDPOINT=hub.url, HF_TOKEN="hf_wrong")
    assert "127.0.0.1 did not accept the student for me/x" in done.stderr and "401" in done.stderr
    done = hintdistill(tmp_path, "push", str(run), "me/x", expect=5, HF_ENDPOINT="http://127.0.0.1:9", HF_TOKEN=TOKEN)
    assert "did not accept the student" in done.stderr
    shutil.rmtree(run / "student")
    done = hintdistill(tmp_path, "push", str(run), "me/x", expect=3, HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    assert "no student at" in done.stderr
    manifest = json.loads((run / "manifest.json").read_text())
    assert TOKEN not in json.dumps(manifest), "a token is never written down"


def test_no_folder_of_this_machine_is_published(tmp_path, hub):
    """Paths are absolute in a run folder; what is pushed names none, and a local student is not changed by it."""
    run = finished(tmp_path / "run")
    student = run / "student"
    (student / "adapter").mkdir()
    named = {"base_model_name_or_path": str(student / "initial"), "r": 4}
    (student / "adapter" / "adapter_config.json").write_text(json.dumps(named))
    arrived = {"adapter": str(tmp_path / "a"), "base": str(tmp_path / "b"), "handling": "merged"}
    (student / "hintdistill.json").write_text(json.dumps({"key": "k", "arrived": arrived}))
    before = files(student)
    hintdistill(tmp_path, "push", str(run), "me/x", HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN)
    there = files(tmp_path / "hub" / "me" / "x")
    assert files(student) == before and there.keys() == before.keys()
    assert [name for name, data in there.items() if str(tmp_path).encode() in data or str(ROOT).encode() in data] == []
    assert json.loads(there["adapter/adapter_config.json"]) == named | {
        "base_model_name_or_path": "path/to/the/initial/model"
    }
    assert there["model.safetensors"] == before["model.safetensors"]
