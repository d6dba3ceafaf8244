"""Inspect trace files: counts per file for people and scripts, and conversion to the native format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hintdistill.config import CHECKS
from hintdistill.core.errors import InputError
from hintdistill.core.storage import disk_errors, writing_aside
from hintdistill.core.types import Trace
from hintdistill.critics.rules import NOT_JUDGED, RulesCritic
from hintdistill.traces.conservation import Lost, lost_of, lost_record, summed
from hintdistill.traces.files import TraceFile, all_files
from hintdistill.traces.formats import native
from hintdistill.traces.guards import given_reasons
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.reading import Deduplicator, read_file

DEFAULTS = ReadOptions()
HELD_ELSEWHERE = frozenset({"repeated_prefix", "duplicate_id"})
"""Reasons for a file without a trace of its own that loses nothing, because its turns were read from another file."""


@dataclass
class FileReport:
    """Describe a file and the result of reading it."""

    path: str
    format: str | None = None
    """The format of its records; None if none was detected."""
    traces: int = 0
    steps: int = 0
    given_steps: int = 0
    """Number of steps that are only context; see `types.Message.given`."""
    given_because: dict[str, int] = field(default_factory=dict)
    """The given steps by reason: a mask of the data set, a greeting, an unknown context, …"""
    tool_calls: int = 0
    failures: int = 0
    reason: str | None = None
    """Why records, or the whole file, gave no trace; None if all records gave traces."""
    schemas: int = 0
    """Number of traces with tool schemas."""
    token_ids: int = 0
    """Number of steps whose token ids are recorded."""
    rewards: int = 0
    """Number of traces with a reward."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Failures by reason."""
    checks: dict[str, int] = field(default_factory=dict)
    """Findings of the deterministic checks by class."""
    lost: list[Lost] | None = None
    """Content of the file that is missing from its traces, by key path; None if this was not checked."""
    not_judged: int = 0
    """Number of steps with a call that its own schema cannot judge, because it is not a JSON schema, refers elsewhere,
    or would take too long."""


def inspect_files(
    paths: Sequence[str | Path], options: ReadOptions = DEFAULTS, *, lost: bool = False
) -> Iterator[FileReport]:
    """Yield one report per file in reading order; files of other kinds are reported with that reason.

    Args:
        paths: files, folders, globs or archives.
        options: how to read.
        lost: whether to look for every string of the files in the traces, which takes several times as long.

    Raises:
        InputError: a path does not exist, or a folder contains no trace file.
        ConfigError: `options.format` is not a known format.
    """
    keep, critic = Deduplicator(), RulesCritic(CHECKS)
    for file in all_files(paths):
        yield _inspect(file, options, keep, critic, lost)


def _inspect(file: TraceFile, options: ReadOptions, keep: Deduplicator, critic: RulesCritic, lost: bool) -> FileReport:
    report = FileReport(file.name)
    absent: list[Lost] = []
    keep.watch = partial(_note_lost, absent) if lost else None
    if file.foreign:
        report.reason = f"not read: {file.kind} is not a known kind of trace file"
        return report
    reasons: Counter[str] = Counter()
    checks: Counter[str] = Counter()
    first: Failure | None = None
    for outcome in read_file(file, options, keep):
        if isinstance(outcome, Failure):
            reasons[outcome.reason] += 1
            first = first or outcome
        else:
            _count(report, outcome)
            critique = critic.check(outcome)
            checks.update(f.error_class for f in critique.findings)
            report.not_judged += sum(n.startswith(NOT_JUDGED) for n in critique.notes)
    report.format = keep.formats.get(file.name)
    report.lost = summed(absent) if lost else None
    report.failures, report.reasons, report.checks = sum(reasons.values()), dict(reasons), dict(checks)
    if first is not None:
        counted = ", ".join(f"{n} {r}" for r, n in reasons.most_common())
        report.reason = f"{counted}; {first.source.position}: {first.message}"
    return report


def _note_lost(absent: list[Lost], record: Record, name: str, outcomes: list[Trace | Failure]) -> None:
    """Add the content of a record that is missing from its traces."""
    if any(isinstance(o, Trace) for o in outcomes):
        absent += lost_of(record.value, outcomes, name)
    else:
        absent += lost_record(record.value, outcomes, HELD_ELSEWHERE)


def _count(report: FileReport, trace: Trace) -> None:
    steps = [trace.messages[i] for i in trace.step_indices]
    report.traces += 1
    report.steps += len(steps)
    report.given_steps += len(trace.given_steps)
    for reason, n in given_reasons(trace).items():
        report.given_because[reason] = report.given_because.get(reason, 0) + n
    report.tool_calls += sum(len(m.tool_calls) for m in steps)
    report.schemas += bool(trace.tools)
    report.token_ids += sum(m.token_ids is not None for m in steps)
    report.rewards += trace.reward is not None


@dataclass
class Conversion:
    """Describe the traces that a conversion wrote, and the records that failed."""

    path: str
    traces: int = 0
    failures: list[Failure] = field(default_factory=list)
    foreign: list[TraceFile] = field(default_factory=list)
    """Files of unknown kinds, which were not read."""


def convert(
    paths: Sequence[str | Path],
    out: str | Path,
    options: ReadOptions = DEFAULTS,
    *,
    allow_empty_files: bool = False,
) -> Conversion:
    """Write every trace under `paths` in the native format, one at a time; the file appears when it is complete.

    Raises:
        InputError: there is no trace at all, or a file without one is not allowed; in both cases nothing is written.
    """
    done, out = Conversion(str(out)), Path(out)
    keep, empty = Deduplicator(), []
    with disk_errors(out), writing_aside(out) as aside:
        with aside.open("w", encoding="utf-8", errors="surrogatepass") as target:
            for file in all_files(paths):
                if file.foreign:
                    done.foreign.append(file)
                if file.foreign or (out.exists() and file.path.exists() and file.path.samefile(out)):
                    continue
                before, missed = done.traces, []
                for outcome in read_file(file, options, keep):
                    if isinstance(outcome, Failure):
                        missed.append(outcome)
                    else:
                        target.write(native.dump(outcome) + "\n")
                        done.traces += 1
                done.failures += missed
                if done.traces == before and any(f.reason not in HELD_ELSEWHERE for f in missed):
                    empty.append(f"{missed[0].source}: {missed[0].message}")
        if not done.traces or (empty and not allow_empty_files):
            raise empty_files_error(empty)
    return done


def empty_files_error(empty: Sequence[str]) -> InputError:
    """Return the error for files without steps; `empty` has one text with the reason for each."""
    shown = "; ".join(empty[:5]) + (f"; and {len(empty) - 5} more" if len(empty) > 5 else "")
    return InputError(
        f"{len(empty)} files yielded no step of the student: {shown}" if empty else "no trace was read",
        hint="`hintdistill traces inspect` lists every file; traces.allow_empty_files=true (--allow-empty-files) "
        "skips such files",
    )


def as_json(reports: Sequence[FileReport]) -> dict[str, Any]:
    """Return the document that `traces inspect --json` prints."""
    from dataclasses import asdict

    files = [asdict(r) for r in reports]
    summed = (
        "traces",
        "steps",
        "given_steps",
        "tool_calls",
        "failures",
        "schemas",
        "token_ids",
        "rewards",
        "not_judged",
    )
    return {"files": files, "totals": {"files": len(files)} | {key: sum(f[key] for f in files) for key in summed}}
