"""The formats: each is a module that fulfils one protocol, found by name or by looking at a record.

Other packages add formats by `FORMATS.register`, or by an entry point in the group `hintdistill.trace_formats` whose
object fulfils `TraceFormat`. Added formats are tried before the shipped ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any, Literal, Protocol, runtime_checkable

from hintdistill.core.registry import Registry
from hintdistill.core.types import Trace
from hintdistill.traces.options import Failure, ReadOptions, Record

ENTRY_POINTS = "hintdistill.trace_formats"


@runtime_checkable
class TraceFormat(Protocol):
    """A format in which agents record traces. A module can be one."""

    NAME: str
    """The format's name in `traces.format`."""
    SCOPE: Literal["record", "file"]
    """With `file`, `traces` gets the values of a file together, because a session is spread over its lines."""

    def fits(self, value: Any) -> bool:
        """Return whether a decoded record (for file scope: one value of the file) is in this format. It must be cheap
        and never raise."""

    def traces(self, record: Record, options: ReadOptions) -> Iterable[Trace | Failure]:
        """Return the traces of one record. Raises TraceError with the reason if there is none."""


SHIPPED = (
    "native",
    "atif",
    "nemo_gym",
    "verifiers_v1",
    "verifiers",
    "rllm",
    "inspect_log",
    "tau2",
    "toolbench",
    "langfuse",
    "langsmith",
    "mlflow",
    "pydantic_ai",
    "bedrock",
    "langgraph",
    "sessions",
    "adk",
    "openhands",
    "openhands_events",
    "swe_agent",
    "qwen_code",
    "claude_code",
    "codex",
    "eval_protocol",
    "spans",
    "sharegpt",
    "anthropic",
    "vllm",
    "openai_responses",
    "conversation",
    "openai_chat",
)
"""The formats in the order in which they are tried: those with an explicit mark first, those recognised by their form
last."""


FORMATS: Registry[TraceFormat] = Registry(
    "trace format",
    TraceFormat,
    {{"inspect_log": "inspect"}.get(module, module): f"hintdistill.traces.formats.{module}" for module in SHIPPED},
    group=ENTRY_POINTS,
)
"""All formats by name."""


def formats() -> tuple[TraceFormat, ...]:
    """Return every format in the order in which they are tried: those of other packages first.

    Raises:
        ConfigError: an entry point cannot be loaded, or is not a TraceFormat.
    """
    return (*FORMATS.outside(), *_shipped())


@cache
def _shipped() -> tuple[TraceFormat, ...]:
    """Return the formats of this package, imported only once, because every record is tried with them."""
    return tuple(FORMATS.get({"inspect_log": "inspect"}.get(module, module)) for module in SHIPPED)


def format_named(name: str) -> TraceFormat:
    """Return the format of that name. Raises ConfigError that suggests the nearest name."""
    return FORMATS.get(name)


_CHAT_RECORD = frozenset({"id", "trace_id", "task_id", "model", "messages", "tools", "reward"})
_CHAT_MESSAGE = frozenset({"role", "content", "tool_calls", "tool_call_id", "name"})


def recognise(value: Any) -> TraceFormat | None:
    """Return the first format that a record fits, or None."""
    for found in FORMATS.outside():
        if found.fits(value):
            return found
    # most records of most files: no format asked earlier fits one, so none of them is asked
    if _plain_chat(value):
        return _chat()
    for found in _shipped():
        if found.fits(value):
            return found
    return None


@cache
def _chat() -> TraceFormat:
    return FORMATS.get("openai_chat")


def _plain_chat(value: Any) -> bool:
    """Return whether a record consists of chat messages with text and calls, and has no mark of another format."""
    if type(value) is not dict or not _CHAT_RECORD.issuperset(value):
        return False
    messages = value.get("messages")
    if type(messages) is not list or not messages:
        return False
    for m in messages:
        if type(m) is not dict or "role" not in m or not _CHAT_MESSAGE.issuperset(m):
            return False
        if (content := m.get("content")) is not None and type(content) is not str:
            return False
    return True
