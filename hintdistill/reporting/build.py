"""Build the report document from a run's rows.

The document is versioned and described in `docs/report.md`. Probabilities refer to sampled tokens; effects are in nats.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hintdistill.config import MAX_NULL_PASS_RATE, GateSection, TrainSection
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key
from hintdistill.core.types import Critique, Injection
from hintdistill.recipes.changes import called
from hintdistill.recipes.describe import PROMISE
from hintdistill.reporting import counted
from hintdistill.reporting.clean_traces import Drawn
from hintdistill.reporting.curves import curves
from hintdistill.reporting.effects import ScoredHint, all_effects, mean
from hintdistill.reporting.entries import Collected, Entries
from hintdistill.reporting.failed_episodes import failed_after
from hintdistill.reporting.findings import After, Decode, failed_entry, finding_entry, unscored_entry
from hintdistill.reporting.intervals import against_placebos
from hintdistill.reporting.schema import REPORT_SCHEMA
from hintdistill.reporting.spending import spending
from hintdistill.reporting.twins import twin_document, twin_entries, with_edit
from hintdistill.rescoring.drift import Movement
from hintdistill.rescoring.gate import placebos_pass
from hintdistill.rescoring.scorer import TwinItem
from hintdistill.rescoring.stored import by_part, heads, number_of, of_kind
from hintdistill.rollouts.evaluate import Evaluation


@dataclass(frozen=True)
class ReportInput:
    """Hold everything that a report is made from; values that a run has not produced are empty. Rows may stay on disk,
    and are read in order."""

    manifest: Mapping[str, Any]
    trace_rows: Sequence[Mapping[str, Any]]
    splits: Mapping[str, str]
    """Split by trace row key."""
    critique_rows: Sequence[Mapping[str, Any]]
    critiques: Mapping[str, Critique]
    injection_rows: Sequence[Mapping[str, Any]]
    failures: Sequence[Mapping[str, Any]]
    targets: Sequence[Target]
    """Targets; stored ones are read part by part."""
    injections: Mapping[str, Injection]
    """Injection by target key."""
    contexts: Mapping[str, tuple[str, str]]
    """By target key: the end of the context's text above the hint, and the text between hint and step."""
    trained: Sequence[str]
    """Keys of the targets that were trained on."""
    train_summary: Mapping[str, Any] | None
    after: Mapping[str, After]
    """By key of a hint's or twin's target: the corrected student's score of its step."""
    evaluations: Mapping[str, Mapping[str, Evaluation]]
    """By split, then `before` and `after`."""
    off_target: Mapping[str, Movement]
    warnings: Sequence[str] = field(default_factory=list)
    twin_counts: Mapping[str, Any] | None = None
    """Counts of twins made and dropped; see `pipeline.twins.counts`. None if no twins were requested."""
    twin_items: Mapping[str, TwinItem] = field(default_factory=dict)
    """Twins by the key of their target."""
    holds: Mapping[str, Any] | None = None
    """Number of hold traces, and of failed records by reason; None if there is no hold section."""
    controls: Mapping[str, Any] | None = None
    """The document of `hintdistill controls`, if it was run."""
    folder: Path | None = None
    """The run folder, for its name and the command that repeats the run."""
    owed: int | None = None
    """Traces whose critique may succeed in another attempt; None if unknown."""
    episodes: Sequence[Mapping[str, Any]] = ()
    """Rows of episodes.jsonl on which the evaluations are based."""
    readings: Sequence[Mapping[str, Any]] = ()
    """Rows of the training's metrics.jsonl; empty if this run trained nothing."""
    tripwires: Sequence[Mapping[str, Any]] | None = None
    """Bounds that training exceeded: `step`, `tripwire`, `value`, `bound`; None if this run trained nothing."""
    decode: Decode | None = None
    """Converts token ids to text; without it findings contain neither the hint's own tokens nor the most likely
    continuations."""


