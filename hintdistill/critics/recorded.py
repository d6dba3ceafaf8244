"""Read findings from a file: human labels, or the output of another tool or of an environment's checker.

Each JSON line is one finding: `{"trace": id, "step": k, "error_class": …}` plus any other field of `Finding`. A trace
that the file does not mention gets the verdict `none`, because the file covers the whole set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from hintdistill.core.errors import InputError
from hintdistill.core.types import Critique, Finding, Trace
from hintdistill.critics import Outcome, one_by_one


class RecordedCritic:
    """Look up findings by trace id."""

    name = "recorded"

    def __init__(self, path: str | Path, error_classes: Iterable[str] | None = None) -> None:
        """Read the file. Raises InputError, with file and line, for a row that is not a finding."""
        self.path = Path(path)
        keep = None if error_classes is None else set(error_classes)
        self._rows: dict[str, list[Finding]] = {}
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise InputError(
                f"no recorded findings at {path}", hint="set critic.recorded.path to a JSONL file"
            ) from None
        except UnicodeDecodeError as error:
            raise InputError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
        for number, line in enumerate(text.splitlines(), 1):
            if not line.strip():
                continue
            trace, finding = self._row(line, number)
            if keep is None or finding.error_class in keep:
                self._rows.setdefault(trace, []).append(finding)

    def _row(self, line: str, number: int) -> tuple[str, Finding]:
        where = f"{self.path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{where}: not valid JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("trace"), str):
            raise InputError(f"{where}: a finding must be an object with `trace`, `step` and `error_class`")
        try:
            data = {"critic": self.name, **{k: v for k, v in row.items() if k != "trace"}}
            return row["trace"], Finding.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    def key(self, trace: Trace) -> str:
        """Hash of the rows about this trace only, so that changes to other rows do not affect it."""
        rows = [f.model_dump_json() for f in self._rows.get(trace.id, ())]
        return hashlib.sha256(json.dumps(["recorded", rows]).encode()).hexdigest()

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """See `Critic.critique`."""
        return one_by_one(self._look_up, traces)

    def _look_up(self, trace: Trace) -> Critique:
        findings = tuple(sorted(self._rows.get(trace.id, ()), key=lambda f: f.step))
        beyond = [f.step for f in findings if f.step >= len(trace.step_indices)]
        if beyond:
            raise InputError(
                f"{self.path}: a finding at step {beyond[0]} of trace {trace.id}, which has steps "
                f"0..{len(trace.step_indices) - 1}"
            )
        return Critique(
            trace_id=trace.id,
            verdict="findings" if findings else "none",
            findings=findings,
            critics=(self.name,),
        )
