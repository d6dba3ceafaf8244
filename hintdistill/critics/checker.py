"""Apply the user's own rules: a function from a trace to the errors that it finds.

Like every critic it reads only the trace. Even a checker that comes with an environment must not use the task's answer.
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
    """Find errors with a Python function."""

    name = "checker"

    def __init__(self, spec: str) -> None:
        """Load `path/to/file.py:function`. Raises ConfigError if it does not exist or is not callable."""
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
        """Hash of the source file of the function."""
        return self._key

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """See `Critic.critique`. If the function raises an error, only that trace is lost."""
        return one_by_one(self._check, traces)

    def _check(self, trace: Trace) -> Critique:
        try:
            found = sorted(self.function(trace), key=lambda f: f.step)
        except Exception as error:
            raise InputError(f"the checker raised {type(error).__name__} on trace {trace.id}: {error}") from error
        findings = tuple(f if f.critic != "unknown" else f.model_copy(update={"critic": self.name}) for f in found)
        if beyond := [f.step for f in findings if f.step >= len(trace.step_indices)]:
            raise InputError(
                f"the checker names step {beyond[0]} of trace {trace.id}, which has {len(trace.step_indices)} steps"
            )
        return Critique(
            trace_id=trace.id, verdict="findings" if findings else "none", findings=findings, critics=(self.name,)
        )