def build(data: ReportInput) -> dict[str, Any]:
    """Return the report document; see `docs/report.md`."""
    sampled = {key: after.sampled for key, after in data.after.items()}
    twins = heads(of_kind(data.targets, "twin"))
    entries = twin_entries(twins, data.twin_items, set(data.trained), sampled)
    scored, findings = _read_hints(data, entries)
    hints = [s.head for s in scored]
    gate = gate_of(data.manifest["config"])
    first = next(iter(data.evaluations.values()), {})
    tokens = sum(m.tokens for m in data.off_target.values())
    kl = sum(m.kl_per_token * m.tokens for m in data.off_target.values()) / tokens if tokens else None
    counts = funnel(data, scored, clean := Drawn())
    return {
        "schema": REPORT_SCHEMA,
        "run": {
            "model": data.manifest["config"]["run"]["model"],
            "critics": data.manifest["config"]["critic"]["use"],
            "hint": data.manifest.get("hint") or data.manifest["config"]["inject"]["hint"] or "critic",
            "recipe": recipe_said(data.manifest["config"]),
            "model_key": data.manifest.get("model"),
            "prompts": data.manifest.get("prompts"),
            "precision": data.manifest.get("precision"),
            "versions": data.manifest["versions"],
            **_about(data),
            "config": data.manifest["config"],
        },
        "funnel": counts,
        "twins": twin_document(hints, entries),
        "environment": {
            "before": asdict(first["before"]) if "before" in first else None,
            "after": asdict(first["after"]) if "after" in first else None,
            "splits": {s: {w: asdict(e) for w, e in by.items()} for s, by in data.evaluations.items()},
        }
        if data.evaluations
        else None,
        "off_target_kl_nats": kl,
        "off_target": {name: asdict(m) for name, m in data.off_target.items()},
        "effects": all_effects(scored),
        "gate": _gate(scored, gate),
        "weights": {
            "recorded_gap_nats": mean([t.recorded_gap for t in hints if t.recorded_gap is not None]),
            "recorded_steps": sum(t.recorded_gap is not None for t in hints),
            "engine_floor_nats": data.train_summary["engine_floor_nats"] if data.train_summary else None,
        },
        "train": _train(data),
        "warnings": list(data.warnings),
        "controls": dict(data.controls) if data.controls else None,
        "findings": findings,
        "against_placebos": against_placebos(findings),
        "curves": curves(data.readings),
        "failed_after": failed_after(data.episodes),
        "found_nothing": clean.document(data.trace_rows),
        "unscored": [
            *(unscored_entry(r) for r in data.injection_rows if "injection" not in r),
            *(failed_entry(data.injections[f["key"]], f) for f in data.failures if f.get("key") in data.injections),
        ],
    }


def gate_of(config: Mapping[str, Any]) -> GateSection:
    """Return the gate's settings; if the run's own configuration does not say whether there is a gate, the recipe
    decides."""
    gate = GateSection.model_validate(config["rescore"]["gate"])
    if gate.enabled is not None:
        return gate
    recipe = TrainSection.model_validate(config["train"]).effective_recipe
    return gate.model_copy(update={"enabled": recipe.data.gate})


def recipe_said(config: Mapping[str, Any]) -> dict[str, str]:
    """Describe the recipe of a run's configuration: `name`, `called` (its changes), and whether it `lowers_error`, with
    the reason."""
    recipe = TrainSection.model_validate(config["train"]).effective_recipe
    why = f": {recipe.lowers_error_why}" if recipe.lowers_error_why else ""
    inject = config["inject"]
    known = called(recipe, inject["hint"], inject.get("steps"))
    return {"name": recipe.name, "called": known, "lowers_error": f"{PROMISE[recipe.lowers_error]}{why}"}


def _about(data: ReportInput) -> dict[str, Any]:
    """Return name, date, command, data and configuration hash, which identify a run."""
    config = data.manifest["config"]
    plain = {**config, "run": {k: v for k, v in config["run"].items() if k != "dir"}}
    path = config["traces"]["path"]
    folder = data.folder
    return {
        "name": None if folder is None else folder.resolve().name,
        "started": data.manifest.get("started"),
        "command": None if folder is None else shlex.join(["hintdistill", "run", str(folder / "config.yaml")]),
        "data": [path] if isinstance(path, str) else list(path or ()),
        "config_hash": content_key("config", plain),
    }


def _train(data: ReportInput) -> dict[str, Any] | None:
    """Return the training's summary, and the bounds it exceeded if they are known."""
    if not data.train_summary:
        return None
    crossed = {} if data.tripwires is None else {"tripwires": [dict(c) for c in data.tripwires]}
    return {**data.train_summary, **crossed}


