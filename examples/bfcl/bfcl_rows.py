"""Rows for the warm-up of a small student: requests under a list of functions, with a call or a refusal as the answer.

Rows of one list of functions are one sheet, because they share the system prompt and are read in one pass (`bfcl_packing.py`). A
third of all rows as drawn has a message after the request, half of these a hint and half a placebo, for calls and refusals alike: a student
that never saw a second message takes any such message for a reason to refuse.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from bfcl_compare import Said, mismatch, right_calls
from bfcl_data import Entry
from bfcl_suite import DECLINE, opening

from hintdistill.core.types import Message

Kind = Literal["plain", "hint", "placebo"]
CATEGORIES = ("simple_python", "multiple", "live_simple", "live_multiple", "live_irrelevance")
"""Of whose training part the student is warmed up, and on whose validation part it is accepted: at most one call a task."""
PLACEBOS = (
    "Take your time.",
    "This matters to me.",
    "Thank you in advance.",
    "Please be careful.",
    "Read the request once more.",
    "Do it well.",
)
"""Messages that say nothing of the answer. What the student is accepted on is not among them."""
NAMES_CALL = ("{name} is the function for this.", "This is a case for {name}.", "{name} does that.")
SAYS_CALL = ("There is a function for that.", "One of these functions does it.", "A function can do this.")
NAMES_VALUE = ("{argument} is {value} here.", "Set {argument} to {value}.", "For {argument} give {value}.")
SAYS_NONE = ("There is no function for that.", "None of these functions does it.", "No function can do this.")
NAMES_NONE = ("{name} is not the function for this.", "This is no case for {name}.", "{name} does something else.")


@dataclass(frozen=True)
class Row:
    """A request, with a message after it or without, and its answer."""

    said: tuple[Message, ...]
    answer: str
    calls: bool
    kind: Kind
    source: str
    """Id of the task whose request it is."""


@dataclass(frozen=True)
class Sheet:
    """Rows under the same functions."""

    system: Message
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Mix:
    """The mix of rows."""

    no_call: float = 0.3
    """Share of refusals among the rows of functions that some request calls; functions that only ever come with requests they do not
    fit add more, one list of them for every three others."""
    hard: float = 0.67
    """Share of the refusals on another task's request whose request is like the function's own ones."""
    said: float = 1 / 3
    """Share of rows with a message after the request."""
    rows: int = 4
    """Rows of a sheet, half as many where all of them are refusals; of equal ones one is left."""


def written(calls: Sequence[Said]) -> str:
    """Calls as the student writes them."""
    shown = (json.dumps({"name": c.name, "arguments": c.arguments}, ensure_ascii=False) for c in calls)
    return "\n".join(f"<tool_call>{text}</tool_call>" for text in shown)


def usable(entry: Entry) -> bool:
    """Whether a task has one user message, nothing else, and at most one right call that is known."""
    if entry.category not in CATEGORIES or [m["role"] for m in entry.messages] != ["user"] or not entry.functions:
        return False
    return len(entry.answer or ()) <= 1 and mismatch(entry, right_calls(entry)) is None


class RowMaker:
    """Draws sheets from tasks; the same seed gives the same sheets."""

    def __init__(self, tasks: Sequence[Entry], mix: Mix) -> None:
        """`tasks` must be usable."""
        self.mix = mix
        self.tasks = list(tasks)
        self.by_list: dict[str, list[Entry]] = {}
        for task in self.tasks:
            self.by_list.setdefault(opening(task, as_text=True)[0].content or "", []).append(task)
        self._words = {task.id: words(task.request) for task in self.tasks}

    def sheets(self, seed: int) -> Iterator[Sheet]:
        """Every list of functions that is called once, in random order, with fresh rows; without end, round by round."""
        called = sorted(p for p, tasks in self.by_list.items() if any(t.answer for t in tasks))
        others = sorted(set(self.by_list) - set(called))
        number = 0
        while True:
            rng = random.Random(f"sheets {seed} {number}")
            lists = called + rng.sample(others, min(len(others), max(1, len(called) // 3)))
            rng.shuffle(lists)
            yield from (self._sheet(self.by_list[prompt], rng) for prompt in lists)
            number += 1

    def _sheet(self, tasks: list[Entry], rng: random.Random) -> Sheet:
        first = tasks[0]
        called, refused = [t for t in tasks if t.answer], [t for t in tasks if not t.answer]
        rows = []
        for _ in range(self.mix.rows if called else self.mix.rows // 2):
            if called and rng.random() >= self.mix.no_call:
                rows.append(self._row(rng.choice(called), first, rng))
            elif refused and (not called or rng.random() < 0.5):
                rows.append(self._row(rng.choice(refused), first, rng))
            else:
                rows.append(self._row(self._foreign(first, called or refused, rng), first, rng, foreign=True))
        each = {(*(m.content for m in r.said), r.answer): r for r in rows}
        return Sheet(opening(first, as_text=True)[0], tuple(each.values()))

    def _foreign(self, listed: Entry, own: Sequence[Entry], rng: random.Random) -> Entry:
        """A task whose request none of the listed functions is for; a hard one shares words with their own requests."""
        others = [t for t in rng.sample(self.tasks, min(120, len(self.tasks))) if apart(listed, t)]
        if rng.random() >= self.mix.hard:
            return rng.choice(others)
        mine = set().union(*(self._words[t.id] for t in own), *(words(f["description"]) for f in listed.functions))
        others.sort(key=lambda t: -len(mine & self._words[t.id]) / (1 + len(self._words[t.id])) ** 0.5)
        return rng.choice(others[:8])

    def _row(self, task: Entry, listed: Entry, rng: random.Random, foreign: bool = False) -> Row:
        calls = [] if foreign else right_calls(task)
        said, kind = [Message(role="user", content=task.request)], "plain"
        if rng.random() < self.mix.said:
            kind = rng.choice(("hint", "placebo"))
            text = rng.choice(PLACEBOS) if kind == "placebo" else hint(calls, listed, rng)
            said.append(Message(role="user", content=text))
        return Row(tuple(said), written(calls) or DECLINE, bool(calls), kind, task.id)  # type: ignore[arg-type]


def hint(calls: Sequence[Said], listed: Entry, rng: random.Random) -> str:
    """A message that says a part of the right answer."""
    if not calls:
        one_of = rng.choice((SAYS_NONE, NAMES_NONE)) if len(listed.names) == 1 else SAYS_NONE
        return rng.choice(one_of).format(name=listed.names[0])
    call = calls[0]
    if call.arguments and rng.random() < 0.5:
        argument, value = rng.choice(list(call.arguments.items()))
        return rng.choice(NAMES_VALUE).format(argument=argument, value=json.dumps(value, ensure_ascii=False))
    return rng.choice(rng.choice((NAMES_CALL, SAYS_CALL))).format(name=call.name)


def words(text: str) -> set[str]:
    """The longer words of a text, in lower case."""
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def apart(listed: Entry, task: Entry) -> bool:
    """Whether another task's functions are others than the listed ones, by their names and by the words of these."""
    mine = [set(re.findall(r"[a-z]+", n.lower())) for n in listed.names]
    theirs = [set(re.findall(r"[a-z]+", n.lower())) for n in task.names]
    return not any(len(a & b) * 2 > min(len(a), len(b)) for a in mine for b in theirs)
