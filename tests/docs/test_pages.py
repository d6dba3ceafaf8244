"""The pages: links lead somewhere, commands parse, messages and numbers are real, generated parts are what the code says."""

from __future__ import annotations

import re
import shlex
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from conftest import ROOT

import hintdistill as hd
from hintdistill.cli.main import app

sys.path.insert(0, str(ROOT / "docs"))
import make_reference_pages as reference

DOCS = ROOT / "docs"
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *DOCS.glob("*.md"),
        ROOT / "benchmarks" / "RESULTS.md",
        *(ROOT / "examples").rglob("README.md"),
    ]
)
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
OWN = [p for p in PAGES if p.name != "CHANGELOG.md"]
"""The pages whose commands are of today; the list of changes names commands of before."""


@cache
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def outside_code(page: Path) -> str:
    return FENCE.sub("", text(page))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges and the site make them."""
    found: dict[str, int] = {}
    out = set()
    for title in re.findall(r"^#+ +(.*?) *$", outside_code(page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").replace("*", "")
        slug = re.sub(r"[^\w\- ]", "", words.lower()).strip().replace(" ", "-")
        n = found.get(slug, 0)
        found[slug] = n + 1
        out.add(f"{slug}-{n}" if n else slug)
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_anchors_lead_somewhere(page):
    bad = []
    for target in re.findall(r"\]\(([^()\s]+)\)", outside_code(page)):
        path, _, anchor = target.partition("#")
        if re.match(r"\w+:", path):
            continue
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in anchors(there)):
            bad.append(target)
    assert not bad, f"{page.name} links to {bad}"


def parse(words: list[str]) -> None:
    """Parse a command line as the program would. Raises click's usage errors, and ValueError for an unknown command."""
    group: Any = typer.main.get_command(app)
    while hasattr(group, "commands"):
        if not words or words[0] not in group.commands:
            raise ValueError(f"no command {words[:1]}")
        name, words = words[0], words[1:]
        group = group.commands[name]
    group.make_context(name, list(words))


def command_lines(page: Path) -> list[str]:
    """The lines of a page's code blocks that call the program, with what is set before it taken away."""
    lines = []
    for _, language, body in FENCE.findall(text(page)):
        if language in ("python", "yaml", "text", "json"):
            continue
        joined = re.sub(r"\\\n\s*", "", body)
        for line in joined.splitlines():
            if found := re.match(r"\s*(?:\$ )?(?:[A-Z_]+=\S+ )*hintdistill (.*)", line):
                lines.append(re.split(r"\s{3,}", found[1])[0])
    return lines


