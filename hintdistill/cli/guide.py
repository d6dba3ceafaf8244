"""The help as a guide: commands in the order in which they are used, under headings, each with examples."""

from __future__ import annotations

from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperGroup
from typer.main import get_command_name

ORDER: dict[str, tuple[str, ...]] = {
    "Begin": ("demo", "init", "doctor", "configs"),
    "Look before a run": ("traces", "convert", "prompts", "recipes", "contexts", "config", "plan"),
    "Run: read → critique → inject → rescore → train → report": ("run", "critique", "rescore", "train", "report"),
    "On many machines": ("merge", "ray"),
    "After a run": ("show", "preflight", "controls", "compare-recipes", "verify", "clean"),
    "For other programs": ("export", "push", "serve", "mcp"),
}
"""Heading → its commands; both are in the order of use."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("demo", "demo --dry-run", "demo traces.limit=100 run.dir=runs/first"),
    "init": (
        "init --model ./student --traces ./traces.jsonl",
        "init mine --model ./student --traces ./traces.jsonl --tools tools.json",
        "init mine --model Qwen/Qwen3-4B --traces 'logs/*.jsonl' --critic http://localhost:8000/v1 --critic-model qwen",
    ),
    "doctor": ("doctor", "doctor mine/hintdistill.yaml", "doctor --model ./student --json"),
    "configs list": ("configs list", "configs list --json"),
    "configs show": ("configs show quickstart",),
    "configs copy": ("configs copy llm-critic mine.yaml",),
    "traces inspect": ("traces inspect logs/", "traces inspect traces.jsonl --lost --json"),
    "convert": ("convert logs/ --out native.jsonl", "convert export.json --out native.jsonl --tools tools.json"),
    "prompts list": ("prompts list", "prompts list --prompts mine/prompts --json"),
    "prompts check": ("prompts check --prompts mine/prompts",),
    "prompts eject": ("prompts eject mine/prompts", "prompts eject mine/prompts hints/unknown_tool.jinja"),
    "prompts render": ("prompts render critic/all_at_once.jinja --traces traces.jsonl --trace task-0017",),
    "recipes list": ("recipes list", "recipes list --json"),
    "recipes show": ("recipes show hint_sd",),
    "contexts list": ("contexts list", "contexts list --json"),
    "contexts render": (
        "contexts render mine/hintdistill.yaml train.recipe=sdpo",
        "contexts render mine/hintdistill.yaml inject.hint=observation --trace task-0017 --step 2",
    ),
    "config schema": ("config schema", "config schema --recipe"),
    "plan": ("plan mine/hintdistill.yaml", "plan mine/hintdistill.yaml --no-measure --memory 80 --json"),
    "run": (
        "run mine/hintdistill.yaml --dry-run",
        "run mine/hintdistill.yaml --until rescore --limit 50",
        "run mine/hintdistill.yaml train.learning_rate=1e-5 run.dir=runs/slow",
        "run mine/hintdistill.yaml --resume",
        "run runs/slow --resume",
        "run mine/hintdistill.yaml --until rescore --shard 0/8 run.dir=runs/shared",
    ),
    "critique": (
        "critique mine/hintdistill.yaml --dry-run",
        "critique mine/hintdistill.yaml run.dir=runs/mine --limit 20",
        "critique mine/hintdistill.yaml --labels labelled.json --hints",
        "critique mine/hintdistill.yaml --compare critic.llm.votes=1 critic.llm.votes=5",
    ),
    "merge": ("merge runs/shared",),
    "ray": ("ray mine/hintdistill.yaml --shards 32 --actors 8 --gpus 1 run.dir=/shared/run",),
    "rescore": ("rescore mine/hintdistill.yaml run.dir=runs/mine", "rescore mine/hintdistill.yaml --dry-run"),
    "train": (
        "train mine/hintdistill.yaml run.dir=runs/mine",
        "train mine/hintdistill.yaml run.dir=runs/mine train.epochs=1",
    ),
    "report": (
        "report runs/mine",
        "report runs/mine runs/slow",
        "report runs/mine --share",
        "report runs/mine --student ./trained-elsewhere",
    ),
    "show": (
        "show runs/mine --trained --worst 20",
        "show runs/mine --class unknown_tool --search get_weather",
        "show runs/mine task-0017:2",
    ),
    "preflight": ("preflight runs/mine", "preflight runs/mine --json"),
    "controls": (
        "controls runs/mine --dry-run",
        "controls runs/mine --arms placebo,wrong_hint steps=40",
        "controls runs/mine --resume",
    ),
    "compare-recipes": (
        "compare-recipes mine/hintdistill.yaml targeted hint_sd sdpo_feedback --dry-run",
        "compare-recipes mine/hintdistill.yaml targeted hint_sd@1e-5 hint_sd@5e-5 steps=40 run.dir=runs/methods",
        "compare-recipes mine/hintdistill.yaml targeted hint_sd@1e-5 hint_sd@5e-5 steps=40 run.dir=runs/methods --resume",
    ),
    "verify": ("verify runs/mine",),
    "clean": ("clean runs/mine --dry-run", "clean runs/mine --targets"),
    "export": ("export runs/mine --to trl", "export runs/mine --to axolotl --out rows k=20 --check"),
    "push": ("push runs/mine me/my-student", "push runs/mine me/my-targets --targets --text-free"),
    "serve": ("serve ./student", "serve ./student --config mine/hintdistill.yaml --port 9000"),
    "mcp": ("mcp ./student",),
}
"""Command (without `hintdistill`) → its examples. A test parses each example."""


class InOrder(TyperGroup):
    """List the commands of a group in the order of use in its help."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands of `ORDER`, then all others."""
        known = [name for names in ORDER.values() for name in names]
        return sorted(super().list_commands(ctx), key=lambda n: known.index(n) if n in known else len(known))


def arrange(app: typer.Typer) -> None:
    """Put each command under its heading, and its examples below its help text."""
    headings = {name: heading for heading, names in ORDER.items() for name in names}
    for group in app.registered_groups:
        group.rich_help_panel = headings.get(str(group.name))
        assert group.typer_instance is not None
        for info in group.typer_instance.registered_commands:
            _exemplify(info, f"{group.name} ")
    for info in app.registered_commands:
        info.rich_help_panel = headings.get(_exemplify(info, ""))


def _exemplify(info: Any, prefix: str) -> str:
    """Add the examples to a command's help and return its name."""
    name = info.name or get_command_name(info.callback.__name__)
    lines = [f"hintdistill {example}" for example in EXAMPLES.get(prefix + name, ())]
    if lines:
        # a blank line between any two: typer makes one paragraph of lines that follow one another
        info.epilog = "\n\n".join(["Examples:", *map(escape, lines)])
    return str(name)
