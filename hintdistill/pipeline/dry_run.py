"""`hintdistill run --dry-run`: list what a run would read and which critics it would ask, without a model and without
writing.
"""

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
    """Describe the work of a run; nothing is written and no model is loaded."""

    traces: int
    failures: int
    steps: int
    train_traces: int
    holdout_traces: int
    stages: tuple[str, ...]
    """The stages that would run, in order."""
    finished: tuple[str, ...]
    """Stages that the continued run has already finished; they run again only for changes of the configuration."""
    critics: dict[str, dict[str, Any]]
    """See `critique.asked`; for a server without critic.llm.tokenizer, three bytes are counted as a token."""
    money: float | None
    """Upper bound over all critics; None if one of them asks a server and has no price."""
    tool_schemas: int
    recorded_ids: int
    """Number of steps whose token ids are recorded."""
    trace_bytes: int
    """Size of the trace files."""
    trace_tokens: int | None
    """Tokens of all traces as the student reads them, each counted once. None if run.model is not a folder on this
    machine (a dry run downloads nothing), or if no stage uses the student."""
    not_rendered: int
    """Number of traces that the student's template or tokenizer refuses; `trace_tokens` does not include them."""
    student_bytes: int | None
    """Size of the weights that training writes, in `train.save_dtype`; None if nothing is trained or the model is not
    on this machine."""

    def lines(self) -> list[str]:
        """Return the same as lines of text: the work, then tokens, money and bytes."""
        held = f"{self.train_traces} to train on, {self.holdout_traces} held out"
        done = f" (already finished: {', '.join(self.finished)})" if self.finished else ""
        out = [
            f"stages: {', '.join(self.stages)}{done}",
            f"traces: {self.traces} with {self.steps} steps, of which {self.recorded_ids} have recorded "
            f"token ids; {held}",
            f"tool schemas: {self.tool_schemas}",
        ]
        if self.failures:
            out.append(f"not read: {self.failures} records")
        if self.not_rendered:
            out.append(f"not rendered: {self.not_rendered} traces refused by the student's template or tokenizer")
        read = (
            "unknown, because the model is not on this machine"
            if self.trace_tokens is None
            else f"{self.trace_tokens:,}"
        )
        out += [f"tokens: {read} in the traces as the student reads them, each counted once"] * (
            "inject" in self.stages
        )
        written = "" if self.student_bytes is None else f"; {self.student_bytes:,} of weights would be written"
        return [*out, *asked_lines(self.critics, self.money), f"bytes: {self.trace_bytes:,} of trace files{written}"]


def total_money(critics: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Return an upper bound on the cost of all critics; None if one of them asks a server and has no price."""
    each = [of["money"] for of in critics.values()]
    return None if None in each else sum(each)


def asked_lines(critics: Mapping[str, Mapping[str, Any]], money: float | None) -> list[str]:
    """Return the critics' questions and costs as lines of text."""
    said = [
        f"{name}: at most {of['requests']:,} requests, {of['prompt_tokens']:,} prompt tokens and "
        f"{of['answer_tokens']:,} answer tokens"
        for name, of in critics.items()
    ]
    priced = "unknown, because critic.<name>.price is not set" if money is None else f"at most {money:,.4f}"
    return [*said, f"money: {priced}"]


def dry_run(config: RunConfig, until: str = "report", *, folder: Path | None = None, trust: bool = False) -> DryRun:
    """Read the traces, and list the questions that a run would ask each critic.

    Raises what `check_inputs` raises, and ModelError if the model folder cannot render traces.

    Args:
        folder: the run that would be continued; its existing critiques are not requested again.
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
    """Return the tokens of the traces up to the end of the student's last step, and the number of traces that could not
    be rendered."""
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
    """Return the size of the whole weights; None if they are not on this machine, or if only an adapter is written."""
    files = sorted(Path(config.run.model).glob("*.safetensors"))
    if not files or (config.train.lora is not None and config.train.save == "adapter"):
        return None
    if config.train.save_dtype == "auto":
        return sum(f.stat().st_size for f in files)
    width = {"float32": 4, "bfloat16": 2}[config.train.save_dtype]
    return width * sum(math.prod(t["shape"]) for f in files for t in safetensors_header(f).values())
