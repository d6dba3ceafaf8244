"""Write the reference pages from the code: commands, Python API, renamed keys, reasons.

python docs/make_reference_pages.py          # or `make docs`
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import hintdistill
from hintdistill.cli.guide import EXAMPLES, ORDER
from hintdistill.cli.main import app
from hintdistill.config.removed import REMOVED
from hintdistill.config.surface import meanings
from hintdistill.recipes.library import REMOVED as REMOVED_OF_RECIPES
from hintdistill.recipes.removed import NOT_BUILT
from hintdistill.reporting.reasons import REASONS
from hintdistill.reporting.ways_out import WAYS_OUT

DOCS = Path(__file__).resolve().parent
GROUPS = {
    "Ask about a conversation": (
        "diagnose",
        "rescore",
        "rank_hints",
        "twin",
        "diagnose_async",
        "rescore_async",
        "rank_hints_async",
    ),
    "Engines and critics": ("load_engine", "connect_engine", "Session", "LoadedModel", "load_critic"),
    "What the calls return": ("Diagnosis", "Diagnosed", "RankedHint", "Target", "Twin"),
    "Record and remember": ("TraceSink", "record_openai", "HintMemory"),
    "Runs": ("run", "open_run", "OpenedRun", "load_config", "RunConfig"),
    "Traces and findings": (
        "read_traces",
        "Trace",
        "Message",
        "ToolCall",
        "Critique",
        "Finding",
        "Injection",
        "TwinEdit",
        "Replacement",
    ),
    "Scores": ("ScoreRequest", "Scores"),
    "Errors": ("HintdistillError",),
}
"""Heading → public names. A test holds it against `hintdistill.__all__`."""
SECTIONS = ("Args", "Returns", "Raises", "Yields")


# -- the command line --------------------------------------------------------------------------------------------------


def commands(group: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every command that the help lists, by its whole name."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield prefix + name, command


def command_text(name: str, command: Any) -> str:
    """Return one command: what it does, its arguments and options, examples."""
    lines = [f"#### `hintdistill {name}`\n", " ".join((command.help or "").partition("\n\nExamples")[0].split()), ""]
    rows = []
    for parameter in command.params:
        if parameter.name == "help" or getattr(parameter, "hidden", False):
            continue
        given = parameter.opts if parameter.param_type_name == "option" else [parameter.metavar or parameter.name]
        written = ", ".join(f"`{o}`" for o in given)
        about = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
        default = parameter.default
        shown = f"`{default}`" if isinstance(default, str | int | float) and not isinstance(default, bool) else ""
        rows.append(f"| {written} | {about} | {shown} |")
    if rows:
        lines += ["| argument or option | meaning | default |", "|---|---|---|", *rows, ""]
    lines += ["```", *(f"hintdistill {example}" for example in EXAMPLES.get(name, ())), "```"]
    return "\n".join(lines)


def command_line() -> str:
    """Return all commands in the order of work, each under its heading."""
    known, parts = dict(commands()), []
    for heading, names in ORDER.items():
        parts.append(f"### {heading}")
        for name in names:
            parts += [command_text(full, c) for full, c in known.items() if full == name or full.startswith(f"{name} ")]
    return "\n\n".join(parts)


# -- the Python API ----------------------------------------------------------------------------------------------------


def prose(doc: str) -> str:
    """Return a docstring as Markdown: sections such as `Args:` become lists."""
    out: list[str] = []
    listing, named = False, False
    for line in doc.splitlines():
        if (found := re.fullmatch(r"(\w+):", line)) and found[1] in SECTIONS:
            out += [f"**{found[1]}**", ""]
            listing, named = True, found[1] in ("Args", "Raises")
        elif listing and named and (entry := re.match(r"    (\w[\w, ]*): (.*)", line)):
            out.append(f"- `{entry[1]}`: {entry[2]}")
        elif listing and line.strip():
            out.append(f"  {line.strip()}" if out[-1].startswith(("-", "  ")) else line.strip())
        else:
            listing = listing and not line.strip()
            out.append(line)
    return "\n".join(out)


def parameter_text(parameter: inspect.Parameter) -> str:
    """Return one parameter as it stands in a call's head."""
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    kind = "" if parameter.annotation is parameter.empty else f": {annotation(parameter.annotation)}"
    if parameter.default is parameter.empty:
        return f"{stars}{parameter.name}{kind}"
    default = repr(parameter.default)
    return f"{stars}{parameter.name}{kind} = {default if len(default) <= 40 and '<' not in default else '…'}"


def annotation(value: Any) -> str:
    """Return a type as it is written in the source."""
    return value if isinstance(value, str) else inspect.formatannotation(value)


def signature(value: Any) -> str:
    """Return the call as one writes it, with a parameter per line if there are many."""
    found = inspect.signature(value)
    rows: list[str] = []
    for parameter in found.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in rows:
            rows.append("*")
        rows.append(parameter_text(parameter))
    returns = "" if found.return_annotation is found.empty else f" -> {annotation(found.return_annotation)}"
    line = f"({', '.join(rows)}){returns}"
    return line if len(line) <= 90 else "\n".join(["(", *(f"    {r}," for r in rows), f"){returns}"])


