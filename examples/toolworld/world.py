"""Toolworld: a small synthetic tool-use world whose every episode can be checked.

Eleven task kinds of one to three calls over nineteen tools. A task name says everything about its episode, e.g.
`hotel.urgent.timeout.new.1042`: the kind, the trigger in the request, the fault of the last call, whether the entity
is one that the student's training corpus contains (`old`) or never did (`new`), and a seed.

Four triggers are visible features of a task to which the shipped student answers with a bad habit:

| trigger  | visible as                                   | habit (error class)                                        |
|----------|----------------------------------------------|------------------------------------------------------------|
| alias    | "the forecast" instead of "the weather"      | calls `get_forecast`, which is not listed (unknown_tool)   |
| noun     | "the place Paris"                            | argument `place` instead of `city` (wrong_argument)        |
| urgent   | "Asap!"                                      | passes "Paris" as `hotel_id` (skipped_lookup)              |
| timeout  | the last call answers {"error":"timeout"}    | makes up the result (ignored_error)                        |

Each has a near-miss, where the same behaviour is right: the other tool is listed (`near_alias`), the argument really
has that name (`near_noun`), the id stands in the urgent request (`near_urgent`), the result carries a warning but is
there (fault `warning`).

Success means: every call of the plan was made with the right arguments, and the final sentence is exact.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.core.types import Finding, Message, Trace
from hintdistill.rollouts.environment import Reply, Start

HERE = Path(__file__).resolve().parent
SYSTEM = "You answer requests with tools."
GIVE_UP = "Sorry, I cannot do that."
LISTED_TOOLS = 6
MAX_STEPS = 8

TRIGGERS = ("none", "given", "renamed", "alias", "noun", "urgent", "near_alias", "near_noun", "near_urgent")
"""`none` and `given` (the id stands in the request) are clean; so is `renamed`, where a tool or its argument has another
name than usual: it occurs in the student's corpus only, to make it read the tool list."""
FAULTS = ("none", "timeout", "busy", "warning")
HABITS = ("unknown_tool", "wrong_argument", "skipped_lookup", "ignored_error")
HELD_OUT_KINDS = ("population", "flight")
"""Task kinds that no rollout for distillation contains; the student's own corpus does."""


@dataclass(frozen=True)
class Call:
    """One call of a plan: the tool, its first parameter, its other parameters, and the field of its result."""

    tool: str
    param: str
    gives: str
    digits: int
    other: str | None = None


@dataclass(frozen=True)
class Kind:
    """A kind of task. `word` names the thing plainly, `alias` in the words that trigger the unknown tool."""

    name: str
    word: str
    alias: str
    noun: str
    entity: str
    calls: tuple[Call, ...]
    requests: tuple[str, ...]
    given: tuple[str, ...]
    answer: str

    @property
    def alias_tool(self) -> str:
        """The plausible tool that does not exist."""
        return f"{self.calls[0].tool.split('_')[0]}_{self.alias}"


def _ask(name: str, tool: str, param: str, gives: str, digits: int, words: tuple[str, str, str], answer: str) -> Kind:
    word, alias, noun = words
    requests = (
        "What is the {word} of {entity}?",
        "Tell me the {word} of {entity}.",
        "I need the {word} of {entity}.",
        "Please look up the {word} of {entity}.",
    )
    return Kind(name, word, alias, noun, param, (Call(tool, param, gives, digits),), requests, (), answer)


def _act(name: str, calls: tuple[Call, ...], words: tuple[str, str, str], verbs: tuple[str, str], answer: str) -> Kind:
    word, alias, noun = words
    more = f" for {{n}} {calls[-1].other}" if calls[-1].other else ""
    requests = tuple(f"{verb} the {{word}} of {{entity}}{more}." for verb in (*verbs, f"Please {verbs[0].lower()}"))
    given = tuple(f"{verb} the {{word}} {{id}}{more}." for verb in (*verbs, f"Please {verbs[0].lower()}"))
    return Kind(name, word, alias, noun, calls[0].param, calls, requests, given, answer)


