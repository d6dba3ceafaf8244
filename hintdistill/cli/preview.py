"""`hintdistill prompts render`: show a prompt as rendered for one trace."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from hintdistill.config import CHECKS, LLMSection
from hintdistill.core.errors import HintdistillError, InputError, PromptError
from hintdistill.core.types import Finding, Trace
from hintdistill.critics.backends import Reply, Request, by_bytes
from hintdistill.critics.llm import LLMCritic
from hintdistill.critics.rules import RulesCritic
from hintdistill.injection.hints import hint_facts, seed_of
from hintdistill.prompts import TWIN, PromptLibrary
from hintdistill.traces.options import ReadOptions
from hintdistill.traces.reading import load_tools, read_traces

_NOT_ASKED = ("record.jinja", "repair.jinja", "revise.jinja")


class _Nobody:
    """A backend that only counts tokens and never answers."""

    key, together, context_tokens = "preview", False, None

    def complete(self, requests: Sequence[Request]) -> list[Reply | HintdistillError]:
        """Implement `Backend.complete`; always raise, because nothing is asked."""
        raise AssertionError("a preview asks no model")

    def count(self, text: str) -> int:
        """Implement `Backend.count`."""
        return by_bytes(text)


def preview(name: str, traces: Path | None, trace_id: str | None, tools: Path | None, folder: str | None) -> list[str]:
    """Return the rendered texts: one for a critic or placebo prompt, one per matching finding for a hint.

    Args:
        name: a prompt's name, or the path of its file; the file's folder is then searched first.
        traces: a file with traces; without it `trace_id` is the path of such a file, and its first trace is used.

    Raises:
        InputError: the trace does not exist, or it has no finding of the hint's class.
        PromptError: the prompt cannot be rendered.
    """
    if traces is None:
        if trace_id is None:
            raise InputError(
                "no trace given to render the prompt for", hint="use --trace FILE, or --traces FILE with --trace ID"
            )
        traces, trace_id = Path(trace_id), None
    if folder is None and Path(name).is_file():
        folder, name = str(Path(name).resolve().parents[1]), "/".join(Path(name).resolve().parts[-2:])
    library = PromptLibrary(folder)
    library.path(name)
    trace = _trace(traces, trace_id, ReadOptions(tools=load_tools(tools) if tools else ()))
    kind, _, file = name.partition("/")
    if kind == "critic":
        if file in _NOT_ASKED:
            raise InputError(
                f"{name} can only be included in other prompts",
                hint="render critic/all_at_once.jinja to see it in place",
            )
        twins = name == TWIN
        # what asks for an edit stands in front of the instructions, which are rendered with it
        name = "critic/all_at_once.jinja" if twins else name
        prompts, strategy = [name], "all_at_once"
        if library.mentions(name, "first"):
            prompts, strategy = [name, "critic/step.jinja"], "binary_search"
        elif library.mentions(name, "step"):
            strategy = "step_by_step"
        section = LLMSection.model_validate(
            {"base_url": "http://localhost", "model": "preview", "strategy": strategy, "prompt": prompts}
        )
        return [LLMCritic(section, library, _Nobody(), twins=twins).prompt(trace, name)]
    if kind == "placebo":
        return [library.render(name, {"variant": seed_of(trace.id)})]
    error_class = file.removesuffix(".jinja")
    found = [f for f in RulesCritic(CHECKS).check(trace).findings if f.error_class == error_class]
    if not found:
        with contextlib.suppress(PromptError):
            # some hints need no facts of a finding
            return [library.render(name, hint_facts(trace, Finding(step=0, error_class=error_class)))]
        raise InputError(
            f"the deterministic checks find no {error_class} in trace {trace.id}, so there are no facts for the hint",
            hint="use --trace to name a trace that has one",
        )
    return [library.render(name, hint_facts(trace, f)) for f in found]


def _trace(path: Path, trace_id: str | None, options: ReadOptions) -> Trace:
    known = []
    for outcome in read_traces([path], options):
        if isinstance(outcome, Trace):
            if trace_id in (None, outcome.id):
                return outcome
            known.append(outcome.id)
    raise InputError(
        f"{path} contains no trace {trace_id or ''}", hint=f"it contains {', '.join(known[:10]) or 'no traces'}"
    )
