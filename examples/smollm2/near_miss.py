"""The real model's contrast suite: pairs of errands that differ by one edit; a habit is wrong in one and right in the other.

    python examples/smollm2/near_miss.py MODEL                          # the table
    python examples/smollm2/near_miss.py MODEL --families test --n 12 --json
    python examples/smollm2/near_miss.py --make                         # writes near_miss_pairs.jsonl again, to the byte

MODEL is any model folder: whole weights, or a LoRA adapter beside its base. A task is one decision: the errand stands there as
far as it has come, and the next step is right or wrong, whole episodes are not played. `docs/near_miss.md` has the families, what
the untrained model does on them, and how the files are made; the score and the command are `hintdistill.rollouts.pairs`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE))

from errands import BUSY, FORMS, UNSEEN, Errands, Task, check, listing, schema, spoken  # noqa: E402

from hintdistill.core.types import Finding, Message, Trace  # noqa: E402
from hintdistill.rollouts.environment import Reply, Start  # noqa: E402
from hintdistill.rollouts.pairs import Pair, PairSuite  # noqa: E402
from hintdistill.rollouts.sampling import SamplingOptions  # noqa: E402

PAIRS = HERE / "near_miss_pairs.jsonl"
PAIRS_SHA256 = "99059673b1ec6eb93f269b0bc54b64a29a1cd0256f0d6ded184d65353d64c0bb"
"""SHA-256 of the committed file: the suite is frozen."""
DRAW = "contrast"
"""A draw of the errands that no other list of tasks has, nor the tasks that families were chosen on. Things, cities and phrasings are
those of the split unseen."""
STOP = None
"""The value of `spoken` for a sentence."""
Act = tuple[str, str] | None


@dataclass(frozen=True)
class Scene:
    """The context that the model reads before its step, and the steps that are right there."""

    first: str
    """The thing that was looked up."""
    second: str
    city: str
    results: Mapping[str, str]
    tools: tuple[str, ...]
    system: str
    shown: tuple[Message, ...]
    """The finished errands."""
    request: str
    call: str | None
    """The call that was made; None: none was."""
    observation: str
    after: str = ""
    """The user's message after the observation."""
    right: tuple[Act, ...] = ()

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation up to the step."""
        said = [Message(role="system", content=self.system), *self.shown, Message(role="user", content=self.request)]
        if self.call is not None:
            said += [
                Message(role="assistant", content=self.call, given=True),
                Message(role="tool", content=self.observation),
            ]
        return (*said, Message(role="user", content=self.after)) if self.after else tuple(said)

    def look_up(self, thing: str) -> Act:
        """The step that looks a thing up."""
        return f"find_{thing}", self.city


# -- the trigger tasks ---------------------------------------------------------------------------------------------------


def _next(number: int) -> Scene:
    """Two things are asked for and the first is found: the second is to be looked up."""
    task = Task.parse(f"last.{DRAW}.{number}")
    system, *shown, request, call, observation = task.opening
    first, second = task.asked
    assert system.content and request.content and call.content and observation.content
    scene = Scene(
        first=first,
        second=second,
        city=task.city,
        results=task.results,
        tools=task.tools,
        system=system.content,
        shown=tuple(shown),
        request=request.content,
        call=call.content,
        observation=observation.content,
    )
    return replace(scene, right=(scene.look_up(second),))


def _busy(number: int) -> Scene:
    """One thing is asked for and its tool was busy: the same call is to be made again."""
    scene = _next(number)
    request = scene.request.replace(listing((scene.first, scene.second)), listing((scene.first,)))
    return replace(scene, request=request, observation=BUSY, right=(scene.look_up(scene.first),))


TRIGGERS: Mapping[str, Callable[[int], Scene]] = {"next": _next, "busy": _busy}
"""By the first part of a task's name."""
PROVOKED = {"stopped_early": "next", "repeated_step": "next", "ignored_error": "busy"}
"""The trigger that provokes each habit."""


# -- the edits -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edit:
    """A change in one place under which a habit's behaviour is right."""

    habit: str
    name: str
    where: str
    """`observation`, `after` or `history`: the only part of the context that differs from the trigger's."""
    says: str
    """The change in words, for readers."""
    change: Callable[[Scene], Mapping[str, Any]]

    @property
    def family(self) -> str:
        """Name among all habits' edits, e.g. `stopped_early.list`."""
        return f"{self.habit}.{self.name}"

    def apply(self, scene: Scene) -> Scene:
        """The scene of the near-miss. After the edit the habit is right: the call that was made, or a sentence."""
        habit = scene.look_up(scene.first) if self.habit == "repeated_step" else STOP
        return replace(scene, **{"right": (habit,), **self.change(scene)})


def _both(form: Callable[[dict[str, str]], Any]) -> Callable[[Scene], Mapping[str, Any]]:
    return lambda s: {"observation": json.dumps(form({t: s.results[t] for t in (s.first, s.second)}))}


def _found(form: Callable[[dict[str, str]], Any]) -> Callable[[Scene], Mapping[str, Any]]:
    return lambda s: {"observation": json.dumps(form({s.first: s.results[s.first]}))}


def _afterwards(words: str) -> Callable[[Scene], Mapping[str, Any]]:
    return lambda s: {"after": words.format(thing=s.first)}


