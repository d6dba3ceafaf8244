"""What must hold of every format on every value, however odd: the one check behind the fuzzer, its replays and the seeds."""

from __future__ import annotations

import io
import json
from typing import Any

from hintdistill.core.types import Source, Trace
from hintdistill.traces.formats import native
from hintdistill.traces.options import Failure, ReadOptions, Record
from hintdistill.traces.reading import READER_ERROR, Deduplicator, _outcomes
from hintdistill.traces.records import read_values
from hintdistill.traces.registry import formats

MAX_BYTES = 1 << 20


def check_value(value: Any) -> None:
    """Each format looks at the value and, where it fits, reads it; what comes out is sound. Anything raised is a bug."""
    where = Source(file="fuzz.jsonl", position="line 1")
    for name in ["auto", *(f.NAME for f in formats())]:
        forced = next((f for f in formats() if name == f.NAME), None)
        check_outcomes([Record(value, where)], forced, ReadOptions(format=name))


def check_bytes(data: bytes, name: str = "fuzz.json") -> None:
    """A file of these bytes is read to its end."""
    check_outcomes(read_values(io.BytesIO(data), name, MAX_BYTES), None, ReadOptions())


def check_outcomes(values: Any, forced: Any, options: ReadOptions) -> None:
    """Every outcome is a failure with a reason, or a trace that survives the native format."""
    count = 0
    for outcome in _outcomes(iter(values), forced, options, Deduplicator()):
        count += 1
        if isinstance(outcome, Failure):
            assert outcome.reason and outcome.message
            assert outcome.reason != READER_ERROR, outcome.message
            continue
        assert isinstance(outcome, Trace) and outcome.step_indices
        line = native.dump(outcome)
        back = native.parse(json.loads(line), Source(file="f", position="1"), ReadOptions())
        assert back.model_copy(update={"source": outcome.source}) == outcome
        for message in outcome.messages:
            for call in message.tool_calls:
                assert call.arguments is None or isinstance(call.arguments, dict)
    assert count, "a record that became nothing"
