"""The frozen surface: every key of the configuration and every command in the help with its options, as lines of text.

`python tests/support/surface.py "why it changes"` writes tests/config/surface.txt again and puts the reason on top.
"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from hintdistill.cli.main import app
from hintdistill.config.surface import leaves

FILE = Path(__file__).parent.parent / "config" / "surface.txt"
HEAD = (
    "# Frozen: keys and commands. Change it with `python tests/support/surface.py REASON`; the reasons, latest first:\n"
)


def lines() -> list[str]:
    """The surface of today."""
    keys = [f"key {leaf.key}: {leaf.type} = {leaf.default!r}" for leaf in leaves()]
    return [*keys, *_commands(typer.main.get_command(app), "hintdistill")]


def _commands(command: Any, name: str) -> Iterator[str]:
    for sub, inner in sorted(getattr(command, "commands", {}).items()):
        if not inner.hidden:
            yield from _commands(inner, f"{name} {sub}")
    if not hasattr(command, "commands"):
        yield f"command {name}"
        for parameter in command.params:
            spelled = ", ".join([*parameter.opts, *parameter.secondary_opts])
            if "--help" not in spelled:
                what = "argument" if parameter.param_type_name == "argument" else "option"
                what = "flag" if getattr(parameter, "is_flag", False) else what
                count = "" if parameter.nargs == 1 else ", several values"
                default = "required" if parameter.required else repr(parameter.default)
                yield f"command {name}: {what} {spelled}{count} = {default}"


def frozen() -> list[str]:
    """The lines that are checked in, without the reasons."""
    return [line for line in FILE.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]


def main(reason: str) -> None:
    """Freeze today's surface, for a reason."""
    before = FILE.read_text(encoding="utf-8").splitlines() if FILE.is_file() else []
    reasons = [line for line in before[1:] if line.startswith("#")]
    today = f"# {datetime.date.today().isoformat()}: {reason}"
    FILE.write_text(HEAD + "\n".join([today, *reasons, *lines()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2 or not sys.argv[1].strip():
        sys.exit("say in one argument why the surface changes")
    main(sys.argv[1])