_STOP = ("stop", "after", 'the user says "Stop now."', _afterwards("Stop now."))
_Row = tuple[str, str, str, Callable[[Scene], Mapping[str, Any]]]
_ROWS: Mapping[str, Sequence[_Row]] = {
    "stopped_early": (
        ("nested", "observation", "both results, one level down", _both(FORMS["nested"])),
        ("done", "observation", "both results, and `done`", _both(FORMS["done"])),
        ("list", "observation", "both results, in a list", _both(lambda r: [{k: v} for k, v in r.items()])),
        _STOP,
    ),
    "repeated_step": (
        ("removed", "history", "the first call and its result are not there", lambda s: {"call": None}),
        ("again", "after", 'the user says "Look for the bank again."', _afterwards("Look for the {thing} again.")),
        ("more", "after", 'the user says "I need another bank."', _afterwards("I need another {thing}.")),
    ),
    "ignored_error": (
        ("nested", "observation", "the result, one level down", _found(FORMS["nested"])),
        ("done", "observation", "the result, and `done`", _found(FORMS["done"])),
        ("found", "observation", "the result, under `found`", _found(lambda r: {"found": r})),
        ("error_no", "observation", 'the result, then "error": "no"', _found(lambda r: {**r, "error": "no"})),
        _STOP,
    ),
}
EDITS: dict[str, Edit] = {e.family: e for e in (Edit(habit, *row) for habit, rows in _ROWS.items() for row in rows)}
MAKER_FAMILIES = (
    "stopped_early.nested",
    "stopped_early.done",
    "repeated_step.removed",
    "ignored_error.nested",
    "ignored_error.done",
)
"""Families of which a training method may make its own examples: edits of twins, and hold traces of the split `stop`."""
TEST_FAMILIES = tuple(f for f in EDITS if f not in MAKER_FAMILIES)
"""Families for testing: no maker of twins has edits of these kinds. The headline is read here."""


@cache
def scene_of(name: str) -> Scene:
    """The scene of a task: `next.7`, or with an edit behind it, `next.7.list`.

    Raises:
        ValueError: no such trigger, or no such edit of it.
    """
    kind, _, rest = name.partition(".")
    number, _, edit = rest.partition(".")
    if kind not in TRIGGERS or not number.isdigit():
        raise ValueError(f"no task {name!r}")
    scene = TRIGGERS[kind](int(number))
    if not edit:
        return scene
    found = [e for e in EDITS.values() if e.name == edit and PROVOKED[e.habit] == kind]
    if not found:
        raise ValueError(f"{name!r}: no edit {edit!r} of {kind}")
    return found[0].apply(scene)


# -- the environment -----------------------------------------------------------------------------------------------------


class EditedEnvironment:
    """One decision: the first step ends the task."""

    def reset(self, task: str) -> Start:
        """Begin `task`. Raises ValueError for an unknown name."""
        self.scene = scene_of(task)
        return Start(messages=self.scene.messages, tools=tuple(schema(t) for t in self.scene.tools))

    def step(self, message: Message) -> Reply:
        """Judge the step."""
        return Reply(messages=(), done=True, reward=float(spoken(message) in self.scene.right))


class EditedErrands(Errands):
    """Plays the tasks of the pairs; see the module. The splits are Errands', and their tasks are not played here."""

    def make(self) -> EditedEnvironment:  # type: ignore[override]
        """A fresh environment."""
        return EditedEnvironment()

    def check(self, trace: Trace) -> Sequence[Finding]:
        """The error of the step: Errands' checker on a trigger; on a near-miss what is not right after the edit."""
        name = trace.task_id or ""
        if name.count(".") < 2:
            return check(trace)
        scene, (step, *_) = scene_of(name), trace.own_steps
        did = spoken(trace.step(step))
        if did in scene.right:
            return []
        wrong = "stopped_early" if did is STOP else "unparsable_call" if isinstance(did, str) else "wrong_tool"
        return [Finding(step=step, error_class="unneeded_call" if STOP in scene.right else wrong, critic="checker")]

    def facts(self, task: str) -> dict[str, Any]:
        """What a table divides tasks by."""
        return {"kind": task.partition(".")[0], "nouns": [scene_of(task).first]}


# -- the pairs -----------------------------------------------------------------------------------------------------------


def make_pairs() -> list[Pair]:
    """Every thing of the split unseen is the first one of one trigger; each is paired with the near-miss of every family."""
    numbers: dict[str, int] = {}
    number = 0
    while len(numbers) < len(UNSEEN):
        numbers.setdefault(_next(number).first, number)
        number += 1
    pairs = []
    for edit in EDITS.values():
        for i, n in enumerate(numbers.values()):
            trigger = f"{PROVOKED[edit.habit]}.{n}"
            pairs.append(Pair(f"{edit.family}.{i:02d}", edit.habit, edit.family, trigger, f"{trigger}.{edit.name}"))
    return pairs


SUITE = PairSuite(
    path=PAIRS,
    makers=MAKER_FAMILIES,
    tests=TEST_FAMILIES,
    make=make_pairs,
    environment=EditedErrands,
    options=SamplingOptions(max_new_tokens=64, max_steps=2, batch_size=32),
    dtype="bfloat16",
)


def main(arguments: list[str] | None = None) -> int:
    """Parse, play, print."""
    return SUITE.command(__doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
