"""Make several hints for one finding, which compete within their level.

The candidates, each text once and up to `inject.candidates`, are in this order: the hint of `inject.hint` (the critic's
own words or its class's template); a principle; the right action alone; the class's template, if the critic wrote its
own words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hintdistill.core.errors import PromptError
from hintdistill.core.scores import Choice
from hintdistill.core.types import Finding, Trace
from hintdistill.injection.hints import hint_facts
from hintdistill.prompts import PromptLibrary, hint_name

PRINCIPLE, ACTION = "candidates/principle.jinja", "candidates/action.jinja"
NAMES = ("critic", "principle", "action", "template")


def other_hints(trace: Trace, finding: Finding, first: str, library: PromptLibrary, n: int) -> list[tuple[str, str]]:
    """Return at most `n` further hints for a finding in addition to its `first`, as names and texts."""
    taken, out = {first}, list[tuple[str, str]]()
    for name, text in _texts(trace, finding, library):
        if len(out) < n and text not in taken:
            taken.add(text)
            out.append((name, text))
    return out


def _texts(trace: Trace, finding: Finding, library: PromptLibrary) -> Iterator[tuple[str, str]]:
    facts = hint_facts(trace, finding)
    sources = (("principle", PRINCIPLE), ("action", ACTION), ("template", hint_name(finding.error_class)))
    for name, prompt in sources:
        if library.has(prompt):
            try:
                yield name, library.render(prompt, {"error_class": finding.error_class, **facts})
            except PromptError:
                # a template that lacks a fact, or a class it has no words for
                continue


def choose(groups: Mapping[str, Sequence[tuple[str, int, float, bool]]]) -> dict[str, Choice]:
    """Choose among the candidates of each finding.

    Within a level, the candidate with the largest odds wins, regardless of the gate. Among levels, the lowest one wins
    whose best candidate the gate accepts, or else the level with the largest odds.

    Args:
        groups: per finding, each candidate's key, level, odds in nats, and whether the gate accepts it.

    Returns:
        Key → `only`, `best`, `outranked` or `other_level`.
    """
    out: dict[str, Choice] = {}
    for candidates in groups.values():
        if len(candidates) == 1:
            out[candidates[0][0]] = "only"
            continue
        best: dict[int, tuple[str, int, float, bool]] = {}
        for candidate in candidates:
            _, level, odds, _ = candidate
            if level not in best or odds > best[level][2]:
                best[level] = candidate
        passing = [c for level, c in sorted(best.items()) if c[3]]
        chosen = passing[0] if passing else max(best.values(), key=lambda c: c[2])
        for key, level, _, _ in candidates:
            if key == chosen[0]:
                out[key] = "best"
            else:
                out[key] = "other_level" if best[level][0] == key else "outranked"
    return out
