"""`hintdistill run --dry-run`: what a run would read and ask of whom, without a model and without writing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.config import RunConfig
from hintdistill.core.errors import HintdistillError
from hintdistill.core.model_shape import safetensors_header
from hintdistill.core.types import Trace
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.stages import check_inputs, stages_between
from hintdistill.pipeline.store import RunDir
from hintdistill.recipes import reads_reward


@dataclass(frozen=True)
class DryRun:
    """What a run would do; nothing is written and no model is loaded."""

    traces: int
    failures: int
    steps: int
    train_traces: int
    holdout_traces: int
    stages: tuple[str, ...]
    """The stages that would run, in order."""
    finished: tuple[str, ...]
    """Those of them that the continued run has finished; they do what a change of the configuration asks for."""
    critics: dict[str, dict[str, Any]]
    """See `critique.asked`; a server without critic.llm.tokenizer is counted at three bytes a token."""
    money: float | None
    """Upper bound over all critics; None if one of them asks a server and has no price."""
    tool_schemas: int
    recorded_ids: int
    """Steps whose token ids are recorded."""
    trace_bytes: int
    """Size of the trace files."""
    trace_tokens: int | None
    """Tokens of all traces as the student reads them, each once; None if run.model is no folder on this machine (a dry run
    downloads nothing), or no stage asks the student."""
    not_rendered: int
    """Traces that the student's template or tokenizer refuses; they are not among `trace_tokens`."""
    student_bytes: int | None
    """Size of the weights that training writes, in `train.save_dtype`; None if nothing is trained or the model is not here."""

    def lines(self) -> list[str]:
        """Return the same for a reader: what is done, then tokens, money and bytes."""
        held = f"{self.train_traces} to train on, {self.holdout_traces} held out"
        done = f" (finished before: {', '.join(self.finished)})" if self.finished else ""
        out = [
            f"stages: {', '.join(self.stages)}{done}",
            f"traces: {self.traces} with {self.steps} steps, {self.recorded_ids} of them with recorded token ids; {held}",
            f"tool schemas: {self.tool_schemas}",
        ]
        if self.failures:
            out.append(f"not read: {self.failures} records")
        if self.not_rendered:
            out.append(f"not rendered: {self.not_rendered} traces, which the student's template or tokenizer refuses")
        read = "unknown, the model is not on this machine" if self.trace_tokens is None else f"{self.trace_tokens:,}"
        out += [f"tokens: {read} in the traces as the student reads them, each once"] * ("inject" in self.stages)
        written = "" if self.student_bytes is None else f"; {self.student_bytes:,} of weights would be written"
        return [*out, *asked_lines(self.critics, self.money), f"bytes: {self.trace_bytes:,} of trace files{written}"]


def total_money(critics: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return what all critics would cost at most; None if one of them asks and has no price."""
    each = [of["money"] for of in critics.values()]
    return None if None in each else sum(each)


def asked_lines(critics: Mapping[str, Mapping[str, Any]], money: float | None) -> list[str]:
    """Return what would be asked of critics, for a reader."""
    said = [
        f"{name}: {of['requests']:,} requests, {of['prompt_tokens']:,} prompt tokens at most, {of['answer_tokens']:,} answer tokens at most"
        for name, of in critics.items()
    ]
    priced = "unknown, critic.<name>.price is not set" if money is None else f"{money:,.4f} at most"
    return [*said, f"money: {priced}"]


def dry_run(config: RunConfig, until: str = "report", *, folder: Path | None = None, trust: bool = False) -> DryRun:
    """Read the traces and say what the run would ask of whom.

    Raises what `check_inputs` raises, and ModelError for a model folder that renders nothing.

    Args:
        folder: the run that would be continued; what its critics said is not asked for again.
        trust: see `pipeline.run.run`.
    """
    with in_use(config, trust):
        return _dry_run(config, until, RunDir(folder) if folder is not None and RunDir(folder).is_run() else None)


def _dry_run(config: RunConfig, until: str, continued: RunDir | None) -> DryRun:
    from hintdistill.pipeline import critique, outcome
    from hintdistill.traces.files import trace_files
    from hintdistill.traces.groups import group_traces
    from hintdistill.traces.reading import read_traces

    check_inputs(config, until)
    ctx = RunContext(config, RunDir(Path()), Console(quiet=True))
    traces: list[Trace] = []
    failures = 0
    for read in read_traces(config.traces.path, ctx.read_options()):
        if isinstance(read, Trace):
            traces.append(read)
        else:
            failures += 1
        if config.traces.limit is not None and len(traces) == config.traces.limit:
            break
    splits = [ctx.split_of(group) for group in group_traces(traces)]
    stages = tuple(stage.name for stage in stages_between(until=until))
    rows = {} if continued is None else continued.store("critiques").by_key()
    made = [key for key, row in rows.items() if not row.get("failure", {}).get("retryable")]
    critics = critique.asked(ctx, traces, made)
    trains = "train" in stages
    if trains and config.run.rounds is None and reads_reward(config.train.effective_recipe):
        outcome.check_outcomes(config, [t for t, s in zip(traces, splits, strict=True) if s == "train"])
    tokens, refused = _tokens(ctx, traces) if "inject" in stages else (None, 0)
    return DryRun(
        traces=len(traces),
        failures=failures,
        steps=sum(len(t.step_indices) for t in traces),
        train_traces=splits.count("train"),
        holdout_traces=splits.count("holdout"),
        stages=stages,
        finished=() if continued is None else tuple(n for n in stages if continued.index(n) is not None),
        critics=critics,
        money=total_money(critics),
        tool_schemas=len({name for t in traces for name in t.tool_schemas}),
        recorded_ids=sum(t.messages[i].token_ids is not None for t in traces for i in t.step_indices),
        trace_bytes=sum(p.stat().st_size for p in trace_files(config.traces.path, "traces.path")),
        trace_tokens=tokens,
        not_rendered=refused,
        student_bytes=student_bytes(config) if trains else None,
    )


def _tokens(ctx: RunContext, traces: Sequence[Trace]) -> tuple[int | None, int]:
    """Tokens of the traces up to the end of the last step that is the student's own, and how many could not be rendered."""
    if not Path(ctx.config.run.model).is_dir():
        return None, 0
    total, refused = 0, 0
    for trace in (t for t in traces if t.own_steps):
        try:
            step = ctx.renderer.step(trace, trace.own_steps[-1])
        except HintdistillError:
            refused += 1
            continue
        total += len(step.context_ids) + len(step.step_ids)
    return total, refused


def student_bytes(config: RunConfig) -> int | None:
    """Size of whole weights; None if they are not here, or where an adapter alone is written."""
    files = sorted(Path(config.run.model).glob("*.safetensors"))
    if not files or (config.train.lora is not None and config.train.save == "adapter"):
        return None
    if config.train.save_dtype == "auto":
        return sum(f.stat().st_size for f in files)
    width = {"float32": 4, "bfloat16": 2}[config.train.save_dtype]
    return width * sum(math.prod(t["shape"]) for f in files for t in safetensors_header(f).values())
