"""Measure what the tiny critic can and cannot do, for its card. Run by `build_critic.py measure`; about three minutes.

Labels are the world's own checker's. Held-out demonstrations use names that neither corpus has; the student's own traces are
the shipped ones, none of which the critic was trained on.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from build_critic import CRITIC, RATES, SEED, episode
from demonstrator import Demonstrator, draw_task
from world import KINDS, label_steps

from hintdistill.core.types import Critique, Finding, Message, ToolCall, Trace
from hintdistill.critics.evaluation import evaluate, named_step, rate
from hintdistill.critics.llm import LLMCritic
from hintdistill.injection.hints import illegal_actions
from hintdistill.injection.quotes import is_in_step
from hintdistill.prompts import PromptLibrary
from hintdistill.traces.formats.annotated import Label
from hintdistill.traces.reading import read_traces

HERE = Path(__file__).resolve().parent
Labelled = tuple[Trace, list[Finding]]
DEMONSTRATIONS = 200
EDITS = {
    "other words": '{{ signatures }}\n{{ trace }}\nName the step of {{ legal_steps | join(",") }} that is a mistake, if there is one.',
    "instructions first": 'Which of the steps {{ legal_steps | join(",") }} is wrong?\n{{ signatures }}\n{{ trace }}',
    "no tool list": '{{ trace }}\nWhich of the steps {{ legal_steps | join(",") }} is wrong?',
    "the large prompt": "{% include 'critic/record.jinja' %}\n\n{% include 'critic/all_at_once.jinja' %}",
}


def label(found: Sequence[Finding]) -> Label:
    """Return the checker's label: the first root error."""
    roots = [f for f in found if f.caused_by is None] or list(found)
    if not roots:
        return Label(verdict="none")
    return Label(
        verdict="findings", step=roots[0].step, steps=tuple(f.step for f in found), error_class=roots[0].error_class
    )


def score(critic: LLMCritic, labelled: Sequence[Labelled]) -> dict[str, Any]:
    """Localisation, false alarms, and how many quotes and hints are right where the step is."""
    said = {t.id: o for t, o in critic.critique([t for t, _ in labelled])}
    cases = [(t, label(f), o if isinstance(o := said[t.id], Critique) else None) for t, f in labelled]
    result = evaluate(cases)
    quotes = verbatim = right = total = 0
    hints: dict[str, Counter[str]] = {}
    for (trace, found), (_, truth, critique) in zip(labelled, cases, strict=True):
        if critique is None or truth.step is None or named_step(critique) != truth.step:
            continue
        mine = next(f for f in critique.findings if f.step == truth.step)
        true = next(f for f in found if f.step == truth.step)
        total += 1
        quotes += mine.quote == true.quote
        verbatim += is_in_step(mine, trace.step(mine.step))
        right += mine.hint == true.hint if true.hint else 0
        if mine.error_class == true.error_class:
            counts = hints.setdefault(true.error_class, Counter())
            names = reference(trace, true)
            counts["n"] += 1
            counts["illegal"] += bool(illegal_actions(mine.hint or "", trace))
            counts["referenced"] += bool(names)
            counts["names"] += any(re.search(rf"\b{n}\b", mine.hint or "") is not None for n in names)
    referenced = any(f.hint for _, found in labelled for f in found)
    dropped = sum(n.startswith("dropped:") for _, _, c in cases if c for n in c.notes)
    share = lambda n: n / total if total else None  # noqa: E731
    return {
        "erring": len([c for c in cases if c[1].verdict == "findings"]),
        "clean": len([c for c in cases if c[1].verdict == "none"]),
        "exact_step": result["erring"]["exact"],
        "class": result["erring"]["class"],
        "missed": result["erring"]["missed"],
        "false_alarm": result["clean"]["false_alarm"],
        "failed": result["failed"]["hits"],
        "quote_right": share(quotes),
        "quote_in_step": share(verbatim),
        "hint_right": share(right) if referenced else None,
        "dropped_quotes": dropped,
        "by_class": {c: {"exact": r["exact"], "class": r["class"]} for c, r in result["by_class"].items()},
        "hints": {
            c: {"names_right": rate(n["names"], n["referenced"]), "illegal": rate(n["illegal"], n["n"])}
            for c, n in sorted(hints.items())
        },
    }


