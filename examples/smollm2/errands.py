"""Errands: one to three look-ups in a city, one call a step. An untrained SmolLM2-135M-Instruct makes errors on them by itself.

The system prompt lists tools as text (`find_bank(city)`), two finished errands show how a call looks, then comes the
request: "I need a bank, a park and a school in Oslo." Every listed thing is looked up once; the episode ends when all are
found. In some tasks one look-up is answered by `{"error": "busy"}` once: the same call, made again, works.

The model answers in a sentence with things missing, takes `busy` for a result, calls a tool that nobody asked for, or
repeats a call. None of these but an unlisted name can be removed by constraining names to the list.

A task is `split.number`; everything about it follows from that name. `split.draw.number` is a task of another draw of the split,
which no list of tasks has: what a test plays whose tasks must not exist before it is announced.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from hintdistill.core.types import Finding, Message, Trace
from hintdistill.rollouts.environment import Reply, Start

# every noun is one token, alone and after a space: a longer one is garbled when it is copied ("tacine" for taxi)
NOUNS = [
    "bag",
    "ball",
    "bank",
    "bed",
    "bell",
    "belt",
    "bench",
    "boat",
    "book",
    "box",
    "bridge",
    "brush",
    "bus",
    "button",
    "camera",
    "car",
    "card",
    "castle",
    "chair",
    "church",
    "clock",
    "coat",
    "coin",
    "cup",
    "doctor",
    "door",
    "driver",
    "farm",
    "flag",
    "flower",
    "guide",
    "hat",
    "horse",
    "hospital",
    "house",
    "key",
    "library",
    "lock",
    "map",
    "market",
    "museum",
    "park",
    "phone",
    "school",
]
"""Things of the splits train, validation, test, near and clean."""
UNSEEN = [
    "pen",
    "picture",
    "pipe",
    "plane",
    "plant",
    "pool",
    "port",
    "radio",
    "ring",
    "road",
    "seat",
    "ship",
    "shirt",
    "shop",
    "station",
    "store",
    "table",
    "teacher",
    "tower",
    "train",
    "tree",
    "van",
    "wallet",
    "watch",
]
"""Things of the split unseen alone."""
CITIES, TEST_CITIES, SHOWN_CITY = (
    ("Oslo", "Lima", "Porto", "Vienna", "Madrid", "Tokyo"),
    ("Dublin", "Paris", "London", "Boston", "Berlin"),
    "Rome",
)
PHRASINGS = ("I need {things} in {city}.", "Find {things} in {city}.")
HELD_OUT = ("I want {things} in {city}.", "Look for {things} in {city}.")
"""Phrasings of the splits test and unseen; the others have those of training."""
SHOWN = (1, 2)
"""The numbers of things that are looked up in the finished errands that the student reads first."""
BUSY = '{"error": "busy"}'
NUDGE = "What about the {thing}?"
"""What the user says after a wasted step. The episode has failed by then; what follows shows how the student goes on."""
SPLITS = {"train": 2000, "validation": 200, "test": 300, "unseen": 300, "near": 320, "clean": 320, "one": 60}
SPLITS |= {"found": 200, "last": 200, "stop": 200}
PAIRS = ("found", "last")
"""Splits of matched pairs: `found.7` and `last.7` are one errand on unseen nouns, of which all is found, or all but the last thing.
The right step is a sentence in the one and a call in the other, so no habit gets both."""
FORMS: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "nested": lambda found: {"status": "ok", "result": found},
    "done": lambda found: {**found, "done": True},
}
"""How the one look-up of a task of the split `stop` gives all that was asked for. Both are forms of edit families that training may
use (`MAKER_FAMILIES` of near_miss.py), and after both the untrained model mostly stops, which is right: for `train.hold.split`."""
MIX = {"one": 4, "two": 2, "two_busy": 2, "three": 2, "three_busy": 1}
"""Weights of the kinds of task in train, validation, test and unseen: how many things, and whether one look-up is busy once."""


def listing(things: Sequence[str]) -> str:
    """`a bank, a park and a school`."""
    named = [f"a {t}" for t in things]
    return ", ".join(named[:-1]) + (" and " if len(named) > 1 else "") + named[-1]


def call_text(tool: str, city: str) -> str:
    """A call as the model writes it."""
    return "<tool_call>" + json.dumps({"name": tool, "arguments": {"city": city}}) + "</tool_call>"


def schema(tool: str) -> dict[str, Any]:
    """The JSON schema of a tool."""
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": tool, "description": "", "parameters": parameters}}


@dataclass(frozen=True)
class Task:
    """The task that a name encodes."""

    kind: str
    asked: tuple[str, ...]
    city: str
    busy: str | None
    """The thing whose first look-up is answered by an error."""
    given: int
    """The number of things found when the student's turn comes."""
    tools: tuple[str, ...]
    opening: tuple[Message, ...]
    results: dict[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, name: str) -> Task:
        """The task of that name. Raises ValueError for a name that no split has."""
        split, *drawn = name.split(".")
        if split not in SPLITS or not 1 <= len(drawn) <= 2 or not drawn[-1].isdigit():
            raise ValueError(f"no task {name!r}")
        # the members of a pair differ in nothing but what is found
        rng = random.Random(f"errands {'.'.join(['pair', *drawn]) if split in PAIRS else name}")
        held_out = split in ("test", "unseen", *PAIRS)
        things = rng.sample(UNSEEN if held_out and split != "test" else NOUNS, 3 + sum(SHOWN))
        named = {
            "near": rng.choice(("found", "two")),
            "clean": rng.choice(("one", "two")),
            "one": "one",
            "stop": "stop",
        }
        kind = named.get(split) or rng.choices(list(MIX), list(MIX.values()))[0]
        if split in PAIRS:
            kind = split
        many = rng.choice((1, 2)) if kind == "stop" else {"one": 1, "three": 3}.get(kind.split("_")[0], 2)
        asked = things[:many]
        city = rng.choice(TEST_CITIES if held_out else CITIES)
        phrasing = rng.choice(HELD_OUT if held_out else PHRASINGS)
        results = {t: f"{rng.choice('ABCDEFGH')}{rng.randint(10, 99)}" for t in things}
        tools = [f"find_{t}" for t in [*asked, *things[3:]]]
        rng.shuffle(tools)
        opening = [Message(role="system", content="Tools:\n" + "\n".join(f"{t}(city)" for t in tools))]
        first = 3
        for count in SHOWN:
            opening += _errand(PHRASINGS[0], things[first : first + count], SHOWN_CITY, results)
            first += count
        request = Message(role="user", content=phrasing.format(things=listing(asked), city=city))
        given = {"found": len(asked), "last": len(asked) - 1, "stop": len(asked)}.get(kind, 0)
        # a call and its answer for each thing that is found; of a task of `stop`, for the first, whose answer has all
        calls = 1 if kind == "stop" else given
        opening += _errand(phrasing, asked, city, results)[: 1 + 2 * calls] if given else [request]
        busy = rng.choice(asked) if kind.endswith("_busy") else None
        if kind == "stop":
            opening[-1] = _observed(**FORMS[rng.choice(list(FORMS))]({t: results[t] for t in asked}))
        return cls(kind, tuple(asked), city, busy, given, tuple(tools), tuple(opening), results)


