"""`hintdistill configs`: the shipped configurations."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated

import typer

from hintdistill.cli.look import print_json, say
from hintdistill.cli.options import Json
from hintdistill.core.errors import ConfigError
from hintdistill.core.package_data import data_root

configs_app = typer.Typer(help="List, show and copy the shipped configurations.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(metavar="NAME", help="Name as printed by `configs list`.", show_default=False)]
_RELATIVE = re.compile(r"\.\./[^\s,\]:#]+")


def shipped() -> dict[str, Path]:
    """Return the shipped configurations by name."""
    return {p.stem: p for p in sorted((data_root() / "configs").glob("*.yaml"))}


def _file(name: str) -> Path:
    found = shipped()
    if name.removesuffix(".yaml") not in found:
        raise ConfigError(f"no shipped config {name!r}", hint=f"available: {', '.join(found)}")
    return found[name.removesuffix(".yaml")]


def about(path: Path) -> str:
    """Return the first sentence of the comment at the top of a configuration."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# ").strip())
    return re.split(r"(?<=[.:])\s", " ".join(lines), maxsplit=1)[0]


@configs_app.command("list")
def configs_list(as_json: Json = False) -> None:
    """List the shipped configurations with their purposes."""
    rows = [{"name": n, "about": about(p), "file": str(p)} for n, p in shipped().items()]
    if as_json:
        print_json(rows)
        return
    for row in rows:
        print(f"{row['name']:<14} {row['about']}")


@configs_app.command("show")
def configs_show(name: Name) -> None:
    """Print a shipped configuration."""
    say(_file(name).read_text(encoding="utf-8").rstrip("\n"))


@configs_app.command("copy")
def configs_copy(
    name: Name,
    to: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.", show_default=False)],
) -> None:
    """Copy a shipped configuration to edit. Paths that are relative to the original become absolute."""
    source = _file(name)
    if to.exists():
        raise ConfigError(f"{to} already exists", hint="choose another name; nothing was written")
    missing: list[str] = []

    def absolute(found: re.Match[str]) -> str:
        path = (source.parent / found.group()).resolve()
        if not path.exists():
            missing.append(found.group())
            return found.group()
        return str(path)

    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(x if x.lstrip().startswith("#") else _RELATIVE.sub(absolute, x) for x in lines)
    to.parent.mkdir(parents=True, exist_ok=True)
    to.write_text(text, encoding="utf-8")
    print(to)
    if missing:
        say(
            "set these paths in the copy, because this installation lacks their files: "
            f"{', '.join(dict.fromkeys(missing))}",
            error=True,
        )
    print(f"next: hintdistill run {shlex.quote(str(to))} --dry-run")
