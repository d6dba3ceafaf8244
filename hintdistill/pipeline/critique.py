"""Stage 2: every critic in use reads every trace; what they said is kept apart and merged when it is used."""

from __future__ import annotations

from typing import Any

from hintdistill.critics import Critic, merge
from hintdistill.critics.recorded import RecordedCritic
from hintdistill.critics.rules import RulesCritic
from hintdistill.errors import HintdistillError
from hintdistill.pipeline import read
from hintdistill.pipeline.context import RunContext
from hintdistill.rundir import content_key
from hintdistill.types import Critique


def critics(ctx: RunContext) -> list[Critic]:
    """The critics in use, in order. Raises ConfigError, PromptError or InputError."""
    section = ctx.config.critic
    out: list[Critic] = []
    for name in section.use:
        if name == "rules":
            out.append(RulesCritic(section.rules.checks))
        elif name == "recorded":
            assert section.recorded.path is not None
            out.append(RecordedCritic(section.recorded.path, section.recorded.error_classes))
        elif name == "checker":
            from hintdistill.critics.checker import CheckerCritic

            assert section.checker is not None
            out.append(CheckerCritic(section.checker))
        else:
            from hintdistill.critics.llm import LLMCritic

            out.append(LLMCritic(section.llm, ctx.library, section.allow_hosts))
    return out


def run(ctx: RunContext) -> None:
    """Critique what is owed.

    Raises:
        ServiceError: a critic's server is gone; what it answered before is kept.
    """
    traces = {trace.id: (key, trace) for key, trace, _ in read.load(ctx)}
    store = ctx.rundir.store("critiques")
    # an answer that a second try may give is still owed
    done = {k for k, row in store.by_key().items() if not row.get("failure", {}).get("retryable")}
    index: list[str] = []
    for critic in critics(ctx):
        keys = {
            id_: content_key("critique", key, critic.name, critic.key(trace)) for id_, (key, trace) in traces.items()
        }
        index += keys.values()
        owed = [traces[id_][1] for id_, key in keys.items() if key not in done]
        with ctx.voice.progress(f"critique ({critic.name})", len(traces)) as advance:
            advance(len(traces) - len(owed))
            for trace, outcome in critic.critique(owed):
                store.append(_row(keys[trace.id], traces[trace.id][0], trace.id, critic.name, outcome))
                advance(1)
    ctx.rundir.set_index("critique", index)
    rows = ctx.rundir.current("critique", "critiques")
    failed = [r for r in rows if "failure" in r]
    if failed:
        ctx.voice.warn(f"{len(failed)} critiques failed; the first: {failed[0]['failure']['message']}")
    merged = load(ctx)
    findings = sum(len(c.findings) for c in merged.values())
    erring = sum(c.verdict == "findings" for c in merged.values())
    ctx.voice.note(
        f"critique: {findings} findings in {erring} of {len(traces)} traces, by {', '.join(ctx.config.critic.use)}"
    )


def _row(key: str, trace_key: str, trace_id: str, critic: str, outcome: Critique | HintdistillError) -> dict[str, Any]:
    row: dict[str, Any] = {"key": key, "trace": trace_key, "trace_id": trace_id, "critic": critic}
    if isinstance(outcome, Critique):
        return row | {"critique": outcome.model_dump(mode="json", exclude_defaults=True)}
    failure = {"reason": outcome.reason, "message": outcome.message, "retryable": outcome.retryable}
    if hasattr(outcome, "raw"):
        failure["raw_answer"] = outcome.raw
    return row | {"failure": failure}


def load(ctx: RunContext) -> dict[str, Critique]:
    """The merged critique of each trace, by trace row key. Traces that no critic could read are absent."""
    said: dict[str, list[Critique]] = {}
    for row in ctx.rundir.current("critique", "critiques"):
        if "critique" in row:
            said.setdefault(row["trace"], []).append(Critique.model_validate(row["critique"]))
    return {key: merge(critiques[0].trace_id, critiques) for key, critiques in said.items()}