def reference(trace: Trace, found: Finding) -> set[str]:
    """Names of which the hint of a finding has to say one, whatever its words; none where the world has no such reference.

    For an unknown tool the listed tool of the same kind of task; for a wrong argument the arguments that the tool has and
    the call lacks; for a skipped look-up the tool that would have looked it up.
    """
    if found.error_class == "unknown_tool":
        return {k.calls[0].tool for k in KINDS.values() if k.alias_tool == found.quote} & set(trace.tool_schemas)
    if found.error_class == "wrong_argument":
        call = trace.step(found.step).tool_calls[found.call or 0]
        return set(trace.tool_schemas[call.name].get("properties", {})) - set(call.arguments or {})
    return {found.facts["tool"]} if found.error_class == "skipped_lookup" else set()


def demonstrations(n: int, seed: int) -> list[Labelled]:
    """Held-out demonstrated episodes with names that no corpus has."""
    rng = random.Random(seed)
    return [episode(rng, f"held-out-{i}", "new", stumbling=0.0) for i in range(n)]


def own_traces() -> list[Labelled]:
    """The student's shipped rollouts."""
    return [(t, label_steps(t)) for t in read_traces([HERE / "traces.jsonl"]) if isinstance(t, Trace)]


def with_new_tools(labelled: Sequence[Labelled]) -> list[Labelled]:
    """The same episodes with the listed tools of each first call renamed to words the world does not have."""
    out = []
    names = {"get": "obtain", "find": "search", "book": "secure", "track": "trace", "send": "post", "pay": "grant"}
    for trace, found in labelled:
        table = {n: f"{names.get(n.split('_')[0], 'do')}_{n.split('_')[1]}" for n in trace.tool_schemas}
        text = trace.model_dump_json()
        for old, new in table.items():
            text = text.replace(f'"name":"{old}"', f'"name":"{new}"')
        renamed = Trace.model_validate_json(text)
        out.append(
            (renamed, [f.model_copy(update={"quote": table.get(f.quote or "", f.quote), "hint": None}) for f in found])
        )
    return out


def unseen_class(n: int, seed: int) -> list[Labelled]:
    """Clean episodes spoilt in a way no training trace shows: the final answer states another number than the last result."""
    rng = random.Random(seed)
    out: list[Labelled] = []
    while len(out) < n:
        played = Demonstrator(draw_task(rng, "new", trigger="none", fault="none"), rng, RATES, hints=False).play()
        last = played.messages[-1]
        digits = "".join(c for c in last.content or "" if c.isdigit())
        if not digits or any(played.errors):
            continue
        wrong = str(int(digits) + rng.randint(1, 9))
        messages = (
            *played.messages[:-1],
            last.model_copy(update={"content": (last.content or "").replace(digits, wrong)}),
        )
        trace = Trace(id=f"misread-{len(out)}", messages=messages, tools=played.task.tools)
        out.append((trace, [Finding(step=len(trace.step_indices) - 1, error_class="misread_result", quote=wrong)]))
    return out


def repeated_calls(n: int, seed: int) -> list[Labelled]:
    """Episodes in which a call is made a second time although it had succeeded: a near relative of what was trained."""
    rng = random.Random(seed)
    out: list[Labelled] = []
    while len(out) < n:
        played = Demonstrator(draw_task(rng, "new", trigger="none", fault="none"), rng, RATES, hints=False).play()
        call = next(i for i, m in enumerate(played.messages) if m.tool_calls)
        twice: list[Message] = [*played.messages[: call + 2], *played.messages[call:]]
        assert isinstance(twice[call].tool_calls[0], ToolCall)
        trace = Trace(id=f"twice-{len(out)}", messages=tuple(twice), tools=played.task.tools)
        if not label_steps(trace):
            out.append((trace, [Finding(step=1, error_class="unneeded_call", quote=None)]))
    return out


def edited(load: Callable[..., LLMCritic], text: str) -> LLMCritic:
    """The critic under another prompt."""
    import tempfile

    folder = Path(tempfile.mkdtemp())
    (folder / "critic").mkdir()
    (folder / "critic" / "edited.jinja").write_text(text, encoding="utf-8")
    return load("critic/edited.jinja", PromptLibrary(folder))


