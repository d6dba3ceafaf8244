"""Run folders that are foreign, damaged, stopped, of other traces, or on a disk that refuses."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TOOLWORLD
from support.command import COMMAND, ENV, hintdistill, rows

from hintdistill.core.errors import InputError
from hintdistill.core.storage import JsonlStore, append_line, disk_trouble
from hintdistill.core.trust import UntrustedError
from hintdistill.pipeline.continuing import changed_settings, only_unfinished
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.verify import damages
from hintdistill.rescoring.store import TargetStore

SMALL = [
    "critic.use=[rules]",
    "traces.limit=20",
    "rollout.environment=null",
    "report.off_target={}",
    "rescore.top_k=4",
    "train.epochs=1",
    "train.save_steps=1",
    "train.logging_steps=1",
    "train.watch.steps=1",
    "train.anchor.candidates=1",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    hintdistill("run", "configs/quickstart.yaml", f"run.dir={folder}", "-q", *SMALL)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy, so that nothing is shared."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """Python that leaves a mark when it is imported."""
    (tmp_path / "evil.py").write_text(
        f"open({str(tmp_path / 'EXECUTED')!r}, 'w').close()\nclass World: pass\ndef check(trace): return []\n"
    )
    return tmp_path / "evil.py"


def metrics_of(folder: Path) -> list[dict]:
    """The rows of its training, without how long it took."""
    (path,) = folder.glob("train/*/metrics.jsonl")
    clock = ("train_runtime", "train_samples_per_second", "train_steps_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in path.read_text().splitlines()]


def settings_of(run: Path, change) -> None:
    """Change the configuration in a run folder as somebody else would, without the key."""
    manifest = json.loads((run / "manifest.json").read_text())
    change(manifest["config"])
    (run / "manifest.json").write_text(json.dumps(manifest))
    import yaml

    (run / "config.yaml").write_text(yaml.safe_dump(manifest["config"]))


# -- foreign folders ---------------------------------------------------------------------------------------------------


def test_no_command_runs_what_a_foreign_folder_names(run: Path, evil: Path, tmp_path: Path):
    def change(config):
        config["rollout"]["environment"] = f"{evil}:World"
        config["critic"] |= {"use": ["rules", "checker"], "checker": f"{evil}:check"}

    settings_of(run, change)
    mark = tmp_path / "EXECUTED"
    done = hintdistill("report", str(run))
    assert "success in the environment was not measured" in done.stderr and "--trust" in done.stderr
    warned = json.loads((run / "report.json").read_text())["warnings"]
    assert any("was not written by you on this machine" in w for w in warned)
    assert RunDir(run).is_own() is False, "a report does not make it ours"
    for expect, *words in (
        (2, "run", run, "--resume"),
        (2, "run", run / "config.yaml", "--resume", f"run.dir={run}"),
        (2, "run", run / "config.yaml", "--dry-run"),
        (2, "critique", run),
        (2, "rescore", run / "config.yaml", f"run.dir={run}"),
        (2, "train", run / "config.yaml", f"run.dir={run}"),
        (2, "plan", run / "config.yaml", "--no-measure"),
        (2, "critique", run / "config.yaml", "--labels", TOOLWORLD / "findings.jsonl", f"run.dir={tmp_path / 'l'}"),
        (0, "show", run),
        (0, "preflight", run),
        (0, "verify", run),
        (0, "report", run, "--share"),
        (0, "clean", run, "--dry-run"),
    ):
        done = hintdistill(*map(str, words), expect=expect)
        assert not expect or "was not written by you on this machine" in done.stderr, words
        assert not mark.exists(), words
    said = hintdistill("report", str(run), "--trust", expect=2).stderr
    assert "is not a TaskSuite" in said and mark.exists(), "with --trust it runs, and it is no environment"


def test_what_a_foreign_folder_names_is_not_downloaded_asked_or_followed(run: Path, tmp_path: Path):
    def change(config):
        config["run"]["model"] = "nobody/nothing"
        config["run"]["trust_remote_code"] = True

    settings_of(run, change)
    assert "may not download the model nobody/nothing" in hintdistill("report", str(run), expect=2).stderr
    settings_of(
        run,
        lambda c: (
            c["critic"].update(use=["llm"])
            or c["critic"]["llm"].update(backend="server", base_url="http://example.org/v1", model="m")
            or c["critic"].update(allow_hosts=["example.org"])
        ),
    )
    said = hintdistill("run", str(run), "--resume", "run.model=" + str(TOOLWORLD / "student"), expect=2).stderr
    assert "may not ask example.org" in said
    (run / "evaluations.jsonl").unlink(missing_ok=True)
    (run / "evaluations.jsonl").symlink_to(tmp_path / "elsewhere")
    assert "is not a regular file" in hintdistill("report", str(run), expect=3).stderr
    assert not (tmp_path / "elsewhere").exists()


def test_settings_from_elsewhere_are_used_in_a_scope_only(run: Path):
    from hintdistill.pipeline.context import RunContext
    from hintdistill.pipeline.progress import Console

    own, _ = RunDir(run).config()
    assert own.foreign is None
    settings_of(run, lambda c: c["run"].update(seed=7))
    config, _ = RunDir(run).config()
    assert config.foreign == str(run)
    with pytest.raises(UntrustedError):
        RunContext(config, RunDir(run), Console(quiet=True))


# -- damage ------------------------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def spoil(run: Path) -> dict[str, Path]:
    """Damage of every kind; by kind, where."""
    part = TargetStore(run / "targets").parts()[0]
    flip(part)
    weights = run / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    (run / "student" / "tokenizer.json").unlink()
    lines = (run / "critiques.jsonl").read_bytes().splitlines(keepends=True)
    (run / "critiques.jsonl").write_bytes(b"".join([lines[0], b"[1]\n", b"{torn\n", *lines[1:]]))
    (run / "index" / "inject.json").write_text("")
    (work,) = (run / "train").iterdir()
    (work / "engine_floor.json").write_text("")
    (run / "report.json").write_text("{")
    return {"part": part, "weights": weights, "work": work}


def test_damage_is_named_repaired_and_made_again(run: Path, trained: Path):
    before = {n: rows(trained, n) for n in ("traces", "critiques", "injections")}
    spoil(run)
    (run / "targets" / ".part-1.parquet.writing").write_bytes(b"half")
    done = hintdistill("verify", str(run), expect=3)
    for word in (
        "part-",
        "its bytes differ from those that were written",
        "model.safetensors has",
        "tokenizer.json is missing",
        "critiques.jsonl: 2 lines are not rows, for example line 2",
        "index/inject.json",
        "engine_floor.json",
        "report.json",
    ):
        assert word in done.stdout, word
    assert f"hintdistill run {run} --resume" in done.stdout
    assert len(list((run / "damaged").iterdir())) == 6
    assert hintdistill("verify", str(run)).stdout.endswith("all files are unchanged since they were written\n")
    hintdistill("run", str(run), "--resume", "-q")
    assert {n: rows(run, n) for n in before} == before
    assert damages(RunDir(run)) == [] and not list(run.rglob("*.writing"))
    kept = [p.relative_to(trained / "student") for p in (trained / "student").rglob("*") if p.is_file()]
    for name in kept:
        if name.name != "README.md":
            assert (run / "student" / name).read_bytes() == (trained / "student" / name).read_bytes(), name
    assert metrics_of(run) == metrics_of(trained)


def test_a_resume_repairs_by_itself_and_says_so(run: Path):
    spoil(run)
    done = hintdistill("run", str(run), "--resume")
    assert done.stderr.count("damaged: ") >= 6 and "trains it again" in done.stderr
    assert damages(RunDir(run)) == []


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("manifest.json", ""),
        ("manifest.json", "[]"),
        ("manifest.json", '{"schema": 2}'),
        ("index/read.json", "{}"),
        ("index/rescore.json", '["no such row"]'),
        ("traces.jsonl", "[]\n"),
        ("critiques.jsonl", '{"a": 1}\n'),
        ("report.json", "[1"),
        ("targets/part-0000000000000000.parquet", "PAR1"),
    ],
)
def test_no_damaged_file_is_a_traceback(run: Path, file: str, text: str):
    (run / file).write_text(text)
    for command in (["report", "-q"], ["show"], ["preflight"], ["report", "--share"]):
        done = subprocess_free(command[0], str(run), *command[1:])
        assert done in (0, 2, 3, 4), (command, done)


def subprocess_free(*words: str) -> int:
    """The exit code; any exception that is not declared fails the test."""
    for code in (0, 2, 3, 4):
        try:
            hintdistill(*words, expect=code)
        except AssertionError as error:
            if not str(error).startswith("exit "):
                raise
            continue
        return code
    return -1


def test_a_damaged_checkpoint_is_passed_over(run: Path, trained: Path):
    (work,) = (run / "train").iterdir()
    last = max(work.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    optimizer = last / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[: optimizer.stat().st_size // 2])
    shutil.rmtree(run / "student")
    done = hintdistill("run", str(run), "--resume")
    assert f"damaged: {last}: optimizer.pt" in done.stderr
    assert (run / "student" / "model.safetensors").read_bytes() == (
        trained / "student" / "model.safetensors"
    ).read_bytes()
    assert metrics_of(run) == metrics_of(trained)


def test_flipped_bits_of_a_checkpoint_and_of_the_student_are_seen(run: Path, trained: Path):
    """Both were whole safetensors files of the right size."""
    (work,) = (run / "train").iterdir()
    last = max(work.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for weights in (last / "model.safetensors", run / "student" / "model.safetensors"):
        flip(weights)
    found = hintdistill("verify", str(run), expect=3).stdout
    for folder in (last, run / "student"):
        assert f"damaged: {folder}: model.safetensors has changed since it was written" in found
    assert not last.exists() and (run / "damaged" / f"train-{work.name}-{last.name}" / "model.safetensors").is_file()
    said = hintdistill("run", str(run), "--resume")
    assert "damaged" not in said.stderr
    for name in ("student/model.safetensors", f"train/{work.name}/{last.name}/model.safetensors"):
        assert (run / name).read_bytes() == (trained / name).read_bytes()
    assert metrics_of(run) == metrics_of(trained)


# -- continuing --------------------------------------------------------------------------------------------------------


def test_metrics_are_cut_back_to_the_checkpoint(run: Path, trained: Path):
    (work,) = (run / "train").iterdir()
    metrics = work / "metrics.jsonl"
    for path in sorted(work.glob("checkpoint-*"))[1:]:
        shutil.rmtree(path)
    metrics.write_bytes(metrics.read_bytes() + b'{"step": 3, "lo')
    shutil.rmtree(run / "student")
    hintdistill("run", str(run), "--resume", "-q")
    assert metrics_of(run) == metrics_of(trained)


def test_run_config_resume_continues_the_only_unfinished_folder(trained: Path, tmp_path: Path, monkeypatch):
    config = tmp_path / "mine.yaml"
    text = (ROOT / "configs" / "quickstart.yaml").read_text()
    config.write_text(text.replace("../", f"{ROOT}/").replace("  dir: ", "  # dir: "))
    monkeypatch.setattr("support.command.ROOT", tmp_path)
    words = ["run", str(config), *SMALL, "--until", "inject"]
    assert "a run without --resume starts a new one" in hintdistill(*words, "--resume").stdout
    hintdistill(*words, "-q")
    (folder,) = (tmp_path / "runs").iterdir()
    assert "no unfinished run of" in hintdistill(*words, "--resume").stdout
    later = ["run", str(config), *SMALL, "train.epochs=2", "--until", "rescore", "--resume"]
    said = hintdistill(*later).stderr
    assert f"continues {Path('runs') / folder.name}" in said
    assert "changed: train.epochs was 1" in said and "from train on" in said
    for name in ("a", "b"):
        other = shutil.copytree(folder, tmp_path / "runs" / name)
        RunDir(other).note(finished=False)
    said = hintdistill(*later, expect=2).stderr
    assert (
        "2 runs of" in said and "runs/a, runs/b" in said and "hintdistill run runs/b --resume --until rescore" in said
    )
    assert hintdistill("run", str(folder), expect=2).stderr.count("is a run folder") == 1
    monkeypatch.chdir(tmp_path)
    RunDir(tmp_path / "runs" / "a").note(finished=True)
    assert only_unfinished(config, "rescore") == Path("runs/b")


def test_a_kill_before_the_manifest_or_right_after_it_is_no_obstacle(tmp_path: Path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in (".lock", ".manifest.json.writing"):
        (folder / name).write_text("")
    hintdistill("run", "configs/quickstart.yaml", f"run.dir={folder}", *SMALL, "--until", "read", "-q")
    before = (folder / "config.yaml").read_text()
    (folder / "config.yaml").unlink()
    hintdistill("run", str(folder), "--resume", "--until", "read", "-q")
    assert (folder / "config.yaml").read_text() == before and len(rows(folder, "traces")) == 20
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    said = hintdistill("run", "configs/quickstart.yaml", f"run.dir={tmp_path / 'other'}", *SMALL, expect=2).stderr
    assert "is not empty and contains no run" in said


def test_a_folder_of_other_traces_is_refused_and_left_alone(run: Path, tmp_path: Path):
    lines = (TOOLWORLD / "traces.jsonl").read_text().splitlines()
    (tmp_path / "other.jsonl").write_text("\n".join(lines[-3:]) + "\n")
    before = (run / "traces.jsonl").read_bytes()
    words = ["run", "configs/quickstart.yaml", f"run.dir={run}", *SMALL, f"traces.path={tmp_path / 'other.jsonl'}"]
    said = hintdistill(*words, "--resume", "-q", expect=2).stderr
    assert "contains a run on other traces: none of its 20" in said
    assert (run / "traces.jsonl").read_bytes() == before


def test_changed_keys_say_from_where():
    said = changed_settings(
        {"critic": {"use": [1]}, "run": {"threads": 1}}, {"critic": {"use": [2]}, "run": {"threads": 2}}
    )
    assert "from critique on" in said[0] and said[1].endswith("nothing is computed again")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_says_how_to_continue(tmp_path: Path, number: int):
    folder = tmp_path / "run"
    words = [*COMMAND, "run", "configs/quickstart.yaml", f"run.dir={folder}", *SMALL, "-q"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=ENV, cwd=ROOT) as process:
        while not (folder / "index" / "read.json").exists() and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == f"interrupted; finished work is kept in {folder}. Continue with: hintdistill run {folder} --resume\n"


def test_an_error_says_how_to_continue(run: Path):
    said = hintdistill("run", str(run), "--resume", "-q", "traces.path=nowhere", expect=3).stderr
    assert f"Continue with: hintdistill run {run} --resume" in said
    (run / "index" / "rescore.json").write_text("{}")
    for words in (["report", str(run)], ["controls", str(run), "steps=4", "--arms", "hint"]):
        said = hintdistill(*words, "-q", expect=3).stderr
        again = " ".join([*words, *(["--resume"] if words[0] == "controls" else [])])
        assert said.count(f"Continue with: hintdistill {again}\n") == 1
    assert "Continue with" not in hintdistill("controls", str(run), "stpes=4", expect=2).stderr


# -- disks -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_disk_that_refuses_is_named(tmp_path: Path):
    """A limit on file size stands for a full disk: the same calls fail, in Python and in libraries."""
    folder = tmp_path / "run"
    words = ["run", "configs/quickstart.yaml", f"run.dir={folder}", *SMALL, "-q"]
    script = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\nfrom hintdistill.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, env=ENV, cwd=ROOT)
    assert done.returncode == 3 and "Traceback" not in done.stderr, done.stderr
    assert "cannot write" in done.stderr and str(folder) in done.stderr and "--resume continues" in done.stderr
    hintdistill("run", str(folder), "--resume", "-q")
    assert damages(RunDir(folder)) == []


def test_a_full_disk_is_said_in_one_line_and_a_resume_goes_on(tmp_path: Path):
    """In this process, whose limit on file sizes stands for a full disk; only rows and indexes are written."""
    folder, before = tmp_path / "run", resource.getrlimit(resource.RLIMIT_FSIZE)
    words = ["run", "configs/quickstart.yaml", f"run.dir={folder}", *SMALL, "--until", "inject", "-q"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        said = hintdistill(*words, expect=3).stderr
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert said.startswith("error: cannot write ") and str(folder) in said and "Traceback" not in said
    assert said.count(f"Continue with: hintdistill run {folder} --resume --until inject\n") == 1
    assert not list(folder.rglob("*.writing"))
    hintdistill(*words, "--resume")
    assert damages(RunDir(folder)) == [] and rows(folder, "injections")


def test_a_row_is_whole_or_not_there(tmp_path: Path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    store = JsonlStore(tmp_path / "rows.jsonl")
    store.append({"key": "a", "text": "\ud800"})
    size = store.path.stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            store.append({"key": "b", "text": "x" * 100})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.path.stat().st_size == size and disk_trouble(caught.value) is not None
    store.append({"key": "c"})
    assert [r["key"] for r in store.rows()] == ["a", "c"]
    with pytest.raises(OSError, match="No space left"):
        append_line(Path("/dev/full"), "x")
    (tmp_path / "bad.jsonl").write_text("3\n")
    with pytest.raises(InputError, match=r"line 1: not an object with a key"):
        list(JsonlStore(tmp_path / "bad.jsonl").rows())
    assert os.environ["XDG_STATE_HOME"], "the tests' own key"


# -- paths and text ----------------------------------------------------------------------------------------------------


def test_paths_that_are_not_what_they_should_be(tmp_path: Path):
    folder = tmp_path / "loop"
    folder.mkdir()
    (folder / "a.jsonl").write_text("".join((TOOLWORLD / "traces.jsonl").read_text().splitlines(keepends=True)[:2]))
    for name, to in (
        ("self", "."),
        ("me", "me"),
        ("gone.jsonl", "/nowhere"),
        ("x.jsonl", "y.jsonl"),
        ("y.jsonl", "x.jsonl"),
    ):
        (folder / name).symlink_to(to)
    os.mkfifo(folder / "pipe.jsonl")
    done = hintdistill("traces", "inspect", str(folder))
    assert "a symbolic link that leads back to itself" in done.stdout and "2 traces" in done.stdout
    for words in (["run", folder], ["run", folder, "--resume"], ["critique", folder], ["plan", folder]):
        assert "is a folder but not a run folder" in hintdistill(*map(str, words), expect=2).stderr
    assert "/proc/" in hintdistill("convert", str(folder), "--allow-empty-files", "--out", "/proc/x", expect=3).stderr
    assert "/proc/x" in hintdistill("init", "/proc/x", expect=3).stderr


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path):
    import hintdistill as hd
    from hintdistill.core.errors import ArgumentError

    rows = [json.loads(line) | {"hint": "half \ud800"} for line in (TOOLWORLD / "findings.jsonl").open()][:2]
    (tmp_path / "f.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = [
        *SMALL,
        "critic.use=[recorded]",
        f"critic.recorded.path={tmp_path / 'f.jsonl'}",
        f"run.dir={tmp_path / 'r'}",
    ]
    said = hintdistill("run", "configs/quickstart.yaml", *words, "--until", "inject", expect=3).stderr
    assert "f.jsonl, line 1" in said and "surrogate" in said
    engine = hd.load_engine(str(TOOLWORLD / "student"), device="cpu")
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with pytest.raises(ArgumentError, match="surrogate"):
        hd.rescore(talk, step=0, hint="half \ud800", engine=engine)
