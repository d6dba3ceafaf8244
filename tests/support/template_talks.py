"""Random talks under chat templates: what a fuzzer draws, and what must hold of each (`template_matrix.broken`)."""

from __future__ import annotations

from typing import Any

from conftest import TIME, WEATHER
from hypothesis import strategies as st
from support.template_matrix import HINT, PLACEBO, PLACES, Row, broken, made_of

from hintdistill.core.errors import HintdistillError
from hintdistill.core.types import Message, ToolCall, Trace
from hintdistill.injection.rendering import Renderer
from hintdistill.injection.splice import StepSite

SAID = (
    "The weather in Paris is sunny.",
    "Yes",
    "user",
    "assistant\n",
    "  two spaces around  ",
    "line\n\nline\n",
    "\n\nbelow a line",
    "It costs 3 < 4 & {5}",
    '{"city": "Paris"}',
    "<think>\nhm\n</think>\n\nSunny.",
    "é 天気 🙂",
    "Use the tool get_weather",
)
"""What a message may say: short and plain, and what templates strip, split or take for their own."""
ARGUMENTS = ('{"city": "Paris"}', '{"city":  "Rome" }', '{"city":"Os', "{}", '{"city": "é", "days": [1, 2]}')


@st.composite
def talks(draw: Any) -> Trace:
    """A conversation of any shape whose last message is a step of the student."""
    said = st.sampled_from(SAID) | st.text(
        st.characters(codec="utf-8", exclude_characters="<>|[]", exclude_categories=("Cc", "Cs", "Cn", "Co")),
        min_size=1,
        max_size=12,
    )
    messages = [Message(role="system", content=draw(said))] if draw(st.booleans()) else []
    if draw(st.integers(0, 5)) == 0:
        messages.append(Message(role="assistant", content=draw(said), given=True))
    messages.append(Message(role="user", content=draw(said)))
    for turn in range(draw(st.integers(0, 3))):
        what = draw(st.sampled_from(["calls", "calls", "answer"]))
        if what == "answer":
            messages += [_step(draw, said, ()), Message(role="user", content=draw(said))]
            continue
        step = _step(draw, said, _calls(draw, turn))
        messages.append(step)
        messages += [Message(role="tool", content=draw(said), tool_call_id=c.id, name=c.name) for c in step.tool_calls]
    messages.append(_step(draw, said, _calls(draw, 9) if draw(st.booleans()) else ()))
    tools = (WEATHER, TIME) if draw(st.booleans()) or any(m.tool_calls for m in messages) else ()
    return Trace(id="random", messages=tuple(messages), tools=tools)


def _calls(draw: Any, turn: int) -> tuple[ToolCall, ...]:
    count = draw(st.sampled_from([1, 1, 2]))
    names = ["get_weather", "get_time", "get_forecast"]
    return tuple(
        ToolCall(
            name=draw(st.sampled_from(names)), arguments_raw=draw(st.sampled_from(ARGUMENTS)), id=f"call0{turn}{n}00"
        )
        for n in range(count)
    )


def _step(draw: Any, said: Any, calls: tuple[ToolCall, ...]) -> Message:
    content = draw(said) if not calls or draw(st.integers(0, 2)) == 0 else None
    reasoning = draw(said) if draw(st.integers(0, 2)) == 0 else None
    return Message(role="assistant", content=content, reasoning=reasoning, tool_calls=calls)


def wrong_of(trace: Trace, step: int, renderer: Renderer) -> list[str]:
    """What does not hold of one step of a talk under a template. Anything raised that is no declared error is a find as well."""
    try:
        site = StepSite(trace, step, renderer)
    except HintdistillError as error:
        return broken(Row("", trace.id, trace, renderer, error))
    row = Row("", trace.id, trace, renderer, site)
    for place, placement, role in PLACES:
        row.hints[place] = made_of(site, HINT, placement, role)
        row.placebos[place] = made_of(site, PLACEBO, placement, role)
    return broken(row)
