"""`hintdistill prompts render`: what a prompt becomes for one trace."""

from __future__ import annotations

from pathlib import Path

from hintdistill.config import CHECKS, LLMSection
from hintdistill.critics.llm import LLMCritic
from hintdistill.critics.rules import RulesCritic
from hintdistill.errors import InputError
from hintdistill.hints import hint_facts, seed_of
from hintdistill.prompts import PromptLibrary
from hintdistill.traces import ReadOptions, load_tools, read_traces
from hintdistill.types import Trace


def preview(name: str, traces: Path, trace_id: str | None, tools: Path | None, folder: str | None) -> list[str]:
    """The rendered texts: one for a critic or placebo prompt, one per matching finding for a hint.

    Raises:
        InputError: no such trace, or no finding of the hint's class in it.
        PromptError: the prompt cannot be rendered.
    """
    library = PromptLibrary(folder)
    library.path(name)
    trace = _trace(traces, trace_id, ReadOptions(tools=load_tools(tools) if tools else ()))
    kind, _, file = name.partition("/")
    if kind == "critic":
        section = LLMSection(base_url="http://localhost", model="preview", prompt=name)
        return [LLMCritic(section, library).prompt(trace)]
    if kind == "placebo":
        return [library.render(name, {"variant": seed_of(trace.id)})]
    error_class = file.removesuffix(".jinja")
    found = [f for f in RulesCritic(CHECKS).check(trace).findings if f.error_class == error_class]
    if not found:
        raise InputError(
            f"the deterministic checks find no {error_class} in trace {trace.id}, so the hint has no facts",
            hint="name a trace that has one with --trace",
        )
    return [library.render(name, hint_facts(trace, f)) for f in found]


def _trace(path: Path, trace_id: str | None, options: ReadOptions) -> Trace:
    known = []
    for outcome in read_traces([path], options):
        if isinstance(outcome, Trace):
            if trace_id in (None, outcome.id):
                return outcome
            known.append(outcome.id)
    raise InputError(f"no trace {trace_id or ''} in {path}", hint=f"it holds {', '.join(known[:10]) or 'none'}")
