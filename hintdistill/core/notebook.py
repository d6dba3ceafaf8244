"""Show a target or a trace in a notebook, as a table or as a drawing. All trace text is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LONGEST = 400
"""Longest message in characters that a table shows; the table says how many characters it cut."""


def _table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = "".join(f'<th scope="col">{escape(h)}</th>' for h in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def target_html(target: Any) -> str:
    """Return a table of the tokens of a target's step, with their probabilities without the hint and for the
    teacher."""
    plain, teacher = np.exp(target.plain_sampled), np.exp(target.teacher_sampled)
    rows = (
        (repr(token), f"{plain[i]:.3f}", f"{teacher[i]:.3f}", target.instead[i] if i < len(target.instead) else "")
        for i, token in enumerate(target.tokens)
    )
    return _table(repr(target), ("token", "plain", "teacher", "the teacher would say"), rows)


def trace_html(trace: Any) -> str:
    """Return the messages of a trace as a table; steps are numbered."""
    step = {at: n for n, at in enumerate(trace.step_indices)}
    rows = []
    for at, message in enumerate(trace.messages):
        calls = [f"{c.name}({c.arguments_raw})" for c in message.tool_calls or ()]
        said = "\n".join(filter(None, (message.content or "", *calls)))
        cut = f" … {len(said) - LONGEST:,} more characters" if len(said) > LONGEST else ""
        rows.append((str(step.get(at, "")), message.role, said[:LONGEST] + cut))
    return _table(repr(trace), ("step", "role", "what it says"), rows)


def target_plot(target: Any) -> Figure:
    """Plot the probability of each token of the step, without the hint and for the teacher.

    Returns:
        A separate figure, which a notebook shows and `savefig` writes. The state of pyplot does not change.
    """
    names = [t if t.strip() else repr(t) for t in target.tokens]
    figure = _figure(len(names))
    axes = figure.subplots()
    at = np.arange(len(names))
    axes.bar(at - 0.2, np.exp(target.plain_sampled), 0.4, label="plain", color="#8a5a00")
    axes.bar(at + 0.2, np.exp(target.teacher_sampled), 0.4, label="teacher", color="#00589c")
    _name(axes, names, "probability", repr(target))
    axes.set_ylim(0, 1)
    axes.legend()
    return figure


def trace_plot(trace: Any) -> Figure:
    """Plot the number of characters of each message by role; steps are numbered. Returns a separate figure, as
    `target_plot` does."""
    step = {at: n for n, at in enumerate(trace.step_indices)}
    names = [f"{m.role} {step[i]}" if i in step else m.role for i, m in enumerate(trace.messages)]
    sizes = [len(m.content or "") + sum(len(c.arguments_raw) for c in m.tool_calls or ()) for m in trace.messages]
    figure = _figure(len(names))
    axes = figure.subplots()
    axes.bar(
        np.arange(len(names)), sizes, 0.8, color=["#00589c" if i in step else "#6b6b6b" for i in range(len(names))]
    )
    _name(axes, names, "characters", repr(trace))
    return figure


def _figure(bars: int) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(max(4.0, 0.35 * bars), 3.2), layout="constrained")


def _name(axes: Any, names: Sequence[str], unit: str, title: str) -> None:
    # a dollar sign would begin a formula
    plain = [n.replace("$", r"\$") for n in names]
    axes.set_xticks(np.arange(len(plain)), plain, rotation=90, fontsize=7)
    axes.set_ylabel(unit)
    axes.set_title(title.replace("$", r"\$"), fontsize=8)
