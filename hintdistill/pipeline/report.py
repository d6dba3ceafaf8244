"""Measure the changes and write the report (stage 6)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hintdistill.config import RunConfig
from hintdistill.core.errors import HintdistillError
from hintdistill.core.models import model_key
from hintdistill.core.rows import OnDemand
from hintdistill.core.scores import ScoreRequest, Scores, Target
from hintdistill.core.storage import content_key, write_atomic, write_pieces
from hintdistill.core.types import Injection, Split, Trace, Twin
from hintdistill.pipeline import critique, environment, hold, read, rescore, to_score, train, twins
from hintdistill.pipeline.context import RunContext, trace_key
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RUN_SCHEMA, RunDir
from hintdistill.reporting.build import ReportInput, build, dumps
from hintdistill.reporting.effects import moved_line
from hintdistill.reporting.entries import read_document, write_document
from hintdistill.reporting.findings import TOP, After
from hintdistill.reporting.html import html_pieces
from hintdistill.reporting.islands import trace_page
from hintdistill.rescoring.drift import Movement, movement
from hintdistill.rescoring.stored import StoredTargets
from hintdistill.rescoring.twins import TwinItem
from hintdistill.traces.files import trace_files
from hintdistill.traces.reading import read_traces

CONTROLS = "controls.json"


def run(ctx: RunContext, earlier: Sequence[str]) -> None:
    """Make the missing measurements, and write report.json and report.html. `earlier` contains the warnings of earlier
    stages."""
    if line := moved_line(write(ctx, earlier, measure=True)):
        ctx.console.note(f"report: {line}")
    ctx.rundir.set_index("report", [])


def write(ctx: RunContext, earlier: Sequence[str], *, measure: bool) -> dict[str, Any]:
    """Write the report from the available measurements, and the card of a student that this release trained.

    Without `measure`, no new measurement is made for it.
    """
    document = _document(ctx, earlier, measure)
    write_document(ctx.rundir.path / "report.json", document)
    if ctx.config.report.html:
        write_pieces(ctx.rundir.path / "report.html", _page(ctx.rundir, ctx.config, document))
    if _trained(ctx) and ctx.rundir.manifest()["schema"] == RUN_SCHEMA:
        _card(ctx, document)
    return document


def write_elsewhere(ctx: RunContext, folder: Path) -> dict[str, Any]:
    """Measure a student that was trained elsewhere, and write its report into a separate folder.

    The run's own report, student and card stay unchanged; measurements are stored under the key of the student's
    weights.
    """
    document = _document(ctx, [], measure=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_document(folder / "report.json", document)
    if ctx.config.report.html:
        write_pieces(folder / "report.html", _page(ctx.rundir, ctx.config, document))
    if line := moved_line(document):
        ctx.console.note(f"report: {line}")
    return document


def controls(rundir: RunDir) -> dict[str, Any] | None:
    """Return the results of `hintdistill controls` for this run; None if it was not run."""
    path = rundir.path / CONTROLS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def add_controls(rundir: RunDir, config: RunConfig, found: Mapping[str, Any], console: Console) -> None:
    """Store the document of the controls, and add its section to the report if there is one."""
    write_atomic(rundir.path / CONTROLS, dumps(found))
    path = rundir.path / "report.json"
    if not path.is_file():
        console.note(f"controls: {rundir.path} has no report yet; `hintdistill report` writes one with these controls")
        return
    document = read_document(path) | {"controls": found}
    write_document(path, document)
    if config.report.html:
        write_pieces(rundir.path / "report.html", _page(rundir, config, document))


def _page(rundir: RunDir, config: RunConfig, document: Mapping[str, Any]) -> Iterator[str]:
    """Return the page of a report document in pieces, with the text of the run's traces and of the critiques."""
    return html_pieces(document, config.report.max_findings, _Pages(rundir))


