"""Chat templates × kinds of talk × placements of a hint: what the student reads of each, and the invariants that hold of all.

The templates are those of a folder or of the trl wheel. Each talk is one kind of conversation whose last message is the step.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from conftest import STUDENT, TIME, WEATHER, call, tool
from transformers import AutoTokenizer

from hintdistill.core.errors import HintdistillError
from hintdistill.core.extensions import PLACEMENTS
from hintdistill.core.types import HintRole, Message, ToolCall, Trace
from hintdistill.injection.rendering import Renderer
from hintdistill.injection.splice import Splice, StepSite

HINT = "Use the tool get_weather."
PLACEBO = "Mind what you say."
PLACES: tuple[tuple[str, str, HintRole | None], ...] = (
    ("message, user", "message", "user"),
    ("message, system", "message", "system"),
    ("observation", "observation", None),
    ("system_prompt", "system_prompt", None),
    ("assistant_turn", "assistant_turn", None),
)
SYSTEM = Message(role="system", content="Be brief.")
ASK = Message(role="user", content="What is the weather in Paris?")
STEP = Message(role="assistant", content="The weather in Paris is sunny.")
CALL = call("get_forecast", '{"city": "Paris"}')
OBSERVED = tool("unknown tool get_forecast", name="get_forecast")
THOUGHT = "I need the forecast."
TWO = Message(
    role="assistant",
    tool_calls=(
        ToolCall(name="get_forecast", arguments_raw='{"city": "Paris"}', id="call00001"),
        ToolCall(name="get_time", arguments_raw='{"city": "Rome"}', id="call00002"),
    ),
)
RESULTS = (OBSERVED, tool("half past nine", call_id="call00002", name="get_time"))
REASONED = STEP.model_copy(update={"reasoning": "It was sunny all day."})
AGAIN = Message(role="user", content="And tomorrow?")
RAINY = Message(role="assistant", content="Tomorrow it rains.")
TALKS: dict[str, tuple[Message, ...]] = {
    "answer": (SYSTEM, ASK, STEP),
    "call": (SYSTEM, ASK, CALL),
    "after a call": (SYSTEM, ASK, CALL, OBSERVED, STEP),
    "parallel calls": (SYSTEM, ASK, TWO, *RESULTS, STEP),
    "reasoning": (SYSTEM, ASK, CALL.model_copy(update={"reasoning": THOUGHT}), OBSERVED, REASONED),
    "second turn": (SYSTEM, ASK, STEP, AGAIN, RAINY),
    "no system prompt": (ASK, CALL, OBSERVED, STEP),
    "greeting first": (Message(role="assistant", content="Hello, I know the weather.", given=True), ASK, STEP),
}
TOOLLESS = ("answer", "second turn", "greeting first")
_SPECIAL = re.compile(
    r"<\|[^|>\s]{1,40}\|>|<｜[^｜>\s]{1,40}｜>|</?(?:think|tool_call|tool_response|start_of_turn|end_of_turn|arg_key|arg_value)>"
    r"|<(?:\|?turn\|?|\|?channel\|?)>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|\[gMASK\]|<sop>|\]~!?b[\[\]]|\[e~\[|</?s>|<bos>|<eos>"
)


def trace_of(talk: str) -> Trace:
    """The talk as a trace; the talks without calls have no tools."""
    return Trace(id=talk, messages=TALKS[talk], tools=() if talk in TOOLLESS else (WEATHER, TIME))


@dataclass
class Row:
    """One talk under one template: its last step, and the hint and a placebo in every place."""

    template: str
    talk: str
    trace: Trace
    renderer: Renderer
    site: StepSite | HintdistillError
    hints: dict[str, Splice | HintdistillError] = field(default_factory=dict)
    placebos: dict[str, Splice | HintdistillError] = field(default_factory=dict)


def renderers(templates: Mapping[str, str]) -> Iterator[tuple[str, Renderer]]:
    """A renderer of each template; one tokenizer knows the special tokens of all of them."""
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    special = sorted({*(s for text in templates.values() for s in _SPECIAL.findall(text)), "<s>", "</s>"})
    tokenizer.add_special_tokens({"additional_special_tokens": special})
    tokenizer.bos_token, tokenizer.eos_token = "<s>", "</s>"
    for name, text in templates.items():
        yield name, Renderer(tokenizer, template=text)


def rows(templates: Mapping[str, str]) -> Iterator[Row]:
    """Every template with every talk, and every placement in it."""
    for name, renderer in renderers(templates):
        for talk in TALKS:
            trace = trace_of(talk)
            try:
                row = Row(name, talk, trace, renderer, StepSite(trace, len(trace.step_indices) - 1, renderer))
            except HintdistillError as error:
                yield Row(name, talk, trace, renderer, error)
                continue
            for place, placement, role in PLACES:
                row.hints[place] = made_of(row.site, HINT, placement, role)
                row.placebos[place] = made_of(row.site, PLACEBO, placement, role)
            yield row


def made_of(site: StepSite, text: str, placement: str, role: HintRole | None) -> Splice | HintdistillError:
    """A hint in one place of a step, two tokens into it for `assistant_turn`; or why it has no place there."""
    words = PLACEMENTS.get(placement).form.replace("{hint}", text)
    try:
        return site.splice(words, placement, role, 2 if placement == "assistant_turn" else 0)
    except HintdistillError as error:
        return error


@cache
def wheel_rows() -> tuple[Row, ...]:
    """The rows of the templates in the trl wheel, made once a process."""
    from conftest import published_templates

    return tuple(rows({p.stem: p.read_text(encoding="utf-8") for p in published_templates()}))


def templates_in(folder: Path) -> dict[str, str]:
    """The `.jinja` files below a folder, by name."""
    return {p.stem: p.read_text(encoding="utf-8") for p in sorted(folder.rglob("*.jinja"))}


def broken(row: Row) -> list[str]:
    """What of the invariants does not hold in a row; nothing, where all is well.

    They are worked out here from renders alone, not by what the injector does: where the hint's message begins is found by
    comparing the renders of two hints.
    """
    if isinstance(row.site, HintdistillError):
        return (
            [] if f"trace {row.talk}, step" in row.site.message else [f"the refusal names no step: {row.site.message}"]
        )
    site, r = row.site, row.renderer
    step, plain = site.rendered, site.rendered.context_ids + site.rendered.step_ids
    wrong = []
    before, tools = site.opening.before, row.trace.tools
    asked = r.render(before, tools, header=True)
    if "rewritten_history" not in step.notes and list(step.context_ids) != r.encode(asked):
        wrong.append("the context is not the template's render with a generation prompt")
    message = row.trace.step(site.step)
    if message.raw_text is None and not {"boundary_retokenised", "not_append_only"} & set(step.notes):
        whole = r.encode(r.render((*before, message), tools, header=False))
        if tuple(whole[: len(plain)]) != plain:
            wrong.append("context and step are not the beginning of one render")
    for words, splices in ((HINT, row.hints), (PLACEBO, row.placebos)):
        for place, made in splices.items():
            if isinstance(made, HintdistillError):
                continue
            hinted = plain[: made.insert_at] + made.block_ids + plain[made.insert_at :]
            if words not in r.decode(made.block_ids):
                wrong.append(f"{place}: the block does not hold the hint")
            if made.placement == "assistant_turn":
                continue
            if hinted[-len(step.step_ids) :] != step.step_ids:
                wrong.append(f"{place}: the step is not the plain one")
            context = hinted[: len(hinted) - len(step.step_ids)]
            if made.placement == "message":
                wrong += [f"{place}: {w}" for w in _wrong_message(row, made, words, context)]
            if made.placement == "observation" and "boundary_shifted" not in made.notes:
                last = before[-1].model_copy(update={"content": f"{before[-1].content}\n\n{words}"})
                own = r.render((*before[:-1], last), tools, header=True)
                if "rewritten_history" not in step.notes and list(context) != r.encode(own):
                    wrong.append(f"{place}: not the render with the longer observation")
    return wrong


def _refuses(r: Renderer, messages: tuple[Message, ...], tools: tuple[dict, ...]) -> bool:
    try:
        r.render(messages, tools, header=True)
    except HintdistillError:
        return True
    return False


def _wrong_message(row: Row, made: Splice, words: str, context: tuple[int, ...]) -> list[str]:
    """A hint's own message: below the message above it, the context is the render of the talk with the hint."""
    site, r = row.site, row.renderer
    assert isinstance(site, StepSite)
    before, tools = site.opening.before, row.trace.tools
    role = made.role or "user"
    if "minimal_talk" in made.notes:
        if not _refuses(r, (*before, Message(role=role, content=words)), tools):
            return ["the block of a minimal talk, and the template does not refuse the hint in its place"]
        before, tools = ((ASK, STEP) if role == "user" else ()), ()
    own, other = (r.render((*before, Message(role=role, content=w)), tools, header=True) for w in (words, "hdZZ"))
    at = own.rfind(words)
    if own[:at] != other[: other.rfind("hdZZ")]:
        return ["two hints are printed below different words"]
    text = r.decode(context)
    if "rewritten_history" in site.rendered.notes:
        # the step is under the header of a finished one: the render is compared without its generation prompt
        own = own[: len(own) - len(site.opening.prompt)]
        text = text[: len(text) - len(site.opening.header)]
    # from the first special token of the hint's own message on, ids and not only text
    ids, starts = r.encode_with_starts(own)
    first = next(i for i, s in enumerate(starts) if s + len(r.decode([ids[i]])) > at)
    while first > 0 and ids[first] not in r.special_ids:
        first -= 1
    tail = tuple(ids[first:])
    whole = tuple(r.encode(text)) if "rewritten_history" in site.rendered.notes else context
    return [] if whole[-len(tail) :] == tail else [f"ends in {text[-120:]!r}, the render in {own[-120:]!r}"]