KINDS: dict[str, Kind] = {
    k.name: k
    for k in (
        _ask(
            "weather",
            "get_weather",
            "city",
            "temp",
            2,
            ("weather", "forecast", "place"),
            "{entity} has {value} degrees.",
        ),
        _ask(
            "humidity",
            "get_humidity",
            "city",
            "humidity",
            2,
            ("humidity", "moisture", "place"),
            "{entity} has {value} percent.",
        ),
        _ask(
            "price", "get_price", "company", "price", 3, ("price", "quote", "firm"), "{entity} is at {value} dollars."
        ),
        _ask(
            "population",
            "get_people",
            "country",
            "people",
            2,
            ("people", "census", "land"),
            "{entity} has {value} million people.",
        ),
        _act(
            "hotel",
            (Call("find_hotel", "city", "hotel_id", 4), Call("book_hotel", "hotel_id", "code", 3, "nights")),
            ("hotel", "lodging", "place"),
            ("Book", "Reserve"),
            "Booked with code {value}.",
        ),
        _act(
            "flight",
            (Call("find_flight", "city", "flight_id", 4), Call("book_flight", "flight_id", "code", 3, "seats")),
            ("flight", "plane", "place"),
            ("Book", "Reserve"),
            "Booked with code {value}.",
        ),
        _act(
            "order",
            (Call("find_order", "person", "order_id", 4), Call("track_order", "order_id", "days", 1)),
            ("order", "parcel", "client"),
            ("Track", "Follow"),
            "It arrives in {value} days.",
        ),
        _act(
            "balance",
            (Call("find_account", "person", "account_id", 4), Call("get_balance", "account_id", "balance", 3)),
            ("account", "wallet", "client"),
            ("Check", "Read"),
            "There are {value} dollars.",
        ),
        _act(
            "mail",
            (Call("find_contact", "person", "contact_id", 4), Call("send_mail", "contact_id", "number", 3)),
            ("contact", "address", "client"),
            ("Mail", "Write to"),
            "Sent as number {value}.",
        ),
        _act(
            "room",
            (Call("find_room", "building", "room_id", 4), Call("book_room", "room_id", "code", 3, "hours")),
            ("room", "hall", "tower"),
            ("Book", "Reserve"),
            "Booked with code {value}.",
        ),
        _act(
            "refund",
            (
                Call("find_customer", "person", "customer_id", 4),
                Call("find_invoice", "customer_id", "invoice_id", 4),
                Call("pay_refund", "invoice_id", "amount", 2),
            ),
            ("customer", "buyer", "client"),
            ("Refund", "Repay"),
            "Refunded {value} dollars.",
        ),
    )
}

URGENT = ("Asap!", "Hurry!", "Quick!", "It is urgent!")

NAMES = {
    "city": "Paris Lisbon Oslo Rome Vienna Madrid Dublin Prague Athens Berlin Cairo Delhi Lima Quito Tokyo Seoul Hanoi Accra Tunis Riga",
    "company": "Acme Globex Initech Umbra Hooli Vandelay Stark Wayne Tyrell Cyber Soylent Aperture Massive Monarch Oscorp Gringott",
    "country": "Chile Peru Kenya Ghana Nepal Japan Spain Italy Greece Norway Sweden Brazil Canada Egypt Turkey Latvia",
    "person": "Ann Bob Carla David Emma Frank Greta Henry Iris Jonas Karin Liam Maria Nina Oscar Paula Rosa Simon Tara Victor",
    "building": "North South East West Maple Cedar Birch Willow Garden River Castle Harbor Summit Valley Meadow Forest",
}
"""Entities the corpus knows. Half of all tasks use one; the other half an invented name."""

