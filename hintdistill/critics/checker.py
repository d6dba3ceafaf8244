"""The user's own rules: a function from a trace to the errors it sees.

It reads the trace alone, as every critic does; that it may be a checker shipped with an environment does not make it
privy to the task's answer, and it must not be.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence

from hintdistill.core.errors import ConfigError, InputError
from hintdistill.core.importing import load_object
from hintdistill.core.types import Critique, Finding, Trace
from hintdistill.critics import Outcome, one_by_one


class CheckerCritic:
    """Asks a Python function."""

    name = "checker"

    def __init__(self, spec: str) -> None:
        """Load `path/to/file.py:function`. Raises ConfigError if it is not there or not callable."""
        self.function: Callable[[Trace], Sequence[Finding]] = load_object(spec, "critic.checker", "checker")
        if not callable(self.function):
            raise ConfigError(f"critic.checker={spec} is not a function")
        try:
            source = inspect.getsource(inspect.getmodule(self.function) or self.function)
        except (OSError, TypeError):
            source = spec
        name = spec.rpartition(":")[2] if spec.rpartition(":")[0].endswith(".py") else spec
        self._key = hashlib.sha256(f"checker:{name}:{source}".encode()).hexdigest()

    def key(self, trace: Trace) -> str:
        """Hash of the source the function is in."""
        return self._key

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """See `Critic.critique`. A function that raises costs that trace."""
        return one_by_one(self._check, traces)

    def _check(self, trace: Trace) -> Critique:
        try:
            found = sorted(self.function(trace), key=lambda f: f.step)
        except Exception as error:
            raise InputError(f"the checker raised {type(error).__name__} on trace {trace.id}: {error}") from error
        findings = tuple(f if f.critic != "unknown" else f.model_copy(update={"critic": self.name}) for f in found)
        if beyond := [f.step for f in findings if f.step >= len(trace.step_indices)]:
            raise InputError(
                f"the checker names step {beyond[0]} of trace {trace.id}, which has {len(trace.step_indices)}"
            )
        return Critique(
            trace_id=trace.id, verdict="findings" if findings else "none", findings=findings, critics=(self.name,)
        )
