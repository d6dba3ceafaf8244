"""Growing conversations: each is one trace in the native format, in a file that is rewritten as a whole after every
model call.

A call repeats the conversation so far. A running hash over the messages identifies the new part, so that every turn
keeps the token ids and log-probabilities of the call that produced it, and a turn shared by two conversations is the
student's own in the first one and given in the other.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.core.errors import TraceError
from hintdistill.core.storage import write_atomic
from hintdistill.core.types import Message, Source, Trace
from hintdistill.traces.formats import native
from hintdistill.traces.options import ReadOptions, Record
from hintdistill.traces.registry import recognise
from hintdistill.traces.repeats import marks_of

KNOWN = 1024
"""Number of conversations that may continue; an older one that continues is started again."""


@dataclass
class _Growing:
    """Hold one conversation and its file."""

    path: Path
    messages: tuple[Message, ...]


class LiveTraces:
    """Manage the conversations of one sink. Not safe to use from several threads by itself."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.begun = 0
        """Number of conversations begun."""
        self._known: OrderedDict[int, tuple[_Growing, int]] = OrderedDict()

    def add(self, record: Mapping[str, Any]) -> None:
        """Add one model call. Raises TraceError if the record is not one, OSError if it cannot be written."""
        found = recognise(record)
        if found is None:
            raise TraceError("the record is not a model call")
        source = Source(file=f"{self.name}.jsonl", position="line 1")
        for trace in found.traces(Record(record, source), ReadOptions()):
            if not isinstance(trace, Trace):
                raise TraceError(trace.message)
            self._grow(trace)

    def _grow(self, trace: Trace) -> None:
        marks = marks_of(trace.messages)
        before = [i for i, m in enumerate(trace.messages[:-1]) if m.role == "assistant" and marks[i] in self._known]
        growing, kept = None, 0
        messages = trace.messages
        if before:
            growing, kept = self._known[marks[before[-1]]]
            goes_on = kept == len(growing.messages)
            # the ids of earlier turns are those of the calls that said them
            own = growing.messages[:kept]
            told = (
                own
                if goes_on
                else tuple(m.model_copy(update={"given": True}) if m.role == "assistant" else m for m in own)
            )
            messages = (*told, *trace.messages[kept:])
            growing = growing if goes_on else None
        if growing is None:
            self.begun += 1
            growing = _Growing(self.folder / f"trace-{self.name}-{self.begun}.jsonl", messages)
        growing.messages = messages
        whole = Trace(
            **{**{n: getattr(trace, n) for n in Trace.model_fields}, "messages": messages, "id": growing.path.stem}
        )
        write_atomic(growing.path, native.dump(whole) + "\n")
        self._known[marks[-1]] = (growing, len(messages))
        self._known.move_to_end(marks[-1])
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)