_SYLLABLES = [
    "ba",
    "be",
    "bi",
    "bo",
    "bu",
    "da",
    "de",
    "di",
    "do",
    "du",
    "fa",
    "fe",
    "fi",
    "fo",
    "ga",
    "go",
    "ha",
    "he",
    "ka",
    "ke",
    "ki",
    "ko",
    "la",
    "le",
    "li",
    "lo",
    "lu",
    "ma",
    "me",
    "mi",
    "mo",
    "na",
    "ne",
    "ni",
    "no",
    "pa",
    "pe",
    "po",
    "ra",
    "re",
    "ri",
    "ro",
    "sa",
    "se",
    "si",
    "so",
    "ta",
    "te",
    "ti",
    "to",
    "va",
    "ve",
    "vi",
    "vo",
    "za",
    "zo",
]


def invented_name(rng: random.Random, new: bool) -> str:
    """A name of three or four syllables; `new` names never occur in the student's training corpus or rollouts."""
    while True:
        name = "".join(rng.choice(_SYLLABLES) for _ in range(rng.choice((3, 3, 4)))).capitalize()
        if (hashlib.sha256(name.encode()).digest()[0] % 10 == 0) == new:
            return name


def tool_schema(tool: str, params: dict[str, str], description: str) -> dict[str, Any]:
    """An OpenAI function schema that allows exactly `params`."""
    return {
        "type": "function",
        "function": {
            "name": tool,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {name: {"type": kind} for name, kind in params.items()},
                "required": list(params),
                "additionalProperties": False,
            },
        },
    }