def _errand(phrasing: str, things: Sequence[str], city: str, results: dict[str, str]) -> list[Message]:
    """A finished errand, its assistant messages marked as given."""
    said = [Message(role="user", content=phrasing.format(things=listing(things), city=city))]
    for thing in things:
        said.append(Message(role="assistant", content=call_text(f"find_{thing}", city), given=True))
        said.append(Message(role="tool", content=json.dumps({thing: results[thing]})))
    return [*said, Message(role="assistant", content="Done.", given=True)]


def spoken(message: Message) -> tuple[str, str] | str | None:
    """What an assistant message does: (tool, city) of a call, "broken" for anything else with a call's markup, None for a sentence."""
    if not message.tool_calls:
        text = message.content or ""
        if message.given:
            match = re.fullmatch(r"<tool_call>(.*)</tool_call>", text)
            if match:
                read = json.loads(match[1])
                return read["name"], read["arguments"]["city"]
        return "broken" if "tool_call>" in text else None
    one = message.tool_calls[0]
    arguments = one.arguments
    if (
        len(message.tool_calls) > 1
        or (message.content or "").strip()
        or not isinstance(arguments, dict)
        or list(arguments) != ["city"]
    ):
        return "broken"
    return one.name, str(arguments["city"])


class ErrandsEnvironment:
    """One errand at a time. Success: everything was found with no step wasted, or, in a found task, the first step is a sentence."""

    def reset(self, task: str) -> Start:
        """Begin `task`. Raises ValueError for a name that no split has."""
        self.task = Task.parse(task)
        self.found = list(self.task.asked[: self.task.given])
        self.was_busy = False
        self.steps = 0
        return Start(messages=self.task.opening, tools=tuple(schema(t) for t in self.task.tools))

    def step(self, message: Message) -> Reply:
        """Answer one assistant message."""
        task, did = self.task, spoken(message)
        self.steps += 1
        allowed = len(task.asked) - task.given + (task.busy is not None)
        if task.given == len(task.asked):
            return Reply(messages=(), done=True, reward=float(did is None))
        answer = self._answer(did)
        if len(self.found) == len(task.asked):
            return Reply(messages=tuple(answer), done=True, reward=float(self.steps <= allowed))
        done = self.steps >= allowed + 2
        return Reply(messages=tuple(answer), done=done, reward=0.0 if done else None)

    def _answer(self, did: tuple[str, str] | str | None) -> list[Message]:
        task = self.task
        nudge = Message(role="user", content=NUDGE.format(thing=next(t for t in task.asked if t not in self.found)))
        if did is None:
            return [nudge]
        if isinstance(did, str) or did[0] not in task.tools:
            return [_observed(error="unknown tool"), nudge]
        thing, city = did[0].removeprefix("find_"), did[1]
        if city != task.city or thing not in task.asked or thing in self.found:
            return [_observed(error="not needed"), nudge]
        if thing == task.busy and not self.was_busy:
            self.was_busy = True
            return [Message(role="tool", content=BUSY)]
        self.found.append(thing)
        return [_observed(**{thing: task.results[thing]})]


