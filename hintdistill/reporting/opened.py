"""A finished run as Python data: `hintdistill.open_run`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError, InputError
from hintdistill.reporting.choose import name_of
from hintdistill.reporting.entries import read_document
from hintdistill.reporting.verdict import Verdict, verdict
from hintdistill.reporting.worst import group_of, residual

DECISION = ("token", "instead", "before", "hinted", "after", "effect_nats", "odds_nats", "flips")
PLAIN = (
    "key",
    "trace",
    "step",
    "split",
    "error_class",
    "critic",
    "accepted",
    "trained",
    "level",
    "placement",
    "fidelity",
    "specificity_nats",
    "legal_mass_gain",
    "quote",
    "hint",
)


class Rows(list[dict[str, Any]]):
    """A table as a list of dicts with the same keys."""

    def to_pandas(self) -> Any:
        """Return the table as a `pandas.DataFrame`.

        Raises:
            ConfigError: pandas is not installed; hintdistill does not depend on it.
        """
        try:
            import pandas  # type: ignore[import-untyped, import-not-found, unused-ignore]
        except ImportError:
            raise ConfigError(
                "pandas is not installed", hint="run pip install pandas, or use the rows directly: they are plain dicts"
            ) from None
        return pandas.DataFrame(list(self))


class OpenedRun:
    """Give access to the report of a run folder as tables."""

    def __init__(self, path: Path, document: Mapping[str, Any]) -> None:
        self.path = path
        self.document = document
        """The document of report.json; see docs/report.md."""

    def __repr__(self) -> str:
        f = self.document["funnel"]
        return (
            f"OpenedRun({str(self.path)!r}, {f['read']['traces']} traces, {len(self.document['findings'])} findings, "
            f"{f['rescore']['accepted']} accepted, {f['train']['hints']} trained)"
        )

    @cached_property
    def verdict(self) -> Verdict:
        """Return the result of the run: a sentence and at most six figures."""
        return verdict(self.document)

    @cached_property
    def findings(self) -> Rows:
        """Return one row per scored finding. Keys about the decision token begin with `decision_`; values are
        probabilities and nats."""
        return Rows(_finding(f) for f in self.document["findings"])

    @cached_property
    def tokens(self) -> Rows:
        """Return one row per token of every scored step: its probability `before`, `hinted` and `after`, and the
        teacher's continuation `instead`."""
        return Rows(
            {"key": f["key"], "trace": f["trace"], "step": f["step"], "token": i, **t}
            for f in self.document["findings"]
            for i, t in enumerate(f["tokens"])
        )

    @cached_property
    def unscored(self) -> Rows:
        """Return one row per finding that was skipped or could not be scored, with its reason."""
        return Rows(dict(u) for u in self.document["unscored"])

    @cached_property
    def environment(self) -> Rows:
        """Return one row per split of the environment and per time, `before` or `after` training; shares are of
        episodes."""
        splits = (self.document["environment"] or {}).get("splits", {})
        return Rows({"split": s, "when": when, **x} for s, by in splits.items() for when, x in by.items())

    @cached_property
    def off_target(self) -> Rows:
        """Return one row per off-target set: KL(initial ‖ student) in nats."""
        return Rows({"set": name, **m} for name, m in self.document["off_target"].items())

    @cached_property
    def classes(self) -> Rows:
        """Return one row per error class: the effects of its hints and of training."""
        return Rows({"error_class": c, **_flat(x)} for c, x in self.document["effects"]["by_class"].items())


def _finding(f: Mapping[str, Any]) -> dict[str, Any]:
    decision = f["decision"] or {}
    return {
        "name": name_of(f),
        **{k: f.get(k) for k in PLAIN},
        "reasons": list(f["reasons"]),
        "group": group_of(f),
        "residual": residual(f) if f["decision"] else None,
        **{f"decision_{k}": decision.get(k) for k in DECISION},
    }


def _flat(x: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested mapping as a flat one with keys like `error_probability_before`."""
    out: dict[str, Any] = {}
    for key, value in x.items():
        out |= {f"{key}_{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return out


def open_run(path: str | Path) -> OpenedRun:
    """Open a run folder that has a report; nothing is loaded or measured.

    Raises:
        InputError: there is no run folder, or its report is not JSON.
        ConfigError: the run has no report yet, or is a loop, whose rounds have reports.
    """
    folder = Path(path)
    if not (folder / "manifest.json").is_file():
        raise InputError(f"no run at {folder}", hint="a run folder contains a manifest.json; see run.dir")
    file = folder / "report.json"
    if not file.is_file() and (folder / "shards").is_dir():
        raise ConfigError(
            f"{folder} is cut into shards that are not merged", hint=f"merge them with hintdistill merge {folder}"
        )
    if not file.is_file():
        raise ConfigError(f"{folder} has no report yet", hint=f"write it with hintdistill report {folder}")
    try:
        document = read_document(file)
    except ValueError as error:
        raise InputError(f"{file} is not JSON: {error}", hint=f"hintdistill report {folder} writes it again") from error
    if "rounds" in document:
        first = folder / "rounds" / "01" / "run"
        raise ConfigError(
            f"{folder} is a loop; each of its rounds has a report", hint=f"show one with hintdistill show {first}"
        )
    return OpenedRun(folder, document)
