"""Sixty and more wrong commands: each ends with a declared exit code and a message, and none with a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.command import hintdistill

QUICK = "configs/quickstart.yaml"
COMMANDS = [
    (2, "nothing"),
    (2, "run"),
    (2, "run FOLDER"),
    (2, "run FOLDER --dry-run"),
    (2, "run MISSING.yaml"),
    (2, "run BINARY"),
    (2, "run EMPTY"),
    (2, "run LIST.yaml"),
    (2, "run BROKEN.yaml"),
    (2, "run TAGGED.yaml"),
    (2, "run DEEP.yaml"),
    (2, "run LOOP"),
    (2, f"run {QUICK} --until nothing"),
    (2, f"run {QUICK} --limit 0"),
    (2, f"run {QUICK} --limit many"),
    (2, f"run {QUICK} --no-such-option"),
    (2, f"run {QUICK} run.dir=FOLDER"),
    (2, f"run {QUICK} run.dir=EMPTY"),
    (2, f"run {QUICK} run.dir=EMPTY/below"),
    (2, f"run {QUICK} nokey"),
    (2, f"run {QUICK} =1"),
    (2, f"run {QUICK} run.no_such=1"),
    (2, f"run {QUICK} run.seed.deeper=1"),
    (2, f"run {QUICK} run.seed=[1,2]"),
    (2, f"run {QUICK} run.seed=[1"),
    (2, f"run {QUICK} run=7"),
    (2, f"run {QUICK} train.recipe=no_such_recipe"),
    (2, f"run {QUICK} rescore.top_k=0"),
    (2, f"run {QUICK} rescore.engine.backend=server"),
    (2, f"run {QUICK} critic.use=[]"),
    (2, f"run {QUICK} critic.use=[nobody]"),
    (2, f"run {QUICK} critic.use=[recorded] critic.recorded.path=null"),
    (2, f"run {QUICK} critic.use=[checker] critic.checker=FOLDER/none.py:f"),
    ((2, 3), f"run {QUICK} critic.use=[llm] critic.llm.model=MISSING"),
    (
        2,
        f"run {QUICK} critic.use=[llm] critic.llm.backend=server critic.llm.model=m critic.llm.base_url=http://critic.example/v1",
    ),
    (
        2,
        f"run {QUICK} critic.use=[llm] critic.llm.backend=server critic.llm.model=m critic.llm.base_url=localhost:8000",
    ),
    (2, f"run {QUICK} critic.use=[llm] critic.llm.backend=server critic.llm.model=m critic.llm.base_url=http://[x/v1"),
    (2, f"run {QUICK} critic.llm.votes=3"),
    (2, f"run {QUICK} inject.formats={{message:hint}}"),
    (2, f"run {QUICK} traces.format=morse"),
    (3, f"run {QUICK} traces.path=MISSING.jsonl run.dir=NEW"),
    (3, f"run {QUICK} traces.tools=EMPTY run.dir=NEW"),
    (3, f"run {QUICK} run.model=FOLDER run.dir=NEW"),
    (3, f"run {QUICK} run.model=EMPTY run.dir=NEW"),
    (2, f"run {QUICK} run.rounds=2 run.dir=NEW"),
    (2, "critique FOLDER"),
    (3, f"critique {QUICK} --labels MISSING.json run.dir=NEW"),
    (2, f"critique {QUICK} --compare a"),
    (3, f"critique {QUICK} --compare nokey other run.dir=NEW"),
    (2, "rescore MISSING.yaml"),
    (2, "train FOLDER"),
    ((2, 3), "report FOLDER"),
    ((2, 3), "report MISSING"),
    ((2, 3), "report EMPTY"),
    ((2, 3), "report RUN"),
    ((2, 3), "report FOLDER --share"),
    ((2, 3), "show FOLDER"),
    ((2, 3), "show MISSING trace:3"),
    ((2, 3), "show RUN"),
    ((2, 3), "controls FOLDER"),
    ((2, 3), "preflight MISSING"),
    ((2, 3), "push MISSING me/student"),
    ((2, 3), "clean FOLDER"),
    (2, "plan MISSING.yaml"),
    (2, "plan FOLDER"),
    ((2, 3), "init EMPTY"),
    ((2, 3), "init QUICKLY"),
    (3, "doctor --model MISSING"),
    (3, "doctor --model EMPTY"),
    ((2, 3), "convert MISSING.jsonl --out NEW.jsonl"),
    ((2, 3), "convert FOLDER --out NEW.jsonl"),
    ((2, 3), "convert BINARY --out NEW.jsonl"),
    ((2, 3), "convert TRACES --out FOLDER"),
    ((2, 3), "traces inspect MISSING.jsonl"),
    ((0, 2, 3), "traces inspect BINARY"),
    ((0, 2, 3), "traces inspect FOLDER"),
    (2, "traces inspect TRACES --format morse"),
    (3, "prompts render MISSING.yaml"),
    (3, "prompts render FOLDER"),
    ((2, 3), "prompts check --prompts MISSING"),
    (2, "recipes show no_such"),
    (2, "config show no_such"),
    (2, "ablate"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    top = tmp_path_factory.mktemp("wrong")
    names = [
        "FOLDER",
        "EMPTY",
        "BINARY",
        "LIST.yaml",
        "BROKEN.yaml",
        "TAGGED.yaml",
        "DEEP.yaml",
        "LOOP",
        "RUN",
        "TRACES",
    ]
    paths = {name: top / name for name in (*names, "MISSING.yaml", "MISSING.jsonl", "MISSING.json", "MISSING")}
    paths["QUICKLY"] = top / "EMPTY" / "x"
    (top / "FOLDER").mkdir()
    (top / "FOLDER" / "notes.txt").write_text("mine")
    (top / "EMPTY").write_text("")
    (top / "BINARY").write_bytes(bytes(range(256)))
    (top / "LIST.yaml").write_text("- 1")
    (top / "BROKEN.yaml").write_text("run: [1")
    (top / "TAGGED.yaml").write_text("run: !!python/object/apply:os.system [echo]")
    (top / "DEEP.yaml").write_text("run: " + "[" * 3000)
    (top / "LOOP").symlink_to(top / "LOOP")
    (top / "RUN").mkdir()
    (top / "RUN" / "manifest.json").write_text(json.dumps({"schema": 99}))
    (top / "TRACES").write_text(
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'
    )
    return paths


def test_there_are_sixty():
    assert len(COMMANDS) >= 60 and len({c for _, c in COMMANDS}) == len(COMMANDS)


@pytest.mark.parametrize(("code", "command"), COMMANDS, ids=[c for _, c in COMMANDS])
def test_a_wrong_command_ends_with_a_message(files, tmp_path, code, command):
    """An undeclared error would leave `main` as it is, and fail the test with its traceback."""
    files = files | {"NEW": tmp_path / "new", "NEW.jsonl": tmp_path / "new.jsonl"}
    arguments = []
    for word in command.split():
        for name in sorted(files, key=len, reverse=True):
            if word == name or word.endswith("=" + name) or name + "/" in word:
                word = word.replace(name, str(files[name]))
                break
        arguments.append(word)
    if command.startswith(f"run {QUICK}"):
        # where a command is not as wrong as it should be, it costs little
        arguments += ["traces.limit=1"] + ["--until", "critique"] * (
            "--until" not in arguments and "run.rounds" not in command
        )
        arguments += [f"run.dir={files['NEW']}"] * ("run.dir=" not in command)
    done = hintdistill(*arguments, expect=None)
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), (
        f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    assert done.returncode == 0 or (done.stderr + done.stdout).strip()
    assert "Traceback" not in done.stderr