def _observed(**content: Any) -> Message:
    return Message(role="tool", content=json.dumps(content))


class Errands:
    """The tasks of Errands."""

    def splits(self) -> dict[str, Sequence[str]]:
        """Task names by split."""
        return {split: [f"{split}.{i}" for i in range(n)] for split, n in SPLITS.items()}

    def make(self) -> ErrandsEnvironment:
        """A fresh environment."""
        return ErrandsEnvironment()

    def check(self, trace: Trace) -> Sequence[Finding]:
        """The wrong steps of a trace, from its text alone."""
        return check(trace)

    def gold(self, finding: Finding) -> str:
        """The right step in place of an erring one, as the model would write it: a call, or a sentence where all is found."""
        facts = finding.facts
        return call_text(f"find_{facts['thing']}", facts["city"]) if "thing" in facts else "Done."

    def facts(self, task: str) -> dict[str, Any]:
        """What a table divides tasks by: the kind, and the things asked for."""
        parsed = Task.parse(task)
        return {"kind": parsed.kind, "nouns": list(parsed.asked)}


_NUDGED = re.compile(re.escape(NUDGE).replace(r"\{thing\}", r"\w+"))
_REQUEST = re.compile(r"(?:I need|Find|I want|Look for) (a \w+(?:(?:, | and )a \w+)*) in (\w+)\.")
_THINGS = r"([Tt]he \w+(?:(?:, | and )the \w+)*)"
_SPARED = re.compile(rf" {_THINGS} (?:is|are) not needed\.| I have {_THINGS}\.")
"""What a request may say behind its first sentence: which of the things need not be looked up."""


def check(trace: Trace) -> list[Finding]:
    """Every wrong step of a trace of Errands. Reads the listed tools, the request, the calls and what they returned.

    Each later error of an episode counts as a consequence of its first one. Raises ValueError where no request is found.
    """
    found: list[Finding] = []
    progress = _Progress(re.findall(r"(\w+)\(city\)", trace.messages[0].content or ""))
    for index, message in enumerate(trace.messages):
        if message.role == "user" and not _NUDGED.fullmatch(message.content or ""):
            progress.request(message.content or "")
        elif message.role == "tool":
            progress.observed(message.content or "")
        elif message.role == "assistant":
            wrong = None if message.given else progress.error(spoken(message))
            if wrong:
                facts = {**progress.facts(), **wrong[1]}
                root = found[0].step if found else None
                found.append(_finding(trace.step_indices.index(index), wrong[0], message, facts, root))
            progress.did(spoken(message))
    return found


