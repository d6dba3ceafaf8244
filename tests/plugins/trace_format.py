"""Trace format `dialogue`: {"dialogue": ["question", "answer", …]}, user and assistant in turn."""

from hintdistill.core.types import Message, Trace
from hintdistill.traces.registry import FORMATS


class Dialogue:
    NAME, SCOPE = "dialogue", "record"

    def fits(self, value):
        return isinstance(value, dict) and isinstance(value.get("dialogue"), list)

    def traces(self, record, options):
        roles = ("user", "assistant")
        said = [Message(role=roles[i % 2], content=text) for i, text in enumerate(record.value["dialogue"])]
        yield Trace(id=record.value["id"], messages=tuple(said), source=record.source)


FORMATS.register(Dialogue())
