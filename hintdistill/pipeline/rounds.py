"""The on-policy loop over the stages: fresh episodes of the current student are the traces of each round.

```
rounds/<n>/episodes.jsonl   one row per episode, failed ones with their reason
rounds/<n>/rollouts.jsonl   the traces among them
rounds/<n>/run/             the round's own run folder: critiques, injections, targets, student
outcomes.jsonl              one row per (weights, split, temperature): how every task went
rounds.jsonl                one row per finished round: the curves
rounds.json, report.json    the same as one document
student/                    the last good student
```

A kill in any round costs the work of one batch: episodes are rows, a round's stages resume as any run does, and a finished
round is a row. The critic is whatever the config names; a success label is used to measure and never to select.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hintdistill.config import OUTPUT_KEYS, RunConfig
from hintdistill.core.errors import EmptyFunnelError, EnvironmentFailure, TripwireError
from hintdistill.core.models import model_key
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.storage import content_key, write_atomic
from hintdistill.core.types import Trace
from hintdistill.pipeline import critique, rescore
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.drift import movement
from hintdistill.rollouts.evaluate import Outcome, load_suite, outcome_of, summarise, tasks_of
from hintdistill.rollouts.measure import Setting, describe, off_target_sets, options_of
from hintdistill.rollouts.sampling import Episode, Sampler
from hintdistill.traces.formats import native

if TYPE_CHECKING:
    from hintdistill.engines.transformers import TransformersEngine

ROUNDS_SCHEMA = 1


class Loop:
    """One run of the loop, in its folder."""

    def __init__(self, config: RunConfig, rundir: RunDir, console: Console) -> None:
        self.config, self.rundir, self.console = config, rundir, console
        self.engines: dict[Path, TransformersEngine] = {}
        self.top = RunContext(config, rundir, console, self.engines)
        assert config.rollout.environment is not None
        self.suite = load_suite(config.rollout.environment)

    # -- one round -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play the rounds that are owed.

        Raises:
            TripwireError: the student collapsed or moved too far; `student/` holds the last good one.
            EmptyFunnelError: the first round had nothing to train on.
        """
        assert self.config.run.rounds is not None
        student, rows = self.top.model_folder, self.rundir.store("rounds").by_key()
        before = student
        self._measure_initial()
        current: list[str] = []
        for number in range(1, self.config.run.rounds + 1):
            key = self._round_key(number, student)
            if key not in rows:
                self.rundir.store("rounds").append({"key": key, "round": number, **self._round(number, student)})
                rows = self.rundir.store("rounds").by_key()
            current.append(key)
            self.rundir.set_index("rounds", current)
            row = rows[key]
            if row.get("collapsed_in_play"):
                # it is the student that played who collapsed, so the last good one is the one before it
                student = before
            elif row["trained"] and not row["tripwire"]:
                before, student = student, self.round_folder(number) / "run" / "student"
            self._write(student)
            self._say(row)
            if row["tripwire"]:
                good = self.rundir.path / "student"
                raise TripwireError(
                    f"round {number}: {row['stop']}",
                    hint=f"the last good student is {good if good.exists() else 'the one it started from'}",
                )
            if row["stop"]:
                break

    def _round_key(self, number: int, student: Path) -> str:
        settings = self.config.model_dump(
            mode="json", exclude={"run": {"dir", "rounds"}, "train": set(OUTPUT_KEYS), "report": True}
        )
        return content_key("round", number, model_key(student).weights, settings)

    def _round(self, number: int, student: Path) -> dict[str, Any]:
        """Play, critique, inject, rescore, train, measure; stops early are part of the row."""
        self.console.note(f"round {number}")
        keep = {self.top.initial_folder, student}
        for folder in [f for f in self.engines if f not in keep]:
            del self.engines[folder]
        row: dict[str, Any] = {"trained": False, "tripwire": False, "stop": None}
        episodes = self.episodes(number, student)
        failed = [e for e in episodes if e.failure is not None]
        row["episodes"] = {"played": len(episodes), "failed": len(failed), "reasons": _count(e.failure for e in failed)}
        row["episodes"]["success_rate"] = float(np.mean([(e.trace.reward or 0.0) > 0.5 for e in episodes]))
        if collapse := collapsed(len(failed), len(episodes), self.config):
            return row | {"tripwire": True, "collapsed_in_play": True, "stop": collapse}
        rundir = RunDir.create(self.round_folder(number) / "run", self.round_config(number, student), resume=True)
        try:
            return self._stages(number, RunContext(rundir_config(rundir), rundir, self.console, self.engines), row)
        finally:
            rundir.close()

    def _stages(self, number: int, ctx: RunContext, row: dict[str, Any]) -> dict[str, Any]:
        from hintdistill.pipeline import _module

        stop = self.config.rollout.stop
        _module("read").run(ctx)
        try:
            _module("outcome").require_outcomes(ctx)
        except EmptyFunnelError as error:
            if number == 1:
                raise
            return row | {"stop": error.message}
        _module("critique").run(ctx)
        critiques = critique.load(ctx)
        roots = [f for c in critiques.values() for f in c.findings if f.caused_by is None]
        row["findings"] = {"roots": len(roots), "by_class": _count(f.error_class for f in roots)}
        if len(roots) < stop.min_findings:
            return row | {"stop": f"no findings left: {len(roots)} root errors"}
        _module("inject").run(ctx)
        _module("rescore").run(ctx)
        hints = [t for t in rescore.load(ctx) if t.kind == "hint"]
        effects = [t.decision.effect if t.decision else 0.0 for t in hints]
        row["effect"] = {
            "scored": len(hints),
            "accepted": sum(t.accepted for t in hints),
            "median_nats": float(np.median(effects)) if effects else None,
        }
        gone = not effects or -float(np.median(effects)) < stop.min_effect_nats
        if number > 1 and (gone or not any(t.accepted for t in hints)):
            return row | {"stop": "hint effect gone" if gone else "no hint was accepted"}
        try:
            _module("train").run(ctx)
        except EmptyFunnelError as error:
            if number == 1:
                raise
            return row | {"stop": error.message}
        except TripwireError as error:
            return row | {"tripwire": True, "stop": error.message}
        _module("report").write(ctx, measure=False)
        row["trained"] = True
        return row | self._after(number, ctx.student_folder)

    def _after(self, number: int, student: Path) -> dict[str, Any]:
        """Success, error rates and movement of the round's student; a bound that is crossed is a tripwire."""
        out: dict[str, Any] = {"off_target": self._off_target(student)}
        worst = max((m["kl_per_token"] for m in out["off_target"].values()), default=0.0)
        bound = self.config.rollout.stop.max_off_target_kl
        if bound is not None and not worst <= bound:
            return out | {"tripwire": True, "stop": f"off-target KL {worst:.3g} nats per token is above {bound:g}"}
        try:
            out["environment"] = self.measure(student)
        except EnvironmentFailure as error:
            return out | {"tripwire": True, "stop": f"collapse: {error.message}"}
        played = [o for s in self.settings() for o in self.outcomes(student, s)]
        if collapse := collapsed(sum(o.failure is not None for o in played), len(played), self.config):
            return out | {"tripwire": True, "stop": f"{collapse} when measured"}
        return out

    # -- episodes --------------------------------------------------------------------------------------------------------

    def round_folder(self, number: int) -> Path:
        """Where a round lies."""
        return self.rundir.path / "rounds" / f"{number:02d}"

    def episodes(self, number: int, student: Path) -> list[Episode]:
        """The round's episodes; those that are there already are not played again."""
        folder, sample, seed = self.round_folder(number), self.config.rollout.sample, self.config.run.seed
        folder.mkdir(parents=True, exist_ok=True)
        known = tasks_of(self.suite, sample.split, None, sample.tasks)
        tasks = draw_tasks(known, sample.episodes, number, seed, sample.per_task)
        options = options_of(self.config.rollout, sample.temperature, seed * 1000 + number, logprobs=True)
        # the seed draws a batch at a time, so a batch is the unit that is played again
        base = content_key(
            "episode",
            model_key(student).weights,
            self.config.rollout.environment,
            describe(options),
            sample.backend,
            tasks,
        )
        store = RunDir(folder).store("episodes")
        have = store.by_key()
        keys = [f"{base}-{i}" for i in range(len(tasks))]
        size = options.batch_size
        owed = [at for at in range(0, len(tasks), size) if any(k not in have for k in keys[at : at + size])]
        if owed:
            sampler = Sampler(self._weights(student), self.top.renderer, options)
            with self.console.progress(f"play {number}", len(tasks)) as advance:
                advance(len(tasks) - sum(len(keys[at : at + size]) for at in owed))
                for at in owed:
                    played = list(sampler.episodes(self.suite, tasks[at : at + size], advance, first=at))
                    store.extend([episode_row(k, e) for k, e in zip(keys[at : at + size], played, strict=True)])
            have = store.by_key()
        episodes = [episode_of(have[k]) for k in keys]
        native.write(folder / "rollouts.jsonl", (e.trace for e in episodes if e.failure is None))
        return episodes

    def _weights(self, student: Path) -> Any:
        """Who samples: the weights in this process, or a server that is handed them."""
        engine = self.top.engine(student)
        if self.config.rollout.sample.backend == "transformers":
            return engine
        from hintdistill.rollouts.server import ServerGenerator

        server = ServerGenerator(self.config.rollout.sample.server, engine.max_length)
        gap = server.hand_over(student, engine, self._probe)
        self.console.note(f"handed {student} to the server; it is {gap:.2g} nats per token away")
        return server

    @cached_property
    def _probe(self) -> list[list[int]]:
        """What a server is compared on: the opening of a few tasks."""
        out = []
        for task in tasks_of(self.suite, self.config.rollout.sample.split, 4, self.config.rollout.sample.tasks):
            start = self.suite.make().reset(task)
            out.append(self.top.renderer.encode(self.top.renderer.render(start.messages, start.tools, header=True)))
        return out

    def round_config(self, number: int, student: Path) -> RunConfig:
        """The configuration of a round's own run folder."""
        data = self.config.model_dump(mode="json")
        data["run"] |= {
            "model": str(student),
            "initial": str(self.top.initial_folder),
            "rounds": None,
            "dir": str(self.round_folder(number) / "run"),
        }
        data["train"]["push"] = None  # the last good student is pushed, not each round's
        data["traces"]["path"] = [str(self.round_folder(number) / "rollouts.jsonl")]
        return RunConfig.model_validate(data)

    # -- measuring -------------------------------------------------------------------------------------------------------

    def settings(self) -> list[Setting]:
        """What is measured after each round: every split, greedy (or as configured) and as sampled."""
        section = self.config.rollout
        temperatures = dict.fromkeys((section.temperature, section.sample.temperature))
        return [Setting(split, t) for split in section.splits for t in temperatures]

    def measure(self, student: Path) -> dict[str, Any]:
        """Success and error rates by setting; outcomes by task are rows."""
        return {s.name: asdict(summarise(self.outcomes(student, s))) for s in self.settings()}

    def outcomes(
        self, student: Path, setting: Setting, patterns: Sequence[str] = ("*",), limit: int | None = None
    ) -> list[Outcome]:
        """How every task of a setting went with these weights; played where it is not known."""
        tasks = tasks_of(self.suite, setting.split, limit or self.config.rollout.limit, patterns)
        options = options_of(self.config.rollout, setting.temperature, self.config.run.seed)
        key = content_key(
            "outcomes", model_key(student).weights, self.config.rollout.environment, tasks, describe(options)
        )
        store = self.rundir.store("outcomes")
        row = store.by_key().get(key)
        if row is None:
            with self.console.progress(setting.name, len(tasks)) as advance:
                sampler = Sampler(self.top.engine(student), self.top.renderer, options)
                played = [asdict(outcome_of(self.suite, e)) for e in sampler.episodes(self.suite, tasks, advance)]
            row = {"key": key, "setting": setting.name, "outcomes": played}
            store.append(row)
        return [Outcome(**{**o, "errors": tuple(o["errors"])}) for o in row["outcomes"]]

    @cached_property
    def _off_target_sets(self) -> dict[str, list[ScoreRequest]]:
        """From the initial policy's own episodes on the first measured split."""
        setting = Setting(self.config.rollout.splits[0], self.config.rollout.sample.temperature)
        tasks = tasks_of(self.suite, setting.split, self.config.rollout.limit)
        options = options_of(self.config.rollout, setting.temperature, self.config.run.seed)
        key = content_key("off-target", self.top.model_key.weights, tasks, describe(options))
        store = self.rundir.store("initial")
        have = {k: r for k, r in store.by_key().items() if k.startswith(key)}
        if len(have) != len(tasks):
            sampler = Sampler(self.top.engine(self.top.model_folder), self.top.renderer, options)
            played = sampler.episodes(self.suite, tasks)
            store.extend([episode_row(f"{key}-{i}", e) for i, e in enumerate(played)])
            have = store.by_key()
        episodes = [episode_of(have[f"{key}-{i}"]) for i in range(len(tasks))]
        limit = self.config.report.off_target_steps
        return off_target_sets(self.suite, self.top.renderer, episodes, limit, self.config.run.seed)

    def _off_target(self, student: Path) -> dict[str, Any]:
        out = {}
        for name, requests in self._off_target_sets.items():
            found = movement(self.top.engine(self.top.initial_folder), self.top.engine(student), requests)
            if found is not None:
                out[name] = asdict(found)
        return out

    def _measure_initial(self) -> None:
        self.measure(self.top.model_folder)

    # -- what is written -------------------------------------------------------------------------------------------------

    def _write(self, student: Path) -> None:
        """The document of the rounds so far, and the last good student."""
        rows = self.rundir.current("rounds", "rounds")
        document = {
            "schema": ROUNDS_SCHEMA,
            "model": self.config.run.model,
            "critics": list(self.config.critic.use),
            "initial": self.measure(self.top.model_folder),
            "rounds": [{k: v for k, v in r.items() if k != "key"} for r in rows],
            "stop": rows[-1]["stop"] if rows else None,
        }
        text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        write_atomic(self.rundir.path / "rounds.json", text)
        write_atomic(self.rundir.path / "report.json", text)
        out, aside = self.rundir.path / "student", self.rundir.path / "student.writing"
        shutil.rmtree(aside, ignore_errors=True)
        if student != self.top.model_folder:
            shutil.copytree(student, aside)
            self._card(aside, student.parent, document)
        shutil.rmtree(out, ignore_errors=True)
        if aside.exists():
            aside.rename(out)

    def _card(self, into: Path, run: Path, document: Mapping[str, Any]) -> None:
        """The card of a round's student, with what the loop measured of it."""
        from hintdistill.training.card import write_card

        number = int(run.parent.name)
        row = next(r for r in document["rounds"] if r["round"] == number)
        splits = {
            name: {"before": before, "after": row["environment"][name]} for name, before in document["initial"].items()
        }
        said = json.loads((run / "report.json").read_text(encoding="utf-8"))
        said |= {"round": number, "environment": {"splits": splits}, "off_target": row["off_target"]}
        write_card(into, said, RunDir(run).manifest().get("formats", {}), self.top.initial_folder)

    def _say(self, row: Mapping[str, Any]) -> None:
        success = ", ".join(f"{name} {e['success_rate']:.3f}" for name, e in row.get("environment", {}).items())
        self.console.note(
            f"round {row['round']}: {success or 'not measured'}{'; ' + row['stop'] if row['stop'] else ''}"
        )


