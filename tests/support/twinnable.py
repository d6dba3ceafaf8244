"""Settings of a run on a few traces of the example world whose findings have twins."""

from __future__ import annotations

from conftest import STUDENT, TOOLWORLD

TWINNABLE = (
    f"run.model={STUDENT}",
    f"traces.path={TOOLWORLD / 'traces.jsonl'}",
    "traces.limit=24",
    "critic.use=[rules,recorded]",
    f"critic.recorded.path={TOOLWORLD / 'findings.jsonl'}",
    "critic.recorded.error_classes=[skipped_lookup]",
    f"critic.prompts={TOOLWORLD / 'prompts'}",
)