class _Pages(Mapping[str, dict[str, Any]]):
    """Map the id of a critiqued trace to its content on the page, which is read on access."""

    def __init__(self, rundir: RunDir) -> None:
        self._said = rundir.grouped("critique", "critiques", "trace_id")
        self._traces = rundir.rows("traces")

    def __contains__(self, trace: object) -> bool:
        return isinstance(trace, str) and bool(self._said.of(trace))

    def __getitem__(self, trace: str) -> dict[str, Any]:
        said = self._said.of(trace)
        if not said:
            raise KeyError(trace)
        return trace_page(self._traces[said[0]["trace"]]["trace"], said)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(self._said.values()))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def card(ctx: RunContext, earlier: Sequence[str]) -> None:
    """Write the student's card from the values known before any measurement."""
    _card(ctx, _document(ctx, earlier, measure=False))


def _card(ctx: RunContext, document: Mapping[str, Any]) -> None:
    from hintdistill.training.card import write_card

    write_card(ctx.student_folder, document, ctx.rundir.manifest().get("formats", {}), ctx.initial_folder)


def _trained(ctx: RunContext) -> bool:
    return (ctx.elsewhere is not None or ctx.rundir.index("train") is not None) and ctx.student_folder.is_dir()


def _document(ctx: RunContext, earlier: Sequence[str], measure: bool) -> dict[str, Any]:
    trained, targets = _trained(ctx), rescore.load(ctx)
    after = _after_view(ctx, targets) if trained and measure else {}
    off_target = _off_target(ctx) if trained and measure else {}
    played = environment.play(ctx, _student_key(ctx) if trained else None) if measure else environment.Played()
    warnings = list(dict.fromkeys([*earlier, *ctx.console.warnings]))
    return build(_collect(ctx, targets, after, off_target, played, warnings))


def _student_key(ctx: RunContext) -> str:
    if ctx.elsewhere is not None:
        return str(model_key(ctx.elsewhere))
    keys = ctx.rundir.index("train")
    assert keys
    return keys[0]


def _after_view(ctx: RunContext, targets: StoredTargets) -> Mapping[str, After]:
    """Return the corrected student's score of every scored step, in its own context and in the contexts of its
    twins."""
    store, student = ctx.rundir.store("after"), _student_key(ctx)
    hints = targets.of_kind("hint", "twin")
    keys, done = {t.key: content_key("after", t.key, student) for t in hints.heads}, ctx.rundir.rows("after")
    with ctx.console.progress("after", len(hints)) as advance:
        for at in range(0, len(hints), 64):
            batch = list(hints[at : at + 64].where(lambda t: keys[t.key] not in done))
            requests = [
                ScoreRequest(
                    np.concatenate([t.context_ids, t.step_ids]),
                    len(t.context_ids),
                    len(t.context_ids) + len(t.step_ids),
                )
                for t in batch
            ]
            scores = ctx.engine(ctx.student_folder).score(requests, top_k=TOP) if batch else []
            store.extend([_after_row(keys[t.key], t, s) for t, s in zip(batch, scores, strict=True)])
            advance.before(len(hints[at : at + 64]) - len(batch))
            advance(len(batch))
    rows = ctx.rundir.rows("after")
    return OnDemand(keys, lambda key: _after(rows[keys[key]]))


def _after_row(key: str, target: Target, scores: Scores) -> dict[str, Any]:
    """Return the row of a step under the corrected student, with the most likely continuations at the decision token,
    if there is one."""
    row = {"key": key, "sampled": scores.sampled.astype(float).tolist()}
    if target.decision is None:
        return row
    at = target.decision.position
    best = sorted(
        zip(scores.topk_ids[at].tolist(), scores.topk_logprobs[at].tolist(), strict=True), key=lambda b: -b[1]
    )
    return row | {"position": at, "top": [[i, p] for i, p in best[:TOP] if i >= 0]}


def _after(row: Mapping[str, Any]) -> After:
    """Return a row of after.jsonl; rows of older releases contain no continuations."""
    top = [(int(i), float(p)) for i, p in row.get("top", ())]
    return After(np.array(row["sampled"], np.float32), row.get("position"), top)


