"""The on-policy loop over the stages: the traces of each round are fresh episodes of the current student.

```
rounds/<n>/episodes.jsonl   one row per episode, failed ones with their reason
rounds/<n>/rollouts.jsonl   the traces among them
rounds/<n>/run/             the round's own run folder: critiques, injections, targets, student
hold-traces.jsonl           what `train.hold.split` holds, if it is set: the initial policy's episodes, the same in every round
outcomes.jsonl              one row per (weights, split, temperature): how every task went
rounds.jsonl                one row per finished round: the curves
rounds.json, report.json    the same as one document
student/                    the last good student
```

A kill in any round costs the work of one batch: episodes are rows, a round's stages resume like those of any run, and a
finished round is a row. The configuration chooses the critic; a success label is used to measure and never to select.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hintdistill.config import OUTPUT_KEYS, RunConfig
from hintdistill.core.errors import EmptyFunnelError, EnvironmentFailure, TripwireError
from hintdistill.core.models import model_key
from hintdistill.core.paths import contents, object_content
from hintdistill.core.scores import ScoreRequest
from hintdistill.core.storage import content_key, write_atomic
from hintdistill.pipeline import critique, hold, rescore
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.playing import Player, episode_of, episode_row
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.replaying import Replayer
from hintdistill.pipeline.stages import each_stage, write_report
from hintdistill.pipeline.store import RunDir
from hintdistill.rescoring.drift import movement
from hintdistill.rollouts.environment import TaskSuite
from hintdistill.rollouts.evaluate import Outcome, load_suite, lost_changes, outcome_of, summarise, tasks_of
from hintdistill.rollouts.measure import Setting, describe, measured_from, off_target_sets, options_of, played_from
from hintdistill.rollouts.sampling import Episode, Sampler
from hintdistill.traces.formats import native

if TYPE_CHECKING:
    from hintdistill.engines.transformers import TransformersEngine

ROUNDS_SCHEMA = 1


class Loop:
    """Run the loop in its folder."""

    def __init__(self, config: RunConfig, rundir: RunDir, console: Console) -> None:
        self.config, self.rundir, self.console = config, rundir, console
        self.engines: dict[Path, TransformersEngine] = {}
        self.top = RunContext(config, rundir, console, self.engines)
        environment = config.rollout.environment
        self._suite = None if environment is None else load_suite(environment)
        """None without an environment: then nothing is played and success is not measured."""
        self.environment = None if environment is None else object_content(environment)
        self.player = self._player()
        self.plays: Path | None = None
        """Who samples the next round's episodes, if not the student with which the round begins."""

    @property
    def suite(self) -> TaskSuite:
        """Return the environment's tasks; call it only if there is an environment."""
        assert self._suite is not None
        return self._suite

    def _player(self) -> Player:
        """Return the object that makes the traces of a round."""
        if self.config.rollout.source == "replay":
            return Replayer(self.top)
        return Player(self.top, self.suite)

    # -- one round -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Play the rounds that are not finished.

        Raises:
            TripwireError: the student collapsed or moved too far; `student/` contains the last good one.
            EmptyFunnelError: the first round gave nothing to train on.
        """
        assert self.config.run.rounds is not None
        student, rows = self.top.model_folder, self.rundir.store("rounds").by_key()
        before = self.plays = student
        self._measure_initial()
        if self.config.train.hold.split is not None:
            hold.write_for_rounds(self.top, self.hold_file)
        current: list[str] = []
        for number in range(1, self.config.run.rounds + 1):
            key = self._round_key(number, student)
            if key not in rows:
                self.rundir.store("rounds").append({"key": key, "round": number, **self._round(number, student)})
                rows = self.rundir.store("rounds").by_key()
            current.append(key)
            self.rundir.set_index("rounds", current)
            row = rows[key]
            # with `rollout.overlap` the next round's episodes are sampled while this one trains, by the student it began with
            self.plays = student if self.config.rollout.overlap else None
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
                    hint=f"the last good student is {good if good.exists() else 'the initial one'}",
                )
            if row["stop"]:
                break

    def _round_key(self, number: int, student: Path) -> str:
        settings = self.config.model_dump(
            mode="json", exclude={"run": {"dir", "rounds"}, "train": set(OUTPUT_KEYS), "report": True}
        )
        return content_key("round", number, model_key(student).weights, contents(settings, RunConfig))

    def _round(self, number: int, student: Path) -> dict[str, Any]:
        """Play, critique, inject, rescore, train and measure; an early stop is recorded in the row."""
        self.console.note(f"round {number}")
        keep = {self.top.initial_folder, student}
        for folder in [f for f in self.engines if f not in keep]:
            del self.engines[folder]
        row: dict[str, Any] = {"trained": False, "tripwire": False, "stop": None}
        sampler = student if self.plays is None else self.plays
        episodes = self.episodes(number, sampler)
        failed = [e for e in episodes if e.failure is not None]
        row["episodes"] = {"played": len(episodes), "failed": len(failed), "reasons": _count(e.failure for e in failed)}
        if self.config.rollout.source == "environment":
            row["episodes"]["success_rate"] = float(np.mean([(e.trace.reward or 0.0) > 0.5 for e in episodes]))
        cut = [e.cut for e in episodes if e.failure is None and e.cut is not None]
        row["episodes"]["cut"] = len(cut)
        if self.config.rollout.overlap:
            row["episodes"]["trainings_old"] = int(sampler != student)
        if cut:
            self.console.note(
                f"{len(cut)} of {len(episodes)} episodes reached a token limit, so their last step is truncated"
            )
        if collapse := collapsed(len(failed) + len(cut), len(episodes), self.config):
            return row | {"tripwire": True, "collapsed_in_play": True, "stop": collapse}
        rundir = RunDir.create(self.round_folder(number) / "run", self.round_config(number, student), resume=True)
        try:
            return self._stages(number, RunContext(rundir_config(rundir), rundir, self.console, self.engines), row)
        finally:
            rundir.close()

    def _stages(self, number: int, ctx: RunContext, row: dict[str, Any]) -> dict[str, Any]:
        """Run the stages up to the student, then measure it. If a later round has nothing to train on, the loop
        ends."""
        try:
            with ExitStack() as beside:
                for stage in each_stage(ctx, until="train"):
                    stop = None
                    if stage == "critique":
                        stop = self._count_findings(ctx, row)
                    elif stage == "rescore":
                        stop = self._weigh_hints(number, ctx, row)
                        if stop is None and self.config.rollout.overlap and number < (self.config.run.rounds or 0):
                            ahead = self.player.ahead(number + 1, ctx.model_folder, self.round_folder(number + 1))
                            beside.enter_context(ahead)
                    if stop is not None:
                        return row | {"stop": stop}
        except EmptyFunnelError as error:
            if number == 1:
                raise
            return row | {"stop": error.message}
        except TripwireError as error:
            return row | {"tripwire": True, "stop": error.message}
        write_report(ctx)
        row["trained"] = True
        return row | self._after(ctx)

    def _count_findings(self, ctx: RunContext, row: dict[str, Any]) -> str | None:
        """Record the number of root errors in the row, and return why the loop ends here if there are too few."""
        roots = [f for c in critique.load(ctx).values() for f in c.findings if f.caused_by is None]
        row["findings"] = {"roots": len(roots), "by_class": _count(f.error_class for f in roots)}
        few = len(roots) < self.config.rollout.stop.min_findings
        return f"no findings left: {len(roots)} root errors" if few else None

    def _weigh_hints(self, number: int, ctx: RunContext, row: dict[str, Any]) -> str | None:
        """Record the hints' effect in the row, and return why the loop ends here if hints have no effect left in a
        later round."""
        hints = rescore.load(ctx).where(lambda t: t.kind == "hint")
        effects = [t.decision.effect if t.decision else 0.0 for t in hints]
        row["effect"] = {
            "scored": len(hints),
            "accepted": sum(t.accepted for t in hints.heads),
            "median_nats": float(np.median(effects)) if effects else None,
        }
        if number == 1:
            return None
        if not effects or -float(np.median(effects)) < self.config.rollout.stop.min_effect_nats:
            return "hint effect gone"
        return None if row["effect"]["accepted"] else "no hint was accepted"

    def _after(self, ctx: RunContext) -> dict[str, Any]:
        """Measure success, error rates and movement of the round's student; exceeding a bound is a tripwire."""
        student = ctx.student_folder
        out: dict[str, Any] = {"off_target": self._off_target(ctx)}
        worst = max((m["kl_per_token"] for m in out["off_target"].values()), default=0.0)
        bound = self.config.rollout.stop.max_off_target_kl
        if bound is not None and not worst <= bound:
            return out | {"tripwire": True, "stop": f"off-target KL {worst:.3g} nats per token is above {bound:g}"}
        try:
            out["environment"] = self.measure(student)
        except EnvironmentFailure as error:
            return out | {"tripwire": True, "stop": f"collapse: {error.message}"}
        for setting in self.settings():
            first, now = (summarise(self.outcomes(folder, setting)) for folder in (self.top.model_folder, student))
            if lost := lost_changes(first, now, self.config.rollout.stop.max_changes_drop):
                return out | {"tripwire": True, "stop": f"{setting.name}: {lost}"}
        played = [o for s in self.settings() for o in self.outcomes(student, s)]
        if collapse := collapsed(sum(o.failure is not None for o in played), len(played), self.config):
            return out | {"tripwire": True, "stop": f"{collapse} when measured"}
        return out

    # -- episodes --------------------------------------------------------------------------------------------------------

    def round_folder(self, number: int) -> Path:
        """Return the folder of a round."""
        return self.rundir.path / "rounds" / f"{number:02d}"

    @property
    def hold_file(self) -> Path:
        """Return the file of the initial policy's episodes of `train.hold.split`, which are played once and held in
        every round."""
        return self.rundir.path / "hold-traces.jsonl"

    def episodes(self, number: int, student: Path) -> list[Episode]:
        """Play the round's episodes and write their traces; existing episodes are not played again."""
        folder = self.round_folder(number)
        episodes = self.player.episodes(number, student, folder)
        native.write(folder / "rollouts.jsonl", (e.trace for e in episodes if e.failure is None))
        return episodes

    def round_config(self, number: int, student: Path) -> RunConfig:
        """Return the configuration of a round's own run folder."""
        data = self.config.model_dump(mode="json")
        data["run"] |= {
            "model": str(student),
            "initial": str(self.top.initial_folder),
            "rounds": None,
            "dir": str(self.round_folder(number) / "run"),
        }
        data["train"]["push"] = None  # the last good student is pushed, not each round's
        if self.config.train.hold.split is not None:
            data["train"]["hold"] |= {"split": None, "path": [str(self.hold_file)]}
        data["traces"]["path"] = [str(self.round_folder(number) / "rollouts.jsonl")]
        if self.config.rollout.source == "replay":
            # the fresh steps are written by this package, whatever wrote the recorded traces
            data["rollout"]["source"] = "environment"
            data["traces"] |= {
                "format": "auto",
                "student_role": "assistant",
                "token_ids": "use",
                "tools": None,
                "limit": None,
            }
        return RunConfig.model_validate(data)

    # -- measuring -------------------------------------------------------------------------------------------------------

    def settings(self) -> list[Setting]:
        """Return the settings measured after each round: every split, greedily (or as configured) and as sampled."""
        if self._suite is None:
            return []
        section = self.config.rollout
        each = dict.fromkeys(Setting.of("", how) for how in (measured_from(section), played_from(section)))
        return [Setting.of(split, setting.how) for split in section.splits for setting in each]

    def measure(self, student: Path) -> dict[str, Any]:
        """Return success and error rates by setting; outcomes by task become rows."""
        return {s.name: asdict(summarise(self.outcomes(student, s))) for s in self.settings()}

    def outcomes(
        self, student: Path, setting: Setting, patterns: Sequence[str] = ("*",), limit: int | None = None
    ) -> list[Outcome]:
        """Return the outcome of every task of a setting with these weights; tasks are played if it is unknown."""
        tasks = tasks_of(self.suite, setting.split, limit or self.config.rollout.limit, patterns)
        options = options_of(self.config.rollout, setting.how, self.config.run.seed)
        key = content_key("outcomes", model_key(student).weights, self.environment, tasks, describe(options))
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
        """Return off-target sets from the initial policy's own episodes on the first measured split."""
        setting = Setting.of(self.config.rollout.splits[0], played_from(self.config.rollout))
        tasks = tasks_of(self.suite, setting.split, self.config.rollout.limit)
        options = options_of(self.config.rollout, setting.how, self.config.run.seed)
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

    def _off_target(self, ctx: RunContext) -> dict[str, Any]:
        if self._suite is None:
            # the round's own clean steps of held-out tasks, where its critic found nothing
            from hintdistill.pipeline.report import off_target_sets as of_run

            sets = of_run(ctx)
        else:
            sets = self._off_target_sets
        out = {}
        for name, requests in sets.items():
            found = movement(self.top.engine(self.top.initial_folder), self.top.engine(ctx.student_folder), requests)
            if found is not None:
                out[name] = asdict(found)
        return out

    def _measure_initial(self) -> None:
        self.measure(self.top.model_folder)

    # -- what is written -------------------------------------------------------------------------------------------------

    def _write(self, student: Path) -> None:
        """Write the document of the rounds so far, and the last good student."""
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
        """Write the card of a round's student, with the loop's measurements."""
        from hintdistill.training.card import write_card

        number = int(run.parent.name)
        row = next(r for r in document["rounds"] if r["round"] == number)
        splits = {
            name: {"before": before, "after": row["environment"][name]} for name, before in document["initial"].items()
        }
        said = json.loads((run / "report.json").read_text(encoding="utf-8"))
        environment = {"splits": splits} if splits else None
        said |= {"round": number, "environment": environment, "off_target": row["off_target"]}
        write_card(into, said, RunDir(run).manifest().get("formats", {}), self.top.initial_folder)

    def _say(self, row: Mapping[str, Any]) -> None:
        success = ", ".join(f"{name} {e['success_rate']:.3f}" for name, e in row.get("environment", {}).items())
        self.console.note(
            f"round {row['round']}: {success or 'not measured'}{'; ' + row['stop'] if row['stop'] else ''}"
        )


def collapsed(failed: int, played: int, config: RunConfig) -> str | None:
    """Return a message if too many of the student's episodes failed without a result; None otherwise."""
    if failed <= config.rollout.stop.max_failed_share * played:
        return None
    return f"collapse: {failed} of {played} episodes failed without a result"


def run_rounds(config: RunConfig, rundir: RunDir, console: Console) -> None:
    """Run the loop in an open run folder; see `Loop.run`."""
    from hintdistill.training.trackers import one_trackio_folder

    with one_trackio_folder(config.train, rundir.path):
        Loop(config, rundir, console).run()


def rundir_config(rundir: RunDir) -> RunConfig:
    """Return the configuration with which a run folder was opened."""
    return rundir.config()[0]


def _count(items: Any) -> dict[str, int]:
    out: dict[str, int] = {}
    for item in items:
        out[str(item)] = out.get(str(item), 0) + 1
    return dict(sorted(out.items()))