def measure(load: Callable[..., LLMCritic]) -> None:
    """Measure and write critic/measurements.json and critic/README.md."""
    began = time.time()
    held_out, own = demonstrations(DEMONSTRATIONS, SEED + 1), own_traces()
    some = held_out[:50]
    rng = random.Random(SEED + 4)
    stumbling = [episode(rng, f"stumbling-{i}", "new", stumbling=1.0) for i in range(100)]
    results: dict[str, Any] = {
        "held_out": score(load(), held_out),
        "stumbling": score(load(), stumbling),
        "student": score(load(), own),
        "edited": {name: score(edited(load, text), some) for name, text in EDITS.items()},
        "new_tools": score(load(), with_new_tools(some)),
        "unseen_misread": score(load(), unseen_class(40, SEED + 2)),
        "unseen_repeat": score(load(), repeated_calls(40, SEED + 3)),
        "as_usual": score(load(), some),
    }
    results["seconds"] = round(time.time() - began, 1)
    (CRITIC / "measurements.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    write_card()


def write_card() -> None:
    """Write critic/README.md from critic/measurements.json."""
    results = json.loads((CRITIC / "measurements.json").read_text(encoding="utf-8"))
    (CRITIC / "README.md").write_text(card(results), encoding="utf-8")
    print((CRITIC / "README.md").read_text(encoding="utf-8"))


def _rate(r: dict[str, Any]) -> str:
    return "–" if not r["n"] else f"{r['rate']:.3f} [{r['low']:.3f}, {r['high']:.3f}]"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def card(m: dict[str, Any]) -> str:
    """The model card, from measurements alone."""
    names = (
        "traces",
        "erring / clean",
        "exact step",
        "class too",
        "missed",
        "false alarm",
        "quote right",
        "hint right",
    )
    head = f"| {' | '.join(names)} |\n|{'---|' * len(names)}\n"

    def row(name: str, r: dict[str, Any], hints: bool = True) -> str:
        return (
            f"| {name} | {r['erring']} / {r['clean']} | {_rate(r['exact_step'])} | {_rate(r['class'])} | {_rate(r['missed'])} | "
            f"{_rate(r['false_alarm'])} | {_share(r['quote_right'])} | {_share(r['hint_right'] if hints else None)} |\n"
        )

    said = m["student"]["hints"]
    classes = "".join(
        f"| {c} | {_rate(r['exact'])} | {_rate(r['class'])} | {_rate(said[c]['names_right'])} | {_rate(said[c]['illegal'])} |\n"
        for c, r in m["student"]["by_class"].items()
    )
    edits = row("none (for comparison)", m["as_usual"]) + "".join(row(name, r) for name, r in m["edited"].items())
    held, usual = m["held_out"], m["student"]
    trained = (
        row("held-out demonstrations", held)
        + row("held-out episodes that err anywhere", m["stumbling"])
        + row("the student's own rollouts", usual, hints=False)
    )
    unused = (
        f"Answers that could not be used: {held['failed']} on held-out demonstrations and {usual['failed']} on the student's own "
        f"rollouts. Findings dropped because their quote is not in the step: {held['dropped_quotes']} and {usual['dropped_quotes']}."
    )
    strange = (
        row("listed tools renamed to unseen words", m["new_tools"], hints=False)
        + row("final answer misstates the result (class never seen)", m["unseen_misread"])
        + row("a successful call made twice (class never seen)", m["unseen_repeat"])
    )
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# The toolworld critic

An LLM of the student's architecture (0.9 M parameters, bfloat16), trained from the student's weights by
`build_critic.py` on played episodes that the world's own checker labels. It reads a trace under the compact prompt
`prompts/critic/toolworld.jinja` and answers with the critic's JSON (verdict, step, quote, error class, hint). It is
the critic of `configs/quickstart.yaml`, so that the quickstart uses a model wherever a real run does.

**This card says nothing about real traces.** Errors here are systematic, and the labels come from the generator of
the training data.

## On the kind of traces it was trained on

{head}{trained}
Rates are per trace, with 95 % Wilson intervals. *Exact step* means that the earliest root error named is the labelled
one; *class too* means that its error class is right as well. Quote and hint are counted if the step is right. Hints
for the student's own rollouts have no reference text, so the table below checks whether each hint names what it has
to name. {unused}

| error class, student's own rollouts | exact step | class too | hint names what is right | hint proposes an illegal call |
|---|---|---|---|---|
{classes}
A hint names what is right if it names the listed tool that does the task (for an unknown tool), an argument that the
tool has (for a wrong argument), or the look-up tool (for a skipped look-up). An illegal call is a call of a tool that
is not listed ("The tool find_wallet does not exist. Use find_wallet."): the guard `illegal` refuses such a hint
before it trains anything.

## When the prompt is edited (50 held-out demonstrations)

{head}{edits}
The critic was trained on one layout. Reworded instructions test how much it depends on that layout; they are not a
supported use. Edit the prompt of a real critic instead.

## With new tools or new kinds of errors

{head}{strange}
The critic does not find error classes that it never saw. If the hint column is empty, there is no reference text.
"""