def _off_target(ctx: RunContext) -> dict[str, Movement]:
    store, student = ctx.rundir.store("off_target"), _student_key(ctx)
    sets = off_target_sets(ctx)
    out: dict[str, Movement] = {}
    done = store.by_key()
    with ctx.console.progress("off-target", len(sets)) as advance:
        for name, requests in sets.items():
            key = content_key("off_target", name, student, [content_key(r.ids.tolist(), r.start) for r in requests])
            advance.says(f"{name}, {len(requests):,} steps")
            if key not in done:
                found = movement(ctx.engine(ctx.initial_folder), ctx.engine(ctx.student_folder), requests)
                store.append({"key": key, "set": name, "movement": asdict(found) if found else None})
                done = store.by_key()
            if done[key]["movement"] is not None:
                out[name] = Movement(**done[key]["movement"])
            advance(1)
    return out


def off_target_sets(ctx: RunContext) -> dict[str, list[ScoreRequest]]:
    """Return the steps that no loss and no anchor touched: other steps of held-out erring traces, held-out clean
    traces, user sets.

    A trace that is also a hold trace (`train.hold`) is left out with a warning.
    """
    critiques, held, opened = critique.opened(ctx), {key for key, _ in hold.each(ctx)}, read.open_traces(ctx)
    # a trace of the run by its row key, one of a user's set as it is
    chosen: dict[str, list[tuple[Trace | str, int]]] = {"heldout_other_steps": [], "heldout_clean": []}
    for key, split in read.keys(ctx):
        if split != "holdout" or (found := critiques.get(key)) is None:
            continue
        wrong = {f.step for f in found.findings}
        name = "heldout_other_steps" if wrong else "heldout_clean"
        chosen[name] += [(key, k) for k in opened(key).own_steps if k not in wrong]
    for name, path in ctx.config.report.off_target.items():
        trace_files([path], f"report.off_target.{name}")  # an error that names the key
        named = [t for t in read_traces([path], ctx.read_options()) if isinstance(t, Trace)]
        free = [t for t in named if trace_key(t) not in held]
        if len(free) < len(named):
            ctx.console.warn(
                f"off-target: {len(named) - len(free)} traces of report.off_target.{name} are left out, "
                "because train.hold holds them"
            )
        chosen[name] = [(t, k) for t in free for k in t.own_steps]
    out = {}
    for name, steps in chosen.items():
        if len(steps) > ctx.config.report.off_target_steps:
            steps = random.Random(f"{name}:{ctx.config.run.seed}").sample(steps, ctx.config.report.off_target_steps)
        loaded = ((opened(t) if isinstance(t, str) else t, k) for t, k in steps)
        requests = [r for trace, k in loaded if (r := _request(ctx, trace, k)) is not None]
        if requests:
            out[name] = requests
    return out


def _request(ctx: RunContext, trace: Trace, step: int) -> ScoreRequest | None:
    try:
        rendered = ctx.renderer.step(trace, step)
    except HintdistillError as error:
        ctx.console.warn(f"off-target: {error.message}")
        return None
    ids = np.array(rendered.context_ids + rendered.step_ids, np.int64)
    if len(ids) > ctx.engine(ctx.model_folder).max_length:
        ctx.console.warn(f"off-target: trace {trace.id}, step {step} is longer than the model's context")
        return None
    return ScoreRequest(ids, len(rendered.context_ids), len(ids))


