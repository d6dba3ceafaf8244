"""Rules that hold for every trace, whichever reader made it; all traces pass through this check once.

- An assistant message without content, calls, reasoning and ids is not a step of the student: it is marked as given,
  with the reason.
- Assistant messages before the first user message (a greeting, a demonstration) are given.
- After a message whose words could not be read, or a call whose result was not recorded, the student's context is
  unknown: later turns are given, and a trace without other turns is the failure `unread`.
- A trace without a user message and without a recorded prompt has lost its request: it is the failure `no_request`.
"""

from __future__ import annotations

from collections.abc import Mapping

from hintdistill.core.types import Message, Trace
from hintdistill.traces.options import Failure
from hintdistill.traces.unread import HOSTED, UNREAD, UNSEEN

GIVEN_BECAUSE = "given_because"
"""Key in a given turn's `extra` that holds the reason."""
SAYS_NOTHING = "says nothing"
BEFORE_THE_USER = "before the first user message"


def marked_given(message: Message, reason: str) -> Message:
    """Return the message marked as context, with the reason."""
    return message.model_copy(update={"given": True, "extra": {**message.extra, GIVEN_BECAUSE: reason}})


def guarded(trace: Trace, *, answers: bool) -> Trace | Failure:
    """Return the trace with its unusable turns marked as given, or a failure if nothing usable remains.

    Args:
        trace: as its reader made it.
        answers: whether the student answers a user; False if it plays the user itself, who opens the conversation.
    """
    if _in_order(trace.messages):
        return trace
    if (failure := _says_nothing(trace)) is not None:
        return failure
    messages = trace.messages
    changed: dict[int, str] = {i: SAYS_NOTHING for i, m in enumerate(messages) if _empty(m)}
    late = _after_unknown(messages)
    if late and not any(m.role == "assistant" and not m.given and i not in late for i, m in enumerate(messages)):
        assert trace.source is not None
        return Failure(trace.source, "unread", f"no step has a known context: {next(iter(late.values()))}")
    first = next((i for i, m in enumerate(messages) if m.role == "user"), None)
    if first is None and not _recorded_prompt(messages):
        return _no_request(trace)
    # an agent that says nothing later has not only greeted
    if answers and first and any(m.role == "assistant" for m in messages[first:]):
        early = (i for i in range(first) if messages[i].role == "assistant" and not messages[i].token_ids)
        changed = {**dict.fromkeys(early, BEFORE_THE_USER), **changed}
    changed = {**_hosted(trace), **changed}
    changed = {i: why for i, why in {**late, **changed}.items() if not messages[i].given}
    if not changed:
        return trace
    made = tuple(marked_given(m, changed[i]) if i in changed else m for i, m in enumerate(messages))
    return trace.model_copy(update={"messages": made})


def _in_order(messages: tuple[Message, ...]) -> bool:
    """Return whether a user speaks first, every assistant turn has content, and no message has unread parts; this holds
    for most traces."""
    asked = False
    for m in messages:
        if m.extra:
            return False
        if m.role == "assistant":
            if not asked or not (m.content or m.tool_calls):
                return False
        elif m.role == "user":
            asked = True
    return asked


def _empty(m: Message) -> bool:
    return m.role == "assistant" and not (m.content or m.tool_calls or m.reasoning or m.token_ids or m.raw_text)


def _hosted(trace: Trace) -> dict[int, str]:
    """Return turns that call a tool which the server offered but whose schema was not recorded: such calls cannot be
    judged."""
    if not trace.tools:
        return {}
    found: dict[int, str] = {}
    for i, m in enumerate(trace.messages):
        for name in m.extra.get(HOSTED) or ():
            if name not in trace.tool_schemas and not m.token_ids:
                found[i] = f"calls {name!r}, which the server offered and whose schema is not recorded"
    return found


def _after_unknown(messages: tuple[Message, ...]) -> dict[int, str]:
    """Return the student's turns after the first input that could not be read, with the reason."""
    reason: str | None = None
    late: dict[int, str] = {}
    for i, m in enumerate(messages):
        if m.extra and reason is None:
            if keys := m.extra.get(UNREAD):
                reason = f"message {i} ({m.role}) has its words under unknown keys: {', '.join(map(str, keys[:6]))}"
            elif unseen := m.extra.get(UNSEEN):
                reason = f"message {i} holds {unseen}, whose result was not recorded"
        if reason is not None and m.role == "assistant" and not m.token_ids:
            late[i] = reason
    return late


def _says_nothing(trace: Trace) -> Failure | None:
    steps = [m for m in trace.messages if m.role == "assistant"]
    if not steps or not all(map(_empty, steps)):
        return None
    named = [k for m in steps for k in m.extra.get(UNREAD) or sorted(m.extra)]
    held = list(dict.fromkeys(k for k in named if k not in (GIVEN_BECAUSE, UNREAD)))
    assert trace.source is not None
    text = f"{len(steps)} messages of the student, but none with content, calls, reasoning or token ids"
    return Failure(trace.source, "says_nothing", f"{text} (other keys: {', '.join(held[:8]) or 'none'})")


def _recorded_prompt(messages: tuple[Message, ...]) -> bool:
    """Return whether the student's request is known without a user message.

    It is known from the prompt's ids, or from the system prompt of an agent that starts to work by itself. If text
    follows the system prompt directly, the text is an answer whose question is missing.
    """
    step = next((i for i, m in enumerate(messages) if m.role == "assistant" and not m.given), None)
    if step is None:
        return any(m.role != "assistant" for m in messages)
    if messages[step].prompt_token_ids:
        return True
    told = any(m.role in ("system", "developer") and m.content for m in messages[:step])
    return told and bool(messages[step].tool_calls)


def _no_request(trace: Trace) -> Failure:
    assert trace.source is not None
    roles = ", ".join(sorted({m.role for m in trace.messages}))
    keys = ", ".join(sorted(map(str, trace.extra))[:8]) or "none"
    text = f"no user message and no recorded prompt (roles present: {roles}; other keys of the record: {keys})"
    return Failure(trace.source, "no_request", text)


def given_reasons(trace: Trace) -> Mapping[str, int]:
    """Return the number of given turns of a trace by reason; turns without a recorded reason are counted together."""
    counted: dict[str, int] = {}
    for m in trace.messages:
        if m.role == "assistant" and m.given:
            reason = m.extra.get(GIVEN_BECAUSE)
            name = reason if isinstance(reason, str) else "no reason recorded"
            counted[name] = counted.get(name, 0) + 1
    return counted