def _read_hints(data: ReportInput, twins: Mapping[str, list[dict[str, Any]]]) -> tuple[list[ScoredHint], Entries]:
    """Return every hint's facts and its part of the document, in order; whole targets are released one by one."""
    hints = of_kind(data.targets, "hint")
    gate = GateSection.model_validate(data.manifest["config"]["rescore"]["gate"])
    collected = Collected(len(hints))
    trained, found = set(data.trained), dict[int, ScoredHint]()
    for i, target in by_part(hints):
        decision, after, injection = target.decision, data.after.get(target.key), data.injections.get(target.key)
        facts = ScoredHint(
            head=heads(hints)[i],
            plain=None if decision is None else decision.logprob_plain,
            hinted=None if decision is None else decision.logprob_hinted,
            after=None if decision is None or after is None else float(after.sampled[decision.position]),
            placebos=list(zip((p.kind for p in target.placebos), placebos_pass(target, gate), strict=True)),
            revised=injection is not None and injection.finding.revised_from is not None,
        )
        said = finding_entry(
            target,
            injection,
            data.contexts.get(target.key, ("", "")),
            after,
            facts.placebos_pass,
            target.key in trained,
            data.decode,
        )
        found[i] = facts
        with_text = [with_edit(t, data.twin_items[t["key"]]) for t in twins.get(target.key, ())]
        collected.add(i, said | {"twins": with_text})
    return [found[i] for i in range(len(hints))], collected.entries()


def _gate(scored: Sequence[ScoredHint], gate: GateSection) -> dict[str, Any]:
    """Return the gate's settings, and the number of placebos that pass."""
    passed = [found for s in scored for found in s.placebos_pass]
    return {
        "null_pass_rate": mean(passed),
        "null_pass_rate_by_kind": _rates((kind, found) for s in scored for kind, found in s.placebos),
        "null_pass_rate_by_level": _rates(
            (str(s.head.level), found) for s in scored if s.head.level is not None for found in s.placebos_pass
        ),
        "bound": MAX_NULL_PASS_RATE,
        **gate.model_dump(),
    }


def funnel(data: ReportInput, scored: Sequence[ScoredHint], clean: Drawn | None = None) -> dict[str, Any]:
    """Return the counts by stage and reason; `clean` takes in every verdict on the way."""
    trained, hints = set(data.trained), [s.head for s in scored]
    left = Counter(
        "holdout" if t.split == "holdout" else f"fidelity_{t.fidelity}"
        for t in hints
        if t.accepted and t.key not in trained
    )
    kinds = Counter(t.kind for t in heads(data.targets) if t.key in trained) if trained else Counter[str]()
    return {
        "read": counted.records(data.trace_rows, data.splits),
        **({"hold": dict(data.holds)} if data.holds else {}),
        "critique": {
            **counted.critiqued(data.critiques, data.critique_rows, clean),
            "usage": spending(data.critique_rows, data.manifest["config"], sum(t.accepted for t in hints)),
            **({} if data.owed is None else {"owed": data.owed}),
        },
        "inject": counted.injected(data.injection_rows, data.twin_counts),
        "rescore": _rescored(data, scored),
        "train": {
            "hints": sum(t.key in trained for t in hints),
            "anchors": kinds["anchor"],
            "twins": kinds["twin"],
            **({"holds": kinds["hold"]} if data.holds else {}),
            "left_out": dict(left) if trained else {},
        },
    }


def _rescored(data: ReportInput, scored: Sequence[ScoredHint]) -> dict[str, Any]:
    hints = [s.head for s in scored]
    rejected = [t for t in hints if not t.accepted]
    return {
        "scored": len(hints),
        "failed": counted.count(f["reason"] for f in data.failures),
        "accepted": len(hints) - len(rejected),
        "rejected": len(rejected),
        "reasons": counted.count(r for t in rejected for r in t.reasons),
        "levels": counted.count(str(t.level) for t in hints if t.level is not None),
        "accepted_levels": counted.count(str(t.level) for t in hints if t.level is not None and t.accepted),
        "candidates": sum(t.choice != "only" for t in hints),
        "anchors": number_of(data.targets, "anchor", "train"),
        "watched": number_of(data.targets, "anchor", "holdout"),
        **({"holds": len(of_kind(data.targets, "hold"))} if data.holds else {}),
        "revised": {
            "scored": sum(s.revised for s in scored),
            "accepted": sum(s.head.accepted and s.revised for s in scored),
        },
    }


def _rates(found: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """Return the share of passing placebos by name."""
    by: dict[str, list[bool]] = {}
    for name, passes in found:
        by.setdefault(name, []).append(passes)
    return {name: sum(passes) / len(passes) for name, passes in sorted(by.items())}


def dumps(document: Mapping[str, Any]) -> str:
    """Return the document as JSON; raise an error for NaN, which is not valid JSON."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