def call_schema(call: Call, *, tool: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The schema of one call; `tool` and `param` rename it for the near-misses."""
    params = {param or call.param: "string"} | ({call.other: "integer"} if call.other else {})
    return tool_schema(tool or call.tool, params, f"Gives the {call.gives}.")


def _id_is_given(kind: Kind, trigger: str) -> bool:
    """Whether the request names the id itself, so that the look-up is not needed."""
    return trigger in ("given", "near_urgent") and bool(kind.given)


VERBS = ("get", "find", "read", "fetch", "load", "query")
PARAMS = ("subject", "key", "topic", "label", "item")


def _first_names(rng: random.Random, kind: Kind, trigger: str) -> tuple[str, str]:
    """Name and first parameter of the first tool, as this task lists them."""
    tool, param = kind.calls[0].tool, kind.calls[0].param
    if trigger == "near_alias":
        return kind.alias_tool, param
    if trigger == "near_noun":
        return tool, kind.noun
    if trigger == "renamed":
        verb, _, rest = tool.partition("_")
        if rng.random() < 0.5:
            return f"{rng.choice([v for v in VERBS if v != verb])}_{rest}", param
        return tool, rng.choice(PARAMS)
    return tool, param


ALL_CALLS = {c.tool: c for k in KINDS.values() for c in k.calls}


@dataclass(frozen=True)
class Task:
    """An episode, fully determined by its name."""

    name: str
    kind: Kind
    trigger: str
    fault: str
    entity: str
    n: int
    ids: tuple[str, ...]
    """The right value of each call's result field, as a string of digits."""
    request: str
    tools: tuple[dict[str, Any], ...]
    plan: tuple[tuple[str, dict[str, Any]], ...]
    """The right calls, in order."""
    answer: str

    @classmethod
    def parse(cls, name: str) -> Task:
        """Build the task that `name` describes. Raises ValueError for a name that is not one."""
        parts = name.split(".")
        if len(parts) != 5 or parts[0] not in KINDS or parts[1] not in TRIGGERS or parts[2] not in FAULTS:
            raise ValueError(f"{name!r} is no toolworld task: expected kind.trigger.fault.old|new.seed")
        kind, trigger, fault = KINDS[parts[0]], parts[1], parts[2]
        rng = random.Random(f"toolworld:{name}")
        if parts[3] == "old" and rng.random() < 0.5:
            entity = rng.choice(NAMES[kind.entity].split())
        else:
            entity = invented_name(rng, new=parts[3] == "new")
        n = rng.randint(2, 9)
        tool, param = _first_names(rng, kind, trigger)
        ids = tuple(str(rng.randint(10 ** (c.digits - 1), 10**c.digits - 1)) for c in kind.calls)
        plan = cls._plan(kind, trigger, entity, n, ids, tool, param)
        return cls(
            name,
            kind,
            trigger,
            fault,
            entity,
            n,
            ids,
            cls._request(rng, kind, trigger, entity, n, ids),
            cls._tools(rng, kind, tool, param),
            plan,
            kind.answer.format(entity=entity, value=ids[-1]),
        )

    @staticmethod
    def _plan(
        kind: Kind, trigger: str, entity: str, n: int, ids: tuple[str, ...], tool: str, param: str
    ) -> tuple[tuple[str, dict[str, Any]], ...]:
        plan: list[tuple[str, dict[str, Any]]] = []
        for i, call in enumerate(kind.calls):
            args: dict[str, Any] = {call.param: entity if i == 0 else ids[i - 1]}
            if call.other:
                args[call.other] = n
            plan.append((call.tool, args))
        if _id_is_given(kind, trigger):
            return tuple(plan[1:])
        return ((tool, {param: entity}), *plan[1:])

    @staticmethod
    def _request(rng: random.Random, kind: Kind, trigger: str, entity: str, n: int, ids: tuple[str, ...]) -> str:
        given = _id_is_given(kind, trigger)
        text = rng.choice(kind.given if given else kind.requests).format(
            word=kind.alias if trigger in ("alias", "near_alias") else kind.word,
            entity=f"the {kind.noun} {entity}" if trigger in ("noun", "near_noun") else entity,
            id=ids[0],
            n=n,
        )
        if trigger in ("urgent", "near_urgent"):
            urgent = rng.choice(URGENT)
            return f"{urgent} {text}" if rng.random() < 0.5 else f"{text} {urgent}"
        return text

    @staticmethod
    def _tools(rng: random.Random, kind: Kind, tool: str, param: str) -> tuple[dict[str, Any], ...]:
        schemas = [call_schema(kind.calls[0], tool=tool, param=param), *(call_schema(c) for c in kind.calls[1:])]
        used = {c.tool for c in kind.calls}
        others = rng.sample([k for k in KINDS.values() if k.name != kind.name], len(KINDS) - 1)
        for other in others:
            for call in other.calls:
                if len(schemas) < LISTED_TOOLS and call.tool not in used and rng.random() < 0.7:
                    # an alias of another kind is listed now and then, so that such a name alone says nothing
                    alias = call is other.calls[0] and rng.random() < 0.25
                    noun = call is other.calls[0] and rng.random() < 0.25
                    schemas.append(
                        call_schema(call, tool=other.alias_tool if alias else None, param=other.noun if noun else None)
                    )
        rng.shuffle(schemas)
        return tuple(schemas)


def compact(value: Any) -> str:
    """JSON without spaces: the one dialect of this world."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class ToolworldEnvironment:
    """One episode. Accepts a skipped look-up in silence, which no general rule can see."""

    def reset(self, task: str) -> Start:
        """Begin `task`; see `Environment`."""
        self.task = Task.parse(task)
        self.schemas = {t["function"]["name"]: t["function"]["parameters"] for t in self.task.tools}
        self.progress = 0
        self.steps = 0
        self.fault_pending = self.task.fault != "none"
        return Start(
            (Message(role="system", content=SYSTEM), Message(role="user", content=self.task.request)), self.task.tools
        )

    def step(self, message: Message) -> Reply:
        """Answer one assistant message; see `Environment`."""
        self.steps += 1
        if not message.tool_calls:
            success = self.progress == len(self.task.plan) and message.content == self.task.answer
            return Reply((), True, 1.0 if success else 0.0)
        replies = tuple(
            Message(role="tool", content=compact(self._call(c.name, c.arguments)), name=c.name, tool_call_id=c.id)
            for c in message.tool_calls
        )
        done = self.steps >= MAX_STEPS
        return Reply(replies, done, 0.0 if done else None)

    def _call(self, tool: str, args: dict[str, Any] | None) -> dict[str, Any]:
        if tool not in self.schemas:
            return {"error": f"unknown tool {tool}"}
        if args is None:
            return {"error": "arguments are not JSON"}
        expected = self.schemas[tool]["properties"]
        for name in args:
            if name not in expected:
                return {"error": f"unknown argument {name}"}
        for name in expected:
            if name not in args:
                return {"error": f"missing argument {name}"}
        return self._answer(tool, args)

    def _answer(self, tool: str, args: dict[str, Any]) -> dict[str, Any]:
        task = self.task
        last = tool == task.plan[-1][0]
        if last and self.fault_pending and task.fault in ("timeout", "busy"):
            self.fault_pending = False
            return {"error": task.fault}
        offset = len(task.kind.calls) - len(task.plan)
        for i, (name, right) in enumerate(task.plan):
            if (name, right) == (tool, args):
                if i == self.progress:
                    self.progress += 1
                call, value = task.kind.calls[i + offset], task.ids[i + offset]
                break
        else:
            call = ALL_CALLS.get(tool) or next(
                (k.calls[0] for k in KINDS.values() if k.alias_tool == tool), task.kind.calls[0]
            )
            rng = random.Random(f"{task.name}:{tool}:{compact(args)}")
            value = str(rng.randint(10 ** (call.digits - 1), 10**call.digits - 1))
        result: dict[str, Any] = {call.gives: value}
        if last and task.fault == "warning":
            result["warning"] = "timeout"
        return result


def label_steps(trace: Trace) -> list[Finding]:
    """The world's own checker: the habit error of each step, if any."""
    findings = []
    schemas = trace.tool_schemas
    for k, index in enumerate(trace.step_indices):
        message, before = trace.messages[index], trace.messages[:index]
        finding = _label(k, message, before, schemas)
        if finding is not None:
            # the same made-up id once more, after a busy tool, is a consequence and not a new error
            earlier = [f for f in findings if (f.error_class, f.facts) == (finding.error_class, finding.facts)]
            if earlier and finding.error_class == "skipped_lookup":
                finding = finding.model_copy(update={"caused_by": earlier[0].step})
            findings.append(finding)
    return findings


def _label(k: int, message: Message, before: Sequence[Message], schemas: dict[str, dict[str, Any]]) -> Finding | None:
    seen = [m.content or "" for m in before if m.role == "tool"]
    request = next((m.content or "" for m in before if m.role == "user"), "")
    if not message.tool_calls:
        if seen and '"error":"timeout"' in seen[-1] and message.content != GIVE_UP:
            tool = next((c.name for m in reversed(before) for c in m.tool_calls), "")
            return Finding(step=k, error_class="ignored_error", quote=None, facts={"tool": tool, "error": "timeout"})
        return None
    for i, call in enumerate(message.tool_calls):
        args = call.arguments or {}
        if call.name not in schemas:
            return Finding(
                step=k,
                error_class="unknown_tool",
                quote=call.name,
                quote_in="tool_name",
                call=i,
                facts={"wrong": call.name},
            )
        unknown = [a for a in args if a not in schemas[call.name].get("properties", {})]
        if unknown:
            return Finding(
                step=k,
                error_class="wrong_argument",
                quote=unknown[0],
                quote_in="arguments",
                call=i,
                facts={"wrong": unknown[0], "tool": call.name},
            )
        for name, value in args.items():
            known = any(f'"{value}"' in text for text in seen) or (str(value).isdigit() and str(value) in request)
            if name.endswith("_id") and not known:
                finder = next((c.tool for c in ALL_CALLS.values() if c.gives == name), "")
                return Finding(
                    step=k,
                    error_class="skipped_lookup",
                    quote=call.name,
                    quote_in="tool_name",
                    call=i,
                    facts={"tool": finder, "argument": name, "wrong": str(value)},
                )
    return None


class Toolworld:
    """The task suite; `splits.json` in this folder fixes the tasks for training, validation and testing."""

    def splits(self) -> dict[str, Sequence[str]]:
        """Task names by split."""
        return json.loads((HERE / "splits.json").read_text(encoding="utf-8"))["splits"]

    def make(self) -> ToolworldEnvironment:
        """A fresh environment."""
        return ToolworldEnvironment()

    def check(self, trace: Trace) -> list[Finding]:
        """The habit errors of a trace."""
        return label_steps(trace)