def collapsed(failed: int, played: int, config: RunConfig) -> str | None:
    """What to say of a student too many of whose episodes came to nothing; None of one that still works."""
    if failed <= config.rollout.stop.max_failed_share * played:
        return None
    return f"collapse: {failed} of {played} episodes came to nothing"


def run_rounds(config: RunConfig, rundir: RunDir, console: Console) -> None:
    """Run the loop in an open run folder; see `Loop.run`."""
    from hintdistill.training.trackers import one_trackio_folder

    with one_trackio_folder(config.train, rundir.path):
        Loop(config, rundir, console).run()


def rundir_config(rundir: RunDir) -> RunConfig:
    """The configuration a run folder was opened with."""
    return RunConfig.model_validate(rundir.manifest()["config"])


def draw_tasks(tasks: list[str], n: int, number: int, seed: int, per_task: int = 1) -> list[str]:
    """`n` tasks for a round, anew each round; every task once before any comes again, `per_task` in a row of each."""
    rng = random.Random(f"round:{number}:{seed}")
    out: list[str] = []
    while len(out) < n // per_task:
        deck = list(tasks)
        rng.shuffle(deck)
        out += deck[: n // per_task - len(out)]
    return [task for task in out for _ in range(per_task)]


def episode_row(key: str, episode: Episode) -> dict[str, Any]:
    """An episode as a row."""
    trace = episode.trace.model_dump(mode="json", exclude_defaults=True)
    return {"key": key, "task": episode.task, "trace": trace, "failure": episode.failure}


def episode_of(row: Mapping[str, Any]) -> Episode:
    """A row as an episode."""
    return Episode(row["task"], Trace.model_validate(row["trace"]), row["failure"])


def _count(items: Any) -> dict[str, int]:
    out: dict[str, int] = {}
    for item in items:
        out[str(item)] = out.get(str(item), 0) + 1
    return dict(sorted(out.items()))
