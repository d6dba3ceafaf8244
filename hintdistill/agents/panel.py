"""Build the critics of a call once, and ask them about one conversation at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from hintdistill.config import CriticSection, RunSection
from hintdistill.core.errors import ArgumentError, HintdistillError, ServiceError
from hintdistill.core.extensions import CRITICS
from hintdistill.core.types import Critique, Finding, Trace, Verdict
from hintdistill.critics import Critic, Outcome
from hintdistill.critics.build import make_critics
from hintdistill.critics.cascade import Said, escalation, settle
from hintdistill.pipeline.critique import without_given
from hintdistill.prompts import PromptLibrary, shipped_library


@dataclass(frozen=True)
class Panel:
    """Hold critics that read a conversation together, in the order of `critic.use`. Threads may share it if its critics
    allow that."""

    section: CriticSection
    critics: tuple[Critic, ...]
    library: PromptLibrary
    """Source of hints for findings without their own hint."""

    def critique(self, trace: Trace) -> Critique:
        """Return the critics' joint critique of a trace. `strong` is asked last, and only if `critic.escalate` requires
        it.

        Raises:
            HintdistillError: no critic could read the trace; the first one's error.
        """
        said: list[Said] = []
        for critic in self.critics:
            if critic.name == "strong" and len(self.critics) > 1 and not escalation(self.section, trace, said):
                continue
            said += [without_given(trace, outcome) for _, outcome in critic.critique([trace])]
        errors = [s for s in said if isinstance(s, HintdistillError)]
        spoken = [s for s in said if isinstance(s, Critique)]
        if not spoken:
            raise errors[0] if errors else ServiceError("no critic answered")
        settled = settle(trace.id, spoken)
        failed = tuple(f"a critic failed: {e.message}" for e in errors)
        return settled.model_copy(update={"notes": (*settled.notes, *failed)})


@dataclass
class _Given:
    """Present findings from the caller as a critic."""

    findings: tuple[Finding, ...]
    name: str = "caller"

    def key(self, trace: Trace) -> str:
        """See `Critic.key`; nothing of it is stored."""
        return self.name

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """See `Critic.critique`. Never fails."""
        for trace in traces:
            verdict: Verdict = "findings" if self.findings else "none"
            yield trace, Critique(trace_id=trace.id, verdict=verdict, findings=self.findings, critics=(self.name,))


def load_critic(critic: str | CriticSection | Critic | Panel | Sequence[Finding], model: str | None = None) -> Panel:
    """Build critics. If they load a model, do this once and pass the panel to every call.

    Args:
        critic: the name of a critic that needs no settings (`rules`), the `critic` section of a configuration, an
            object that implements `Critic`, or known findings.
        model: folder of the student, for an LLM critic in this process that names no model of its own.

    Raises:
        ArgumentError: `critic` has another type.
        ConfigError, PromptError, InputError, ModelError: a critic cannot be built.
    """
    if isinstance(critic, Panel):
        return critic
    if isinstance(critic, str):
        CRITICS.get(critic)
        critic = CriticSection(use=(critic,))
    if isinstance(critic, CriticSection):
        library = shipped_library() if critic.prompts is None else PromptLibrary(critic.prompts)
        run = RunSection(model=model or "student")
        return Panel(critic, tuple(make_critics(critic, run, library)), library)
    if isinstance(critic, Sequence):
        findings = tuple(f for f in critic if isinstance(f, Finding))
        if len(findings) == len(critic):
            return Panel(CriticSection(), (_Given(findings),), shipped_library())
    elif callable(getattr(critic, "critique", None)) and isinstance(getattr(critic, "name", None), str):
        return Panel(CriticSection(), (critic,), shipped_library())
    raise ArgumentError(
        f"`critic` is a {type(critic).__name__}",
        hint="pass a critic's name, a CriticSection, findings, hd.load_critic(…), or an object with name and "
        "critique(traces)",
    )
