"""The help: commands in the order of work, examples that can be typed, options that mean the same everywhere."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import chdir

import pytest
import typer
from conftest import ROOT
from support.command import hintdistill

from hintdistill.cli.guide import EXAMPLES, ORDER
from hintdistill.cli.main import app
from hintdistill.pipeline.stages import STAGES

sys.path.insert(0, str(ROOT / "docs"))
from make_reference_pages import commands

SHARED = ("--limit", "--resume", "--json", "--dry-run", "--quiet", "--trust")
RUNS = ("run", "demo", "critique", "rescore", "train")
"""Commands that run stages over traces."""


ALL = dict(commands())


def test_commands_stand_in_the_order_of_work():
    group = typer.main.get_command(app)
    listed = [name for name in group.list_commands(None) if not group.commands[name].hidden]
    assert listed == [name for names in ORDER.values() for name in names], "each command has a heading"
    stages = [name for name in listed if name in STAGES]
    assert stages == [name for name in STAGES if name in listed]
    text = hintdistill("--help").stdout
    places = [text.index(heading[:20]) for heading in ORDER]
    assert places == sorted(places)


@pytest.mark.parametrize("name", sorted(ALL))
def test_every_command_has_examples_that_parse(name):
    assert EXAMPLES[name], f"no example of {name}"
    for example in EXAMPLES[name]:
        words = shlex.split(example)
        assert words[: len(name.split())] == name.split()
        context = ALL[name].make_context(name, words[len(name.split()) :])
        assert context.params is not None
    shown = f"hintdistill {EXAMPLES[name][0]}"
    assert ALL[name].epilog.replace("\\[", "[").startswith(f"Examples:\n\n{shown}")


def test_the_help_of_a_command_ends_with_its_examples():
    text = hintdistill("configs", "copy", "--help").stdout
    assert text.split("Examples:")[1].strip() == "hintdistill configs copy llm-critic mine.yaml"


def test_no_example_is_of_a_command_that_is_gone():
    assert set(EXAMPLES) == set(ALL)


@pytest.mark.parametrize("option", SHARED)
def test_an_option_means_the_same_in_every_command(option):
    found = {
        name: (p.help, p.is_flag, repr(p.default), tuple(p.opts))
        for name, command in ALL.items()
        for p in command.params
        if option in p.opts
    }
    assert len(found) > 1 and len(set(found.values())) == 1, found


def test_commands_that_run_stages_have_all_of_them():
    for name in RUNS:
        options = {o for p in ALL[name].params for o in p.opts}
        assert {"--limit", "--resume", "--json", "--dry-run", "--quiet"} <= options, name
    dry = {name for name, command in ALL.items() if any("--dry-run" in p.opts for p in command.params)}
    assert dry == {*RUNS, "controls", "compare-recipes", "clean"}


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("hintdistill re", "recipes report rescore"), ("hintdistill run x --until re", "read report rescore")],
)
def test_completion_offers_commands_and_stages(typed, offered, monkeypatch):
    words = typed.split()
    monkeypatch.setenv("_HINTDISTILL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    assert sorted(hintdistill().stdout.split()) == offered.split()


def test_the_demo_says_what_it_would_do_from_any_folder(tmp_path):
    with chdir(tmp_path):
        ahead = json.loads(hintdistill("demo", "--dry-run", "--json", "--limit", "5").stdout)
    assert ahead["traces"] == 5 and ahead["stages"] == list(STAGES)
    asked = ahead["critics"]["llm"]
    assert asked["requests"] == 5 and asked["answer_tokens"] == 5 * 320 and ahead["money"] == asked["money"] == 0.0
    text = hintdistill("run", "configs/quickstart.yaml", "--dry-run", "--limit", "5").stdout
    for part in (
        "stages: read, critique, inject, rescore, train, report\n",
        "\nmoney: at most 0",
        "\nbytes: ",
        "\ntokens: ",
    ):
        assert part in text
    assert list(tmp_path.iterdir()) == []


def test_money_is_said_where_a_server_has_a_price_and_owned_where_it_has_none():
    server = ("critic.llm.backend=server", "critic.llm.base_url=http://127.0.0.1:9", "critic.llm.model=m")
    dry = ("critique", "configs/quickstart.yaml", "--dry-run", "--json", "--limit", "3", *server)
    unknown = json.loads(hintdistill(*dry, "critic.llm.context_tokens=16000").stdout)
    assert unknown["money"] is None and unknown["critics"]["llm"]["money"] is None
    priced = json.loads(hintdistill(*dry, "critic.llm.context_tokens=16000", "critic.llm.price=[2,10]").stdout)
    asked = priced["critics"]["llm"]
    assert priced["money"] == asked["money"] == (asked["prompt_tokens"] * 2 + asked["answer_tokens"] * 10) / 1e6 > 0
    assert priced["stages"] == ["read", "critique"] and priced["student_bytes"] is None


def test_a_dry_run_of_a_run_that_is_continued_asks_only_what_is_owed(tmp_path):
    folder = tmp_path / "run"
    run = ("configs/quickstart.yaml", f"run.dir={folder}", "critic.use=[rules]")
    hintdistill("critique", *run, "--limit", "3", "-q")
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    use = "critic.use=[rules,llm]"
    again = json.loads(hintdistill("run", *run, use, "--limit", "3", "--resume", "--dry-run", "--json").stdout)
    assert again["finished"][:2] == ["read", "critique"] and again["critics"]["llm"]["requests"] == 3
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before
    with (folder / "critiques.jsonl").open() as rows:
        assert len(rows.readlines()) == 3
