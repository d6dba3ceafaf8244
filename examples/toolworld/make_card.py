"""Measure the shipped student and write its card. About three minutes.

    python examples/toolworld/make_card.py

Writes student/measurements.json and student/README.md; every number of the card comes from here.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from demonstrator import TRIGGER_HABIT, draw_task, facts, rollout_kinds  # noqa: E402
from hints import HELD_OUT, TRAINED, shuffled, slots  # noqa: E402
from world import HABITS, Task, Toolworld, ToolworldEnvironment, compact, label_steps  # noqa: E402

from hintdistill.core.types import Message, ToolCall, Trace  # noqa: E402
from hintdistill.engines.transformers import TransformersEngine  # noqa: E402
from hintdistill.injection.rendering import Renderer  # noqa: E402
from hintdistill.rollouts.evaluate import evaluate  # noqa: E402
from hintdistill.rollouts.parsing import parse_hermes  # noqa: E402
from hintdistill.rollouts.sampling import Sampler, SamplingOptions  # noqa: E402

STUDENT = HERE / "student"
PROBES = 200
CONDITIONS = (
    "none",
    "relevant",
    "held_out_wording",
    "in_system_prompt",
    "in_observation",
    "generic",
    "generic_held_out",
    "other_habit",
    "shuffled",
)


def error_context(habit: str, rng: random.Random) -> tuple[Task, list[Message]]:
    """A task and the messages right above the step at which the habit fires."""
    trigger = {v: k for k, v in TRIGGER_HABIT.items()}.get(habit, "none")
    fault = "timeout" if habit == "ignored_error" else "none"
    env = ToolworldEnvironment()
    start = env.reset(draw_task(rng, "new", rollout_kinds(), trigger=trigger, fault=fault))
    messages = list(start.messages)
    if habit == "ignored_error":
        for tool, args in env.task.plan:
            call = Message(role="assistant", tool_calls=(ToolCall(name=tool, arguments_raw=compact(args)),))
            messages += [call, *env.step(call).messages]
    return env.task, messages


def hint_for(task: Task, habit: str, condition: str, rng: random.Random) -> str:
    """A hint of the condition's kind for this context."""
    tools = ", ".join(t["function"]["name"] for t in task.tools)
    own = facts(task.kind, habit, tools)
    if condition.startswith("generic"):
        return rng.choice((HELD_OUT if condition.endswith("held_out") else TRAINED)["generic"])
    if condition == "held_out_wording":
        return rng.choice(HELD_OUT[habit]).format(**own)
    if condition == "other_habit":
        others = [
            h
            for h in HABITS
            if h != habit
            and (h, habit) != ("skipped_lookup", "unknown_tool")
            and (h != "skipped_lookup" or len(task.kind.calls) > 1)
        ]
        about = rng.choice(others)
        words = [w for w in TRAINED[about] if about != "unknown_tool" or "right" not in slots(w)]
        return rng.choice(words).format(**facts(task.kind, about, tools, misnamed=True))
    text = rng.choice(TRAINED[habit]).format(**own)
    return shuffled(text, rng) if condition == "shuffled" else text


def with_hint(messages: list[Message], text: str, condition: str, rng: random.Random) -> list[Message]:
    """The context with the hint in its place."""
    at = {"in_system_prompt": 0, "in_observation": -1}.get(condition)
    if at is None:
        return [*messages, Message(role=rng.choice(("user", "system")), content=text)]
    changed = list(messages)
    changed[at] = changed[at].model_copy(update={"content": f"{changed[at].content}\n\n{text}"})
    return changed


def error_rate(sampler: Sampler, renderer: Renderer, habit: str, condition: str, rng: random.Random) -> float:
    """Share of sampled steps (temperature 1) with the habit's error."""
    cases = []
    for _ in range(PROBES):
        task, messages = error_context(habit, rng)
        if condition != "none":
            messages = with_hint(messages, hint_for(task, habit, condition, rng), condition, rng)
        cases.append((task, messages))
    contexts = [renderer.encode(renderer.render(m, t.tools, header=True)) for t, m in cases]
    wrong = 0
    for (task, messages), ids in zip(cases, sampler.generate(contexts, seed=1), strict=True):
        step = parse_hermes(renderer.decode(ids[:-1]))
        trace = Trace(id="probe", messages=(*messages, step), tools=task.tools)
        last = len(trace.step_indices) - 1
        wrong += any(f.step == last and f.error_class == habit for f in label_steps(trace))
    return wrong / PROBES


