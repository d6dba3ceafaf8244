"""The twins of a run: which findings have one, kept in `twins.jsonl`; the inject stage makes them after its injections."""

from __future__ import annotations

from dataclasses import dataclass

from hintdistill.core.storage import content_key
from hintdistill.core.types import Split, Twin
from hintdistill.pipeline import read
from hintdistill.pipeline.context import RunContext


@dataclass(frozen=True)
class LoadedTwin:
    """A current twin and where it belongs."""

    key: str
    """Content key of the twin itself, so that an unchanged one keeps its target."""
    trace_key: str
    twin: Twin
    split: Split


def load(ctx: RunContext) -> list[LoadedTwin]:
    """The current twins, in the order of their traces and findings."""
    splits = {key: split for key, _, split in read.load(ctx)}
    out = []
    for row in ctx.rundir.current("twins", "twins"):
        for made in row.get("twins", ()):
            twin = Twin.model_validate(made)
            out.append(LoadedTwin(content_key("twin", made), row["trace"], twin, splits[row["trace"]]))
    return out
