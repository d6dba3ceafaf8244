"""Measure success in the environment before and after training, and keep the underlying episodes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hintdistill.core.paths import object_content
from hintdistill.core.storage import content_key
from hintdistill.core.trust import UntrustedError
from hintdistill.pipeline.context import RunContext
from hintdistill.reporting.transcripts import transcript
from hintdistill.rollouts.evaluate import Evaluation, Outcome, evaluate, load_suite, lost_changes, tasks_of
from hintdistill.rollouts.measure import describe, measured_from, options_of
from hintdistill.rollouts.sampling import Episode


@dataclass(frozen=True)
class Played:
    """Hold the results of playing; empty if there is no environment."""

    evaluations: dict[str, dict[str, Evaluation]] = field(default_factory=dict)
    """By split, then `before` and `after`."""
    episodes: list[Mapping[str, Any]] = field(default_factory=list)
    """Rows of episodes.jsonl on which these figures are based; empty for runs played by an older release."""


def play(ctx: RunContext, student: str | None) -> Played:
    """Play the missing episodes with the initial policy and with the student.

    Args:
        student: key of the student's weights; None if nothing was trained.
    """
    section = ctx.config.rollout
    if section.environment is None:
        return Played()
    try:
        suite = load_suite(section.environment)
    except UntrustedError as error:
        ctx.console.warn(
            f"success in the environment was not measured: {error.message}; `hintdistill report --trust` measures it"
        )
        return Played()
    content = object_content(section.environment)
    options = options_of(section, measured_from(section), ctx.config.run.seed)
    store, kept = ctx.rundir.store("evaluations"), ctx.rundir.store("episodes")
    out: dict[str, dict[str, Evaluation]] = {}
    done, keys = store.by_key(), []
    whom: list[tuple[str, Path, str]] = [("before", ctx.model_folder, str(ctx.model_key))]
    if student is not None:
        whom.append(("after", ctx.student_folder, student))
    for split in section.splits:
        tasks = tasks_of(suite, split, section.limit)
        for when, folder, weights in whom:
            key = content_key("evaluation", weights, content, split, tasks, describe(options))
            keys.append(key)
            if key not in done:
                rows = _Rows(key, split, when)
                with ctx.console.progress(f"{split} {when}", len(tasks)) as advance:
                    result = evaluate(ctx.engine(folder), ctx.renderer, suite, tasks, options, advance, rows.add)
                kept.extend(rows.rows)
                store.append({"key": key, "split": split, "when": when, "evaluation": asdict(result)})
                done = store.by_key()
            out.setdefault(split, {})[when] = Evaluation(**done[key]["evaluation"])
        played, bound = out[split], section.stop.max_changes_drop
        if student is not None and (lost := lost_changes(played["before"], played["after"], bound)):
            ctx.console.warn(f"{split}: {lost}")
    return Played(out, [row for row in kept.by_key().values() if row["evaluation"] in keys])


class _Rows:
    """Collect the episodes of one evaluation as rows."""

    def __init__(self, evaluation: str, split: str, when: str) -> None:
        self._of = {"evaluation": evaluation, "split": split, "when": when}
        self.rows: list[dict[str, Any]] = []

    def add(self, episode: Episode, outcome: Outcome) -> None:
        """Add an episode and its outcome. The text of an episode that succeeded after training is not kept, because it
        is never inspected."""
        text = None
        if self._of["when"] == "before" or not outcome.success:
            text = transcript(episode.trace.model_dump(mode="json")["messages"])
        self.rows.append(
            {
                "key": content_key("episode", self._of["evaluation"], outcome.task),
                **self._of,
                "task": outcome.task,
                "success": outcome.success,
                "errors": list(outcome.errors),
                "failure": outcome.failure,
                "text": text,
            }
        )
