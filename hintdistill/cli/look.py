"""The command groups that inspect files and run nothing: prompts, traces, recipes. They parse, call and print; they
contain no logic.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from hintdistill.cli.options import Json
from hintdistill.reporting import printable

prompts_app = typer.Typer(help="List, check and render the Jinja prompts.", no_args_is_help=True)
traces_app = typer.Typer(help="Inspect trace files.", no_args_is_help=True)
recipes_app = typer.Typer(help="List the published objectives, or show one of them.", no_args_is_help=True)


def print_json(value: Any) -> None:
    """Print one JSON document to standard output."""
    say(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False))


def say(text: str, *, error: bool = False) -> None:
    """Print a text that may contain words of a trace; control characters are shown, not executed."""
    print(printable(text), file=sys.stderr if error else sys.stdout)


PromptFolder = Annotated[str | None, typer.Option("--prompts", help="Folder of your prompts (critic.prompts).")]


@prompts_app.command("list")
def prompts_list(prompts: PromptFolder = None, as_json: Json = False) -> None:
    """List every prompt with its hash and file."""
    from hintdistill.prompts import PromptLibrary

    library = PromptLibrary(prompts)
    rows = [{"name": n, "hash": library.hash(n), "file": str(library.path(n))} for n in library.names()]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['hash']}  {row['name']}  {row['file']}")


@prompts_app.command("check")
def prompts_check(prompts: PromptFolder = None, as_json: Json = False) -> None:
    """Lint every prompt: report syntax errors and unknown variables, with file and line."""
    from hintdistill.prompts import PromptLibrary

    library = PromptLibrary(prompts)
    problems = [p for name in library.names() for p in library.lint(name)]
    # a prompt that does not lint renders nothing, so nothing can be said of what it primes
    advice = [a for name in library.names() if not library.lint(name) for a in library.advice(name)]
    if as_json:
        print_json({"prompts": len(library.names()), "problems": problems, "advice": advice})
    else:
        print("\n".join(problems) if problems else f"{len(library.names())} prompts, no problems")
        for line in advice:
            print(f"advice: {line}")
    if problems:
        raise typer.Exit(2)


@prompts_app.command("eject")
def prompts_eject(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write into.", show_default=False)],
    names: Annotated[list[str] | None, typer.Argument(help="Copy only these prompts.", show_default=False)] = None,
) -> None:
    """Copy the shipped prompts for editing; set critic.prompts to the new folder."""
    from hintdistill.prompts import eject

    for path in eject(folder, names or []):
        print(path)


@prompts_app.command("render")
def prompts_render(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A prompt file, or its name: critic/all_at_once.jinja.", show_default=False
        ),
    ],
    traces: Annotated[Path | None, typer.Option(help="A file with traces.")] = None,
    trace: Annotated[
        str | None, typer.Option(help="Trace id, by default the first trace; without --traces, a trace file.")
    ] = None,
    tools: Annotated[Path | None, typer.Option(help="Tool schemas for traces that contain none.")] = None,
    prompts: PromptFolder = None,
    as_json: Json = False,
) -> None:
    """Render a prompt for one trace; a hint is rendered for each finding of the deterministic checks."""
    from hintdistill.cli.preview import preview

    texts = preview(name, traces, trace, tools, prompts)
    if as_json:
        print_json({"name": name, "texts": texts})
    else:
        say("\n\n".join(texts))


TracePaths = Annotated[
    list[str],
    typer.Argument(metavar="PATH...", help="Files, folders, globs, zips, or hf://owner/name.", show_default=False),
]
FormatOption = Annotated[
    str, typer.Option("--format", help="Name of the format (docs/traces.md); detected by default.")
]
StudentRole = Annotated[str, typer.Option("--student-role", help="Role or speaker name of the student.")]
TokenIds = Annotated[bool, typer.Option(help="Keep recorded token ids.")]
ToolsFile = Annotated[Path | None, typer.Option("--tools", help="Tool schemas for traces that contain none.")]


def _read_options(name: str, role: str, tools: Path | None, token_ids: bool = True) -> Any:
    from hintdistill.traces.options import ReadOptions
    from hintdistill.traces.reading import load_tools

    ids = "use" if token_ids else "ignore"
    return ReadOptions(format=name, student_role=role, token_ids=ids, tools=load_tools(tools) if tools else ())


@traces_app.command("inspect")
def traces_inspect(
    paths: TracePaths,
    format: FormatOption = "auto",
    student_role: StudentRole = "assistant",
    tools: ToolsFile = None,
    lost: Annotated[
        bool, typer.Option("--lost", help="List content of the files that is missing from the traces, by key path.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Count the contents of each file: traces, steps, tool calls, schemas, token ids, rewards, findings of the checks,
    failures."""
    from hintdistill.reporting import inspection

    found = inspection.inspect_files(paths, _read_options(format, student_role, tools), lost=lost)
    if as_json:
        reports = list(found)
        print_json(inspection.as_json(reports))
    else:
        from rich.console import Console

        from hintdistill.reporting.terminal import show_files

        reports = list(found)
        show_files(reports, Console())
    if not any(r.traces for r in reports):
        raise typer.Exit(3)


def convert(
    paths: TracePaths,
    out: Annotated[Path, typer.Option("--out", "-o", help="File to write (JSON lines).")],
    format: FormatOption = "auto",
    student_role: StudentRole = "assistant",
    tools: ToolsFile = None,
    token_ids: TokenIds = True,
    allow_empty_files: Annotated[
        bool, typer.Option("--allow-empty-files", help="Continue if a file yields no step.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Convert traces of any format to the native format, and list the records that could not be read."""
    from hintdistill.reporting import inspection
    from hintdistill.traces.files import not_read

    options = _read_options(format, student_role, tools, token_ids)
    done = inspection.convert(paths, out, options, allow_empty_files=allow_empty_files)
    failures = [{"source": str(f.source), "reason": f.reason, "message": f.message} for f in done.failures]
    if as_json:
        foreign = [f.name for f in done.foreign]
        print_json({"path": done.path, "traces": done.traces, "failures": failures, "not_read": foreign})
        return
    if (line := not_read(done.foreign)) is not None:
        say(line, error=True)
    for failure in failures:
        say(f"{failure['source']}: {failure['reason']}: {failure['message']}", error=True)
    print(f"{done.traces} traces, {len(failures)} failed records → {done.path}")


@recipes_app.command("list")
def recipes_list(as_json: Json = False) -> None:
    """List every recipe: its name, verdict, class of its source, title, and needs beyond a hint and a student."""
    from hintdistill.recipes import load_recipe, recipe_names
    from hintdistill.recipes.describe import summary

    rows = [summary(load_recipe(name)) for name in recipe_names()]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        wanted = f"  [{', '.join(row['needs'])}]" if row["needs"] else ""
        print(f"{row['name']:<20} {row['verdict']:<9} {row['confidence']:<4} {row['title']}{wanted}")


@recipes_app.command("show")
def recipes_show(
    name: Annotated[str, typer.Argument(help="Recipe name or YAML file.", show_default=False)], as_json: Json = False
) -> None:
    """Show one recipe: its formula, source and class of source, published and own parts, needs, and every key."""
    from hintdistill.recipes import describe, load_recipe

    recipe = load_recipe(name)
    if as_json:
        print_json(describe.document(recipe))
    else:
        print(describe.text(recipe))
