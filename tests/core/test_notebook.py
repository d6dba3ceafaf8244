"""Targets and traces in a notebook: a table and a drawing, in which nothing of a trace is markup."""

from __future__ import annotations

import io

import numpy as np
from support.stored_targets import make_target

from hintdistill.core.types import Message, ToolCall, Trace

HOSTILE = "<img src=x onerror=alert(1)>$\\frac{"


def drawn(figure) -> str:
    out = io.BytesIO()
    figure.savefig(out, format="svg")
    return out.getvalue().decode()


def test_a_trace():
    call = ToolCall(name="look_up", arguments_raw='{"key": "a & b"}')
    said = (Message(role="user", content=HOSTILE + "x" * 500), Message(role="assistant", tool_calls=(call,)))
    trace = Trace(id="t<1>", messages=said)
    html = trace._repr_html_()
    assert "<img" not in html and "&lt;img" in html and "t&lt;1&gt;" in html and "more characters" in html
    assert html.count("<tr>") == 3 and "look_up({&quot;key&quot;: &quot;a &amp; b&quot;})" in html
    figure = trace.plot()
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["user", "assistant 0"]
    assert [round(p.get_height()) for p in figure.axes[0].patches] == [len(HOSTILE) + 500, len(call.arguments_raw)]
    assert "<svg" in drawn(figure)


def test_a_target():
    made = make_target()
    html, figure = made._repr_html_(), made.plot()
    assert html.count("<tr>") == len(made.tokens) + 1
    heights = [p.get_height() for p in figure.axes[0].patches]
    assert np.allclose(heights, np.exp([*made.plain_sampled, *made.teacher_sampled]))
    assert "<svg" in drawn(figure)
