"""Ask after a failed call which of several hints would have prevented it, in a small tool-use loop.

    python examples/agent_rescore.py [--model examples/toolworld/student] [--task NAME] [--json]

The agent plays a task of the example world with the shipped student. When a tool answers with an error, the loop goes on
as it would, and meanwhile `hd.rank_hints_async` reads the conversation once and says, for each hint, how much of the
failed call's probability it would have taken away, and what the student would have said instead. The task is then
played again with the best hint above the step, which is the proof. Nothing is trained.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "toolworld"))

from world import Toolworld  # noqa: E402

import hintdistill as hd  # noqa: E402
from hintdistill.rollouts.parsing import parse_hermes  # noqa: E402
from hintdistill.rollouts.sampling import Sampler, SamplingOptions  # noqa: E402

MAX_STEPS = 6


@dataclass
class Failure:
    """A call that a tool refused."""

    step: int
    tool: str
    error: str


class Agent:
    """Plays one task greedily, in plain OpenAI-style messages."""

    def __init__(self, loaded: hd.LoadedModel, task: str) -> None:
        self.loaded, self.environment = loaded, Toolworld().make()
        self.sampler = Sampler(loaded.engine, loaded.renderer, SamplingOptions(temperature=0.0, max_new_tokens=128))
        start = self.environment.reset(task)
        self.messages: list[dict[str, Any]] = [{"role": m.role, "content": m.content} for m in start.messages]
        self.tools, self.steps, self.reward = list(start.tools), 0, None

    def step(self, hint: str | None = None) -> Failure | None:
        """One turn; the failure, if a tool refused the call. `hint` is shown above the step and then forgotten."""
        shown = [*self.messages, {"role": "user", "content": hint}] if hint else self.messages
        typed = [_message(m) for m in shown]
        context = self.loaded.renderer.encode(self.loaded.renderer.render(typed, self.tools, header=True))
        ids = self.sampler.generate([context], seed=0)[0]
        said = parse_hermes(self.loaded.renderer.decode(ids).removesuffix(self.loaded.renderer.tokenizer.eos_token))
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.arguments_raw}}
            for c in said.tool_calls
        ]
        self.messages.append({"role": "assistant", "content": said.content} | ({"tool_calls": calls} if calls else {}))
        reply = self.environment.step(said)
        self.messages += [
            {"role": "tool", "tool_call_id": m.tool_call_id, "content": m.content} for m in reply.messages
        ]
        self.steps, self.reward = self.steps + 1, reply.reward
        for call, answer in zip(said.tool_calls, reply.messages, strict=False):
            if "error" in json.loads(answer.content or "{}"):
                return Failure(self.steps - 1, call.name, json.loads(answer.content or "{}")["error"])
        return None


def _message(message: dict[str, Any]) -> hd.Message:
    calls = tuple(
        hd.ToolCall(name=c["function"]["name"], arguments_raw=c["function"]["arguments"], id=c["id"])
        for c in message.get("tool_calls", ())
    )
    return hd.Message(
        role=message["role"],
        content=message["content"],
        tool_calls=calls,
        tool_call_id=message.get("tool_call_id"),
    )


def hints_for(failure: Failure, tools: list[dict[str, Any]]) -> list[str]:
    """Hints that a person might try; one of them names the tools that exist."""
    names = ", ".join(t["function"]["name"] for t in tools)
    return [
        "Be careful.",
        "Check the arguments of your call.",
        f"There is no tool {failure.tool}. The tools are {names}.",
        "Answer the user politely and in one sentence.",
    ]


async def play(loaded: hd.LoadedModel, task: str) -> dict[str, Any]:
    """Play a task; after the first failed call, rank the hints, then play it again with the best one."""
    agent, ranking, failure = Agent(loaded, task), None, None
    while agent.reward is None and agent.steps < MAX_STEPS:
        found = agent.step()
        if found is not None and failure is None:
            failure = found
            # a copy: the loop goes on writing into its own messages
            ranking = asyncio.create_task(
                hd.rank_hints_async(
                    list(agent.messages),
                    step=failure.step,
                    quote=failure.tool,
                    tools=agent.tools,
                    engine=loaded,
                    hints=hints_for(failure, agent.tools),
                )
            )
        await asyncio.sleep(0)
    out: dict[str, Any] = {"task": task, "reward": agent.reward, "failed_call": failure and failure.tool}
    if failure is None or ranking is None:
        return out
    ranked = await ranking
    out["error"] = failure.error
    out["hints"] = [
        {
            "hint": r.hint,
            "effect_nats": round(r.effect, 3),
            "accepted": r.target.accepted,
            "reasons": r.target.reasons,
            "instead": r.target.decision.instead if r.target.decision else None,
            "legal_mass_gain": r.target.legal_mass_gain,
        }
        for r in ranked
    ]
    again, second = Agent(loaded, task), None
    while again.reward is None and again.steps < MAX_STEPS:
        at_the_step = again.steps == failure.step
        found = again.step(ranked[0].hint if at_the_step else None)
        second = found.tool if at_the_step and found else second
    return out | {"failed_call_with_hint": second, "reward_with_hint": again.reward}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "toolworld" / "student"))
    parser.add_argument("--task", help="default: the first test task at which the student's call fails")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    loaded = hd.load_engine(args.model)
    tasks = [args.task] if args.task else [t for t in Toolworld().splits()["test"] if ".alias." in t]
    for task in tasks:
        result = asyncio.run(play(loaded, task))
        if result["failed_call"]:
            break
    if args.json:
        print(json.dumps(result))
        return
    print(f"task {result['task']}: the call of {result['failed_call']} failed ({result.get('error')})")
    for row in result.get("hints", ()):
        verdict = "accepted" if row["accepted"] else ", ".join(row["reasons"])
        print(f"  {row['effect_nats']:8.2f} nats  {row['hint']!r} → {row['instead']!r}  [{verdict}]")
    if "reward_with_hint" in result:
        print(f"with the best hint: failed call {result['failed_call_with_hint']}, reward {result['reward_with_hint']}")


if __name__ == "__main__":
    main()