def _finding(step: int, error_class: str, message: Message, facts: dict[str, Any], root: int | None) -> Finding:
    quote: dict[str, Any] = {}
    if message.tool_calls and error_class != "wrong_city":
        quote = {"quote": message.tool_calls[0].name, "quote_in": "tool_name", "call": 0}
    elif message.tool_calls and facts.get("wrong"):
        quote = {"quote": facts["wrong"], "quote_in": "arguments", "call": 0}
    return Finding(step=step, error_class=error_class, facts=facts, caused_by=root, critic="checker", **quote)


def _names(value: Any) -> Iterator[str]:
    """Names of all fields in a JSON value that say something, however deep."""
    fields = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, held in fields:
        if held not in (None, "", [], {}):
            yield str(name)
            yield from _names(held)


class _Progress:
    """The progress of an errand, read message by message."""

    def __init__(self, listed: list[str]) -> None:
        self.listed, self.asked, self.city, self.found = listed, [""][:0], "", [""][:0]
        self.last: tuple[str, str] | None = None
        self.busy = False

    def request(self, text: str) -> None:
        """A new errand begins."""
        match = _REQUEST.match(text)
        if match is None or _SPARED.sub("", text[match.end() :]):
            raise ValueError(f"no request of Errands: {text!r}")
        spared = re.findall(r"[Tt]he (\w+)", text[match.end() :])
        self.asked, self.city = [t for t in re.findall(r"a (\w+)", match[1]) if t not in spared], match[2]
        self.found, self.last, self.busy = [], None, False

    def did(self, what: tuple[str, str] | str | None) -> None:
        """The step that was just judged is now part of the past."""
        self.last = what if isinstance(what, tuple) else None
        self.busy = False

    def observed(self, text: str) -> None:
        """A tool's answer to the last call."""
        self.busy = text == BUSY
        try:
            held = set(_names(json.loads(text)))
        except ValueError:
            return  # words that are no result
        self.found += [thing for thing in self.missing if thing in held]

    @property
    def missing(self) -> list[str]:
        """Things asked for and not found."""
        return [t for t in self.asked if t not in self.found]

    def facts(self) -> dict[str, Any]:
        """What hint templates may use: `expected` (what is missing first), `right` (its tool), `missing` (all of it), `tool` and
        `error` of a failed call."""
        thing = self.last[0].removeprefix("find_") if self.busy and self.last else next(iter(self.missing), None)
        facts: dict[str, Any] = {"city": self.city}
        if thing:
            facts |= {"thing": thing, "right": f"find_{thing}", "expected": f"a {thing} in {self.city}"}
            facts["missing"] = self.missing
        return facts | ({"tool": self.last[0], "error": "busy"} if self.busy and self.last else {})

    def error(self, what: tuple[str, str] | str | None) -> tuple[str, dict[str, Any]] | None:
        """The class of error of a step and the facts it adds; None if the step is right."""
        missing = self.missing
        if not missing:
            return None if what is None else ("unneeded_call", {})
        if self.busy and what != self.last and not self._progress(what):
            return "ignored_error", {}
        if what is None:
            return "stopped_early", {}
        if isinstance(what, str):
            return "unparsable_call", {}
        tool, city = what
        thing = tool.removeprefix("find_")
        if tool not in self.listed:
            return "unknown_tool", {"wrong": tool}
        if thing in self.found:
            return "repeated_step", {"wrong": tool}
        if thing not in missing:
            return "wrong_tool", {"wrong": tool}
        return None if city == self.city else ("wrong_city", {"wrong": city, "right": self.city})

    def _progress(self, what: tuple[str, str] | str | None) -> bool:
        """Whether a step looks up another missing thing: the failed one can wait."""
        return isinstance(what, tuple) and what[0].removeprefix("find_") in self.missing and what[1] == self.city