def fields(value: type) -> list[str]:
    """Return the fields of a data class or a model, with the string under each in its source."""
    if not (dataclasses.is_dataclass(value) or issubclass(value, BaseModel)):
        return []
    texts: dict[str, str] = meanings(value)  # type: ignore[type-var]
    if issubclass(value, BaseModel):
        named = {n: str(f.annotation) for n, f in value.model_fields.items()}
    else:
        named = {f.name: str(f.type) for f in dataclasses.fields(value) if not f.name.startswith("_")}
    rows = [f"| `{name}` | {texts.get(name, '')} |".replace("||", "\\|\\|") for name in named]
    return ["| field | meaning |", "|---|---|", *rows, ""] if rows else []


def public_methods(value: type) -> list[str]:
    """Return the public methods and properties that a class defines itself, with their first paragraphs."""
    out = []
    for name, member in vars(value).items():
        if name.startswith(("_", "model_")):
            continue
        found = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not inspect.isfunction(found) or not found.__doc__:
            continue
        first = " ".join(inspect.cleandoc(found.__doc__).partition("\n\n")[0].split())
        call = name if isinstance(member, property) else f"{name}()"
        out.append(f"- `{call}`: {first}")
    return out


def entry(name: str) -> str:
    """Return one public name: signature, docstring, fields and methods."""
    value = getattr(hintdistill, name)
    doc = prose(inspect.getdoc(value) or "")
    if not inspect.isclass(value):
        return f"### `{name}`\n\n```python\n{name}{signature(value)}\n```\n\n{doc}"
    if name == "RunConfig":
        return f"### `{name}`\n\n{doc}\n\nEvery section and key is in [config.md](config.md)."
    parts = [f"### `{name}`\n", doc, "", *fields(value), *public_methods(value)]
    return "\n".join(parts).rstrip()


def python_api() -> str:
    """Return the page of the public names."""
    head = textwrap.dedent(
        """\
        # Python API

        This page lists the names of `import hintdistill as hd`, from their docstrings. Written by `make docs`; do not edit.
        `import hintdistill` loads neither torch nor transformers; a name is imported when it is first used. [For
        agents](agents.md) has examples of the calls.

        The modules behind these names (`hintdistill.objectives` for losses, `hintdistill.bridges` for other trainers, the
        registries of [extending.md](extending.md)) are documented where they are used."""
    )
    parts = [head]
    for heading, names in GROUPS.items():
        parts += [f"## {heading}", *map(entry, names)]
    return "\n\n".join(parts) + "\n"


# -- tables ------------------------------------------------------------------------------------------------------------


def cell(text: str) -> str:
    """Return a text that may stand in a table."""
    return " ".join(text.split()).replace("|", "\\|")


def renamed() -> str:
    """Return every key that was removed or renamed, with what to write today."""
    rows = [f"| `{key}` | {cell(why)} |" for key, why in REMOVED.items()]
    ofs = [f"| `train.recipe.{key}` | {cell(why)} |" for key, why in REMOVED_OF_RECIPES.items()]
    return "\n".join(["| key until 0.1 | in 0.2 |", "|---|---|", *rows, *ofs])


def recipes_without() -> str:
    """Return the recipes of 0.1 that 0.2 no longer has, with what to use instead."""
    rows = [f"| `{name}` | {cell(found.need)} | {cell(found.instead)} |" for name, found in sorted(NOT_BUILT.items())]
    return "\n".join(["| recipe | needs (no run has this) | use instead |", "|---|---|---|", *rows])


def unscored() -> str:
    """Return the reasons for which a finding was not scored, with what to do."""
    rows = [f"| `{reason}` | {cell(why)} | {cell(out)} |" for reason, (why, out) in WAYS_OUT.items()]
    return "\n".join(["| reason | meaning | what to do |", "|---|---|---|", *rows])


def rejected() -> str:
    """Return the reasons of the gate."""
    rows = [f"| `{reason}` | {cell(why)} |" for reason, why in REASONS.items()]
    return "\n".join(["| reason | meaning |", "|---|---|", *rows])


BLOCKS: dict[str, tuple[tuple[str, Callable[[], str]], ...]] = {
    "cli.md": (("commands", command_line),),
    "upgrading.md": (("renamed", renamed), ("recipes", recipes_without)),
    "troubleshooting.md": (("unscored", unscored), ("rejected", rejected)),
}
"""Page → its generated blocks."""


def with_blocks(name: str, page: str) -> str:
    """Return `page` with its blocks made anew. Raises ValueError where a mark is missing."""
    for block, make in BLOCKS[name]:
        begin, end = f"<!-- {block}: made by docs/make_reference_pages.py -->", f"<!-- end of {block} -->"
        head, found, rest = page.partition(begin)
        _, closed, tail = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"docs/{name} lacks {begin} … {end}")
        page = f"{head}{begin}\n{make()}\n{end}{tail}"
    return page


def main() -> None:
    for name in BLOCKS:
        path = DOCS / name
        path.write_text(with_blocks(name, path.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "python_api.md").write_text(python_api(), encoding="utf-8")


if __name__ == "__main__":
    main()