@pytest.mark.parametrize("page", OWN, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_code_blocks_parse(page):
    for line in command_lines(page):
        if line.startswith(("configs list |", "--")):
            continue
        words = ["x" if word == "…" else word.replace("…", "x") for word in shlex.split(line, comments=True)]
        words = [word for word in words if word not in ("[NAME", "x]")]
        if "|" in words or "&&" in words:
            words = words[: min(words.index(w) for w in ("|", "&&") if w in words)]
        parse(words)


@pytest.mark.parametrize("page", OWN, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_text_exist_with_their_options(page):
    known = dict(reference.commands())
    options = {name: {o for p in c.params for o in (*p.opts, *p.secondary_opts)} for name, c in known.items()}
    every = {"--help", "--version", "--install-completion", "--show-completion"}
    for said in re.findall(r"`hintdistill ([^`]+)`", outside_code(page)):
        words = said.split()
        name = next((n for n in (" ".join(words[:2]), words[0]) if n in known), None)
        groups = {n.partition(" ")[0] for n in known if " " in n}
        assert name or words[0] in groups | {"COMMAND", "…", "ablate"} or words[0].startswith("--"), (
            f"{page.name}: {said}"
        )
        flags = {w.partition("=")[0].rstrip(",.") for w in words if w.startswith("--")}
        assert not name or flags <= options[name] | every, f"{page.name}: {said}"


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 9_000


def test_the_readmes_call_runs_and_its_hint_is_accepted(monkeypatch, capsys):
    (block,) = [body for _, language, body in FENCE.findall(text(ROOT / "README.md")) if language == "python"]
    assert len([line for line in block.splitlines() if line.strip()]) <= 12
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "The right tool here is find_account. True ()" and second.startswith("Be careful. False (")


def block_of(page: Path, begin: str) -> str:
    return text(page).partition(f"<!-- {begin}: made by ")[2].partition(" -->\n")[2].partition("\n<!-- end of ")[0]


def figures(line: str) -> list[str]:
    return re.findall(r"\d*\.\d+", line.replace("`", ""))


@pytest.mark.parametrize(
    ("name", "page"), [("numbers", "quickstart.md"), ("ablation", "evidence.md")], ids=["quickstart", "ablation"]
)
def test_the_readmes_figures_are_those_of_the_pages(name, page):
    short = block_of(ROOT / "README.md", name)
    assert len(figures(short)) >= 8 and set(figures(short)) <= set(figures(text(DOCS / page)))


@pytest.mark.parametrize("name", reference.BLOCKS)
def test_generated_blocks_are_what_the_code_says(name):
    assert text(DOCS / name) == reference.with_blocks(name, text(DOCS / name)), "run `make docs`"


def test_the_api_page_is_what_the_code_says():
    listed = [name for names in reference.GROUPS.values() for name in names]
    assert sorted(listed) == sorted(n for n in hd.__all__ if n != "__version__")
    assert text(DOCS / "python_api.md") == reference.python_api(), "run `make docs`"


def test_the_messages_of_the_troubleshooting_page_are_the_programs():
    head = text(DOCS / "troubleshooting.md").partition("## Why a finding was not scored")[0]
    messages = re.findall(r"^\| `([^`]+)` \|", head, re.MULTILINE)
    assert len(messages) > 40
    program = re.sub(
        r'"\s*\n\s*f?"', "", "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "hintdistill").rglob("*.py"))
    )
    program = re.sub(r"\{[^{}]*\}", "…", program.replace('\\"', '"'))
    for message in messages:
        for part in re.split("…", message):
            assert len(part.strip()) < 3 or part.strip(" :") in program, f"{message}: nowhere in the program: {part!r}"


def test_the_numbers_of_negative_results_stand_on_their_sources():
    rows = re.findall(r"^\| (.*) \| (.*) \| (\[.*\].*) \|$", text(DOCS / "negative-results.md"), re.MULTILINE)
    assert len(rows) > 25
    for tried, found, source in rows:
        pages = "".join(text((DOCS / p).resolve()) for p in re.findall(r"\]\(([^)#]+)", source))
        missing = [n for n in figures(found) if n not in pages]
        assert not missing, f"{tried}: {missing} stand nowhere on {source}"


def test_the_environment_of_the_how_to_plays(monkeypatch):
    from hintdistill.core.types import Message, ToolCall
    from hintdistill.rollouts.environment import TaskSuite

    (block,) = [b for _, language, b in FENCE.findall(text(DOCS / "howto_environment.md")) if language == "python"]
    names: dict[str, Any] = {}
    exec(compile(block, "shop.py", "exec"), names)
    tasks = names["Tasks"]()
    assert isinstance(tasks, TaskSuite) and set(tasks.splits()) == {"train", "test"}
    shop = tasks.make()
    start = shop.reset("table")
    assert start.tools[0]["function"]["name"] == "get_price"
    call = ToolCall(name="get_price", arguments_raw='{"thing": "table"}', id="1")
    (answer,) = shop.step(Message(role="assistant", tool_calls=(call,))).messages
    assert answer.content == '{"price": "80"}' and answer.tool_call_id == "1"
    (refused,) = shop.step(
        Message(role="assistant", tool_calls=(ToolCall(name="buy", arguments_raw="{}", id="2"),))
    ).messages
    assert "unknown call buy" in refused.content
    done = shop.step(Message(role="assistant", content="It costs 80."))
    assert done.done and done.reward == 1.0
    assert shop.step(Message(role="assistant", content="It costs 12.")).reward == 0.0


class Tolerant(yaml.SafeLoader):
    """Reads mkdocs.yml, whose slugs are a Python object."""


Tolerant.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def test_the_site_lists_every_page():
    def listed(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        return [page for part in (entry.values() if isinstance(entry, dict) else entry) for page in listed(part)]

    hooks = (DOCS / "site_hooks.py").read_text(encoding="utf-8")
    outside = dict(re.findall(r'^    "(\S+\.md)": "(\S+\.md)",', hooks, re.MULTILINE))
    assert outside and all((ROOT / page).is_file() for page in outside)
    nav = listed(yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Tolerant)["nav"])
    assert sorted(nav) == sorted([*outside.values(), *(p.name for p in DOCS.glob("*.md"))])


def test_the_index_names_every_page():
    named = set(re.findall(r"\]\((\w[\w-]*\.md)", text(DOCS / "index.md")))
    assert {p.name for p in DOCS.glob("*.md")} - named == {"index.md"}


def test_templates_of_issues_and_the_citation_are_read():
    for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert path.name == "config.yml" or (form["name"] and form["description"] and form["body"])
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == hd.__version__ and cited["license"] == "Apache-2.0"