def _collect(
    ctx: RunContext,
    targets: StoredTargets,
    after: Mapping[str, After],
    off_target: dict[str, Movement],
    played: environment.Played,
    warnings: list[str],
) -> ReportInput:
    base = to_score.Found(ctx)
    injections = _injections(ctx, base)

    def context_of(key: str) -> tuple[str, str]:
        ids, at = injections[key].context_ids, injections[key].insert_at
        return ctx.renderer.decode(ids[:at][-400:]), ctx.renderer.decode(ids[at:])

    hinted = [t.key for t in targets.of_kind("hint").heads]
    from hintdistill.training.stage import read_summary

    trained = _trained(ctx)
    summary = read_summary(ctx.student_folder) if trained and ctx.elsewhere is None else None
    failures = ctx.rundir.store("failures").by_key()
    return ReportInput(
        manifest=ctx.rundir.manifest() | {"config": ctx.config.model_dump(mode="json")},
        trace_rows=ctx.rundir.on_disk("read", "traces"),
        splits=dict(read.keys(ctx)),
        critique_rows=ctx.rundir.on_disk("critique", "critiques"),
        critiques=base.critiques,
        injection_rows=ctx.rundir.on_disk("inject", "injections"),
        twin_counts=twins.counts(rows) if (rows := ctx.rundir.on_disk("twins", "twins")) else None,
        failures=[failures[k] for k in ctx.rundir.index("failures") or []],
        targets=targets,
        injections=injections,
        contexts=OnDemand(hinted, context_of),
        trained=[t.key for t in train.selected(ctx, targets).heads] if trained else [],
        train_summary=asdict(summary) if summary else None,
        after=after,
        evaluations=played.evaluations,
        episodes=played.episodes,
        off_target=off_target,
        warnings=warnings,
        twin_items=_twin_items(ctx, base),
        controls=None if ctx.elsewhere is not None else controls(ctx.rundir),
        holds=hold.counts(ctx),
        folder=ctx.rundir.path,
        owed=len(critique.owed(ctx)),
        tripwires=_tripwires(ctx) if summary else None,
        readings=(_readings(ctx) or ()) if summary else (),
        decode=ctx.renderer.decode,
    )


def _injections(ctx: RunContext, base: to_score.Found) -> OnDemand[Injection]:
    """Return the injections by their targets' keys, scored or not, each read from disk on access."""
    at: dict[str, str] = {}
    rows, grouped = ctx.rundir.rows("injections"), ctx.rundir.grouped("inject", "injections")
    for key, split in read.keys(ctx):
        for row in grouped.of(key):
            if "injection" in row:
                at[base.target_key(content_key("injection", row["injection"]), split)] = row["key"]
    last: dict[str, Injection] = {}

    def injection_of(key: str) -> Injection:
        if key not in last:
            last.clear()
            last[key] = Injection.model_validate(rows[at[key]]["injection"])
        return last[key]

    return OnDemand(list(at), injection_of)


def _twin_items(ctx: RunContext, base: to_score.Found) -> OnDemand[TwinItem]:
    """Return the twins by their targets' keys, scored or not, each read from disk on access."""
    at: dict[str, tuple[str, int, Split, str]] = {}
    for key, split in read.keys(ctx):
        at |= {p.key: (p.row, p.number, split, p.of) for p in base.twin_places(key, split)}
    rows = ctx.rundir.rows("twins")

    def item_of(key: str) -> TwinItem:
        row, number, split, of = at[key]
        return TwinItem(key, Twin.model_validate(rows[row]["twins"][number]), split, of)

    return OnDemand(at, item_of)


def _readings(ctx: RunContext) -> list[dict[str, Any]] | None:
    """Return the metrics of the run's training, row by row; None if they no longer exist."""
    work = ctx.rundir.index(train.WORK_INDEX)
    path = ctx.rundir.path / "train" / work[0] / "metrics.jsonl" if work else None
    if path is None or not path.is_file():
        return None
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _tripwires(ctx: RunContext) -> list[dict[str, Any]] | None:
    """Return the bounds that the run's training exceeded under `train.tripwires.action: warn`, from its metrics; None
    if they no longer exist."""
    rows = _readings(ctx)
    if rows is None:
        return None
    return [{k: r[k] for k in ("step", "tripwire", "value", "bound")} for r in rows if "tripwire" in r]
