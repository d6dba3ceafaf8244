"""Critic `polite`: a step that does not say please is an error."""

from hintdistill.core.extensions import CRITICS, CriticEntry
from hintdistill.core.types import Critique, Finding
from hintdistill.critics import one_by_one


class Polite:
    name = "polite"

    def key(self, trace):
        return "polite 1"

    def critique(self, traces):
        return one_by_one(self._one, traces)

    def _one(self, trace):
        rude = [k for k in range(len(trace.step_indices)) if "please" not in (trace.step(k).content or "")]
        found = tuple(Finding(step=k, error_class="rude", hint="Say please.", critic="polite") for k in rude)
        return Critique(trace_id=trace.id, verdict="findings" if found else "none", findings=found, critics=("polite",))


CRITICS.register(CriticEntry("polite", lambda making: Polite()))
