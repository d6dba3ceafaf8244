"""The critics of a call, put together once and asked about one conversation at a time."""

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
    """Critics that read a conversation together, as `critic.use` says; safe to use from several threads if its critics are."""

    section: CriticSection
    critics: tuple[Critic, ...]
    library: PromptLibrary
    """Where the hints of findings without words of their own come from."""

    def critique(self, trace: Trace) -> Critique:
        """Return what they say of a trace, settled. `strong` is asked last, and only where `critic.escalate` says so.

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
    """Findings that the caller has made, as a critic."""

    findings: tuple[Finding, ...]
    name: str = "caller"

    def key(self, trace: Trace) -> str:
        """See `Critic.key`; nothing of this is stored."""
        return self.name

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """See `Critic.critique`. Never fails."""
        for trace in traces:
            verdict: Verdict = "findings" if self.findings else "none"
            yield trace, Critique(trace_id=trace.id, verdict=verdict, findings=self.findings, critics=(self.name,))


def load_critic(critic: str | CriticSection | Critic | Panel | Sequence[Finding], model: str | None = None) -> Panel:
    """Put critics together; do so once where they load a model, and pass the panel to every call.

    Args:
        critic: the name of a critic that needs no settings (`rules`), the `critic` section of a configuration, an object of one's
            own that fulfils `Critic`, or findings that are known already.
        model: folder of the student, for an LLM critic in this process that names no model of its own.

    Raises:
        ArgumentError: it is none of these.
        ConfigError, PromptError, InputError, ModelError: a critic that cannot be put together.
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
        hint="a critic's name, a CriticSection, findings, hd.load_critic(…), or an object with name and critique(traces)",
    )
