"""Select findings of a report document by class, reason, training, text or name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hintdistill.core.errors import ConfigError
from hintdistill.reporting.worst import worst_first

SHOWN = 10
"""Maximum number of names that an error lists; it also says how many more there are."""


@dataclass(frozen=True)
class Wanted:
    """Hold the criteria for findings; None selects all."""

    error_class: str | None = None
    reason: str | None = None
    """A reason of the gate, or the reason why a finding was not scored."""
    trained: bool = False
    """Only findings that were trained on."""
    search: str | None = None
    """Text that occurs anywhere in a finding: id, class, hint, quote, evidence, the step, or the text around it. Case
    is ignored."""
    worst: int | None = None
    """Select at most this many scored findings, those with the highest probability of the error first."""


@dataclass(frozen=True)
class Chosen:
    """Hold the selected findings, and their number without the limit `worst`."""

    findings: list[Mapping[str, Any]]
    unscored: list[Mapping[str, Any]]
    matching: int
    """Number of scored findings that match, of which `findings` are shown."""
    total: int
    """Number of all findings in the document, scored or not."""


def choose(document: Mapping[str, Any], wanted: Wanted) -> Chosen:
    """Select findings of a report document, in its order, or the worst first.

    Findings that were not scored have no probability and are never trained on, so `worst` and `trained` exclude them.

    Raises:
        ConfigError: the document has no such class, or no finding with that reason; the error lists the known ones.
    """
    scored, unscored = list(document["findings"]), list(document["unscored"])
    everything = [*scored, *unscored]
    if wanted.error_class is not None:
        _require("error class", wanted.error_class, {f["error_class"] or "" for f in everything})
    if wanted.reason is not None:
        _require("reason", wanted.reason, {r for f in everything for r in reasons_of(f)})
    found = [f for f in scored if _matches(f, wanted) and (f["trained"] or not wanted.trained)]
    left = [f for f in unscored if _matches(f, wanted)] if not wanted.trained and wanted.worst is None else []
    shown = found if wanted.worst is None else list(worst_first(found)[: wanted.worst])
    return Chosen(shown, left, len(found), len(everything))


def reasons_of(finding: Mapping[str, Any]) -> list[str]:
    """Return why a finding was rejected or not scored; empty for an accepted one."""
    if "reasons" in finding:
        return list(finding["reasons"])
    return [finding["reason"]] if finding["reason"] else []


def name_of(finding: Mapping[str, Any]) -> str:
    """Return a finding's name on the command line: `TRACE:STEP`."""
    return f"{finding['trace']}:{finding['step']}"


def named(document: Mapping[str, Any], which: str) -> list[Mapping[str, Any]]:
    """Return the findings with a name: `TRACE:STEP`, `TRACE`, a key, or a prefix that matches only one place.

    Raises:
        ConfigError: no finding has that name, or it is a prefix for several steps; the error lists them.
    """
    everything = [*document["findings"], *document["unscored"]]
    exact = [f for f in everything if which in (name_of(f), f["trace"], f.get("key"))]
    if exact:
        return exact
    found = [f for f in everything if name_of(f).startswith(which) or f.get("key", "").startswith(which)]
    places = list(dict.fromkeys(map(name_of, found)))
    if not places:
        raise ConfigError(
            f"there is no finding {which!r}", hint="`hintdistill show RUN` without a name lists all findings"
        )
    traces = {f["trace"] for f in found}
    if len(traces) > 1:
        raise ConfigError(
            f"{len(places)} findings begin with {which!r}: {_some(places)}",
            hint="give a longer name, up to TRACE:STEP",
        )
    return found


def _matches(finding: Mapping[str, Any], wanted: Wanted) -> bool:
    if wanted.error_class is not None and (finding["error_class"] or "") != wanted.error_class:
        return False
    if wanted.reason is not None and wanted.reason not in reasons_of(finding):
        return False
    return wanted.search is None or wanted.search.casefold() in _text(finding).casefold()


def _text(finding: Mapping[str, Any]) -> str:
    """Return all text of a finding in one string."""
    keys = ("error_class", "hint", "quote", "evidence", "context_above", "context_below", "message")
    step = "".join(t["text"] for t in finding.get("tokens") or ())
    return "\n".join([name_of(finding), step, *(finding.get(k) or "" for k in keys)])


def _require(what: str, name: str, known: set[str]) -> None:
    if name not in known:
        raise ConfigError(f"no finding has the {what} {name!r}", hint=f"available: {_some(sorted(known)) or 'none'}")


def _some(names: Sequence[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
