"""Make a run's contexts: the configuration and the recipe decide which texts each step's teacher views read.

The sources are the trace itself, the critics' findings, files of texts by task, and other rollouts of the same task in
the run's traces.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.core.extensions import HINT_SOURCES
from hintdistill.core.types import Finding, Trace
from hintdistill.injection.contexts import ContextCase, MadeContexts, attempt, contexts_of
from hintdistill.pipeline import read
from hintdistill.pipeline.context import RunContext
from hintdistill.recipes import Recipe, parts
from hintdistill.traces.options import ReadOptions
from hintdistill.traces.reading import read_traces

TEXTS = {"solutions": "solution", "demonstrations": "demonstration", "file": "file"}
"""Key in `inject.contexts` → the kind of text that the makers ask for."""
Views = dict[str, tuple[str, int, float]]
"""The name of a further context → its maker, its index among the contexts of that maker, and ρ."""


class Contexts:
    """Make the texts that the views of a run's teacher read, step by step."""

    def __init__(self, ctx: RunContext) -> None:
        """Read the files of texts. Raises InputError, naming the file and line, if one cannot be read."""
        self.ctx, self.section = ctx, ctx.config.injecting
        self.name = str(self.section.hint)
        self.views = further_views(ctx.config.train.effective_recipe)
        makers = [HINT_SOURCES.get(n) for n in (self.name, *(maker for maker, _, _ in self.views.values()))]
        self.needed = bool(self.views) or makers[0].context is not None
        """Whether a step's contexts are made here; otherwise the hint source alone writes the teacher's context."""
        given = self.section.contexts
        self.texts = {kind: texts_by_task(Path(p)) for key, kind in TEXTS.items() if (p := getattr(given, key))}
        self._by_task: dict[str, list[str]] = {}
        if any(m.rollouts for m in makers):
            for key, trace, _ in read.each(ctx):
                if trace.task_id is not None:
                    self._by_task.setdefault(trace.task_id, []).append(key)
        self._opened = read.open_traces(ctx)
        self._peers: tuple[str | None, list[Trace]] = (None, [])

    def of(self, trace: Trace, finding: Finding, findings: Sequence[Finding]) -> MadeContexts:
        """Return the contexts of a step. Raises whatever `injection.contexts.contexts_of` raises."""
        case = ContextCase(
            trace,
            finding,
            self.ctx.library,
            self._rollouts(trace.task_id),
            self.texts,
            self.section.contexts.shown,
            findings=findings,
        )
        return contexts_of(self.name, self.views, case)

    def _rollouts(self, task: str | None) -> list[Trace]:
        """Return the rollouts of a task; those of the latest task are cached."""
        if self._peers[0] != task:
            self._peers = task, [self._opened(key) for key in self._by_task.get(task or "", ())]
        return self._peers[1]


def further_views(recipe: Recipe) -> Views:
    """Return the contexts that a recipe's views read in addition to the student's and the teacher's own."""
    out: Views = {}
    for name in recipe.used_names("hint"):
        view = recipe.all_views()[name]
        if view.context not in parts.OWN_CONTEXTS:
            out |= {label: (view.context, i, view.rho) for i, label in enumerate(view.labels)}
    return out


def require_whole(config: RunConfig) -> None:
    """Raise ConfigError if contexts are made of rollouts, because a shard does not have all of them."""
    recipe, own = config.train.effective_recipe, str(config.injecting.hint)
    names = [own, *(maker for maker, _, _ in further_views(recipe).values())]
    if found := [n for n in names if HINT_SOURCES.get(n).rollouts]:
        raise ConfigError(
            f"the context {found[0]} is made of other rollouts of the same task, but a shard does not have all of them",
            hint="run without shards, or choose a context that needs only the trace itself",
        )


def texts_by_task(path: Path) -> Mapping[str, str]:
    """Return texts by task, from JSON lines `{"task": …, "text": …}`, or from traces in any format that name their
    task.

    The text of a trace begins with its first step. If a task has several texts, the first is used.

    Raises:
        InputError: the file cannot be read, or a record has neither form; the error names it.
    """
    out: dict[str, str] = {}
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        first = json.loads(lines[0]) if lines else {}
    except (OSError, ValueError):
        lines, first = [], {}
    if not (isinstance(first, dict) and "task" in first):
        for found in read_traces([path], ReadOptions()):
            if not isinstance(found, Trace):
                raise InputError(
                    f"{found.source}: {found.message}", hint="docs/contexts.md describes the forms of such a file"
                )
            if found.task_id is None:
                raise InputError(f"{path}: the trace {found.id} does not name its task", hint="set its `task_id`")
            out.setdefault(found.task_id, attempt(found))
        return out
    for n, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            out.setdefault(_word(record["task"]), _word(record["text"]))
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f'{path}, record {n} does not have the form {{"task": …, "text": …}}: {error}') from None
    return out


def _word(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{value!r} is not text")
    return value