def measure() -> dict[str, Any]:
    """Everything the card states."""
    engine, renderer = TransformersEngine.load(STUDENT, dtype="float32"), Renderer.from_pretrained(STUDENT)
    suite = Toolworld()
    out: dict[str, Any] = {"parameters": sum(p.numel() for p in engine.model.parameters()), "success": {}, "hints": {}}
    for split, tasks in suite.splits().items():
        if split == "train":
            continue
        out["success"][split] = {}
        for name, temperature in (("greedy", 0.0), ("T=1", 1.0)):
            options = SamplingOptions(temperature=temperature, max_new_tokens=64, max_steps=8, batch_size=128, seed=7)
            e = evaluate(engine, renderer, suite, tasks, options)
            out["success"][split][name] = {"episodes": e.episodes, "success": e.success_rate, "error": e.error_rate}
            print(split, name, out["success"][split][name], flush=True)
    sampler = Sampler(engine, renderer, SamplingOptions(temperature=1.0, max_new_tokens=64))
    for habit in HABITS:
        rng = random.Random(f"card:{habit}")
        out["hints"][habit] = {c: error_rate(sampler, renderer, habit, c, rng) for c in CONDITIONS}
        print(habit, out["hints"][habit], flush=True)
    return out


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---

# The toolworld student

A Qwen3 architecture of {parameters:,} parameters (hidden 128, 4 layers, 4 heads, 2 key-value heads, vocabulary 1,024,
{positions:,} positions, bfloat16), trained from scratch on synthetic tool-use episodes. It exists to be corrected: it
solves clean tasks and has four bad habits, each tied to a visible feature of the task.

**The student was trained to follow hints.** Its corpus balances relevant and irrelevant hints; the student
follows relevant hints because the demonstrator followed them. A hint works in a large model for the same reason, but this
student does not show how well it works there.

## How it was made

`build_student.py` (tokenizer, {episodes:,} demonstrated episodes, one epoch, Muon and AdamW, about twenty minutes on
one core), then `make_traces.py` (splits and the shipped rollouts) and `make_card.py` (this card). Seeds are fixed.

## Success

| split | episodes | success, greedy | success, T=1 | episodes with a habit error, greedy | episodes with a habit error, T=1 |
|---|---|---|---|---|---|
{success}

`test` is the natural mix of tasks. `test_clean` has no trigger. Near-misses look like a trigger, but the habit's
behaviour is right there. `transfer` has the two task kinds that no shipped rollout contains. The entities in all of
these splits occur neither in the corpus nor in the shipped traces.

## Share of steps with the habit's error, T=1, {probes} contexts each

| hint in context | {habits} |
|---|{rules}|
{hints}

Relevant hints are a separate message right above the step, unless the row names another place.
"""


def write_card(m: dict[str, Any]) -> None:
    """Fill the card in."""
    from build_student import EPISODES, MAX_POSITIONS

    success = "\n".join(
        f"| {split} | {by['greedy']['episodes']} | {by['greedy']['success']:.3f} | {by['T=1']['success']:.3f} "
        f"| {by['greedy']['error']:.3f} | {by['T=1']['error']:.3f} |"
        for split, by in m["success"].items()
    )
    hints = "\n".join(
        f"| {c.replace('_', ' ')} | " + " | ".join(f"{m['hints'][h][c]:.2f}" for h in HABITS) + " |" for c in CONDITIONS
    )
    text = CARD.format(
        parameters=m["parameters"],
        positions=MAX_POSITIONS,
        episodes=EPISODES,
        success=success,
        probes=PROBES,
        habits=" | ".join(HABITS),
        rules="|".join("---" for _ in HABITS),
        hints=hints,
    )
    (STUDENT / "README.md").write_text(text, encoding="utf-8")


def main() -> None:
    measurements = measure()
    (STUDENT / "measurements.json").write_text(json.dumps(measurements, indent=1) + "\n", encoding="utf-8")
    write_card(measurements)


if __name__ == "__main__":
    main()
