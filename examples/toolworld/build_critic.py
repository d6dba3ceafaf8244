"""Train the tiny toolworld critic: an LLM that names the erring step, quotes it and writes the hint. A few minutes on one core.

    python examples/toolworld/build_critic.py train sharpen    # writes critic/, starting from the student's weights
    python examples/toolworld/build_critic.py measure          # and its card

It learns from played episodes that the world's own checker labels, in the words of the compact prompt
`prompts/critic/toolworld.jinja`, and answers with the critic's JSON. It never sees a trace that the student produced.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from build_student import Updates, batches  # noqa: E402
from demonstrator import CORPUS_MIX, Demonstrator, draw_task  # noqa: E402
from hints import TRAINED  # noqa: E402
from world import (  # noqa: E402
    GIVE_UP,
    HABITS,
    KINDS,
    PARAMS,
    VERBS,
    Call,
    Task,
    ToolworldEnvironment,
    compact,
    label_steps,
)

from hintdistill.config import CriticSection, LLMSection, RunSection  # noqa: E402
from hintdistill.core.types import Finding, Message, ToolCall, Trace  # noqa: E402
from hintdistill.critics.answers import LLMAnswer, LLMFinding  # noqa: E402
from hintdistill.critics.backends import by_bytes  # noqa: E402
from hintdistill.critics.build import make_llm  # noqa: E402
from hintdistill.critics.llm import LLMCritic  # noqa: E402
from hintdistill.critics.local import question_ids  # noqa: E402
from hintdistill.prompts import PromptLibrary  # noqa: E402

STUDENT, CRITIC = HERE / "student", HERE / "critic"
PROMPT = "critic/toolworld.jinja"
EPISODES = 5000
SHARPEN = 2000
"""Episodes of the second, shorter pass, half of them with two errors or a late one."""
SEED = 23
RATES = {"unknown_tool": 0.5, "wrong_argument": 0.5, "skipped_lookup": 0.6, "ignored_error": 0.7}
"""About half the triggers err, so that right and wrong steps in the same place are both seen often."""
WORDING = {
    "unknown_tool": "The tool {wrong} does not exist. Use {right}.",
    "wrong_argument": "{tool} has no argument {wrong}. Its argument is {right}.",
    "skipped_lookup": "Do not use a name as {argument}. Look it up with {tool}.",
    "ignored_error": "The call of {tool} failed. Call it again.",
}
"""The hint the critic learns to write, one wording per class, out of those the student's corpus has."""
assert all(WORDING[c] in TRAINED[c] for c in HABITS)
PROMPT_WEIGHT = 0.05
"""Weight of the question's tokens in the loss; an answer's tokens weigh 1."""


class Stumbler:
    """Plays one task and errs anywhere, in the ways of the four habits but not only at their triggers.

    A student at temperature 1 calls the usual tool where another is listed, or misnames an argument nobody led it to. A
    critic trained on the habits alone answers such a step with the habit's usual quote, which is not in it.
    """

    def __init__(self, task: str, rng: random.Random) -> None:
        self.rng, self.env = rng, ToolworldEnvironment()
        start = self.env.reset(task)
        self.task, self.messages = self.env.task, list(start.messages)

    def play(self) -> list[Message]:
        """Run to the end; the messages."""
        plan, kind = list(self.task.plan), self.task.kind
        offset = len(kind.calls) - len(plan)
        if len(plan) > 1 and self.rng.random() < (0.6 if self.task.trigger == "urgent" else 0.1):
            call = kind.calls[offset + 1]
            plan = [(plan[1][0], {**plan[1][1], call.param: self.task.entity}), *plan[2:]]
        at, value = 0, "0"
        for _ in range(6):
            if at == len(plan):
                return self._say(kind.answer.format(entity=self.task.entity, value=value))
            tool, args = plan[at]
            if at and (offset + at + len(self.task.plan) - len(plan)) < len(kind.calls):
                args = {**args, next(iter(args)): value}
            result = self._call(*self._misnamed(tool, args, kind.calls[min(at + offset, len(kind.calls) - 1)]))
            if "error" not in result:
                value, at = next(v for k, v in result.items() if k != "warning"), at + 1
            elif result["error"] == "timeout" and self.rng.random() < 0.6:
                digits = kind.calls[-1].digits
                made_up = str(self.rng.randint(10 ** (digits - 1), 10**digits - 1))
                return self._say(kind.answer.format(entity=self.task.entity, value=made_up))
            elif result["error"] not in ("timeout", "busy") and self.rng.random() < 0.7:
                return self._say(GIVE_UP)
        return self._say(GIVE_UP)

    def _misnamed(self, tool: str, args: dict[str, object], call: Call) -> tuple[str, dict[str, object]]:
        """Sometimes the wrong tool, or one argument by a wrong name."""
        u, kind = self.rng.random(), self.task.kind
        listed = self.env.schemas
        if u < 0.22:
            verb, _, rest = tool.partition("_")
            other = self.rng.choice(list(KINDS.values()))
            names = [
                kind.alias_tool,
                call.tool,
                f"{self.rng.choice(VERBS)}_{rest}",
                other.calls[0].tool,
                other.alias_tool,
                f"{verb}_{other.word}",
            ]
            wrong = [n for n in names if n not in listed]
            return (self.rng.choice(wrong) if wrong else tool), args
        if u < 0.40 and tool in listed:
            first = next(iter(args))
            names = [kind.noun, call.param, *PARAMS, self.rng.choice(list(KINDS.values())).noun]
            wrong = [n for n in names if n not in listed[tool]["properties"]]
            if wrong:
                name = self.rng.choice(wrong)
                return tool, {(name if k == first else k): v for k, v in args.items()}
        return tool, args

    def _call(self, tool: str, args: dict[str, object]) -> dict[str, str]:
        message = Message(role="assistant", tool_calls=(ToolCall(name=tool, arguments_raw=compact(args)),))
        reply = self.env.step(message)
        self.messages += [message, *reply.messages]
        return json.loads(reply.messages[-1].content or "")

    def _say(self, text: str) -> list[Message]:
        return [*self.messages, Message(role="assistant", content=text)]


def episode(
    rng: random.Random, name: str, names: str = "old", stumbling: float = 0.5, hard: float = 0.0
) -> tuple[Trace, list[Finding]]:
    """An episode as a trace, and what the world's checker says of it, each finding with its hint.

    `stumbling` is the share of episodes by the Stumbler, the demonstrator plays the others; `hard` the share of `hard_task`s.
    """
    task_name = draw_task(rng, names, mix=CORPUS_MIX) if rng.random() >= hard else hard_task(rng, names)
    if rng.random() < stumbling:
        player = Stumbler(task_name, rng)
        messages, task = player.play(), player.task
    else:
        played = Demonstrator(task_name, rng, RATES, hints=False).play()
        messages, task = played.messages, played.task
    trace = Trace(id=name, messages=tuple(messages), tools=task.tools)
    found = [f.model_copy(update={"hint": hint(trace, task, f)}) for f in label_steps(trace)]
    return trace, found


def hard_task(rng: random.Random, names: str) -> str:
    """A task that may bring two errors, or a late one: urgent with a time-out, or three calls with one."""
    if rng.random() < 0.6:
        return draw_task(rng, names, trigger="urgent", fault="timeout")
    return draw_task(rng, names, ("refund",), mix=CORPUS_MIX, fault=rng.choice(("timeout", "timeout", "none")))


def hint(trace: Trace, task: Task, finding: Finding) -> str:
    """The hint for a finding, from what the step did and what the tool list and the plan say was right."""
    step, facts = trace.step(finding.step), finding.facts
    made = sum(
        c.name == planned for k in range(finding.step) for c in trace.step(k).tool_calls for planned, _ in task.plan
    )
    planned = task.plan[min(made, len(task.plan) - 1)][0]
    slots = {
        "wrong": facts.get("wrong"),
        "tool": facts.get("tool"),
        "argument": facts.get("argument"),
        "right": planned,
    }
    if finding.error_class == "wrong_argument":
        given = step.tool_calls[finding.call or 0].arguments or {}
        slots["right"] = next(a for a in trace.tool_schemas[str(slots["tool"])]["properties"] if a not in given)
    if finding.error_class == "skipped_lookup" and slots["tool"] not in trace.tool_schemas:
        slots["tool"] = task.plan[0][0]
    return WORDING[finding.error_class].format(**slots)


def answer(found: list[Finding]) -> str:
    """The answer a critic should give."""
    rows = [
        LLMFinding(
            step=f.step,
            quote=f.quote,
            error_class=f.error_class,
            hint=f.hint or "",
            confidence=0.9,
            caused_by=f.caused_by,
        )
        for f in found
    ]
    return LLMAnswer(verdict="findings" if rows else "none", findings=rows).model_dump_json()


class _Unasked:
    """Stands where a backend goes while only prompts are made."""

    key, together, context_tokens = "none", True, None
    count = staticmethod(by_bytes)

    def complete(self, requests: object) -> list[object]:
        """Never called."""
        raise AssertionError


def build_rows(tokenizer: object, n: int, seed: int, hard: float) -> tuple[list[list[int]], list[int]]:
    """Token ids of question and answer, and where the answer begins, of `n` episodes."""
    asking = LLMCritic(LLMSection(backend="local", prompt=PROMPT), PromptLibrary(), _Unasked())  # type: ignore[arg-type]
    rng = random.Random(seed)
    rows, starts = [], []
    for i in range(n):
        trace, found = episode(rng, f"demo-{i}", hard=hard)
        question = question_ids(tokenizer, [{"role": "user", "content": asking.prompt(trace)}])
        reply = tokenizer(answer(found), add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        rows.append([*question, *reply, tokenizer.eos_token_id])  # type: ignore[attr-defined]
        starts.append(len(question))
    return rows, starts


def train(episodes: int, batch: int, lr: float, student: Path, seed: int = SEED, hard: float = 0.0) -> None:
    """One epoch from the given weights: Muon for the matrices, AdamW for embeddings and norms, cosine schedule."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).train()
    rows, starts = build_rows(tokenizer, episodes, seed, hard)
    lengths = np.array([len(r) for r in rows])
    erring = sum(len(r) - begin > 40 for r, begin in zip(rows, starts, strict=True))
    print(f"{episodes} episodes, {erring} erring, {lengths.sum():,} tokens, longest {lengths.max()}", flush=True)
    plan = batches(lengths, batch, np.random.default_rng(SEED))
    updates = Updates(model, lr, len(plan), warmup=20)
    began, running = time.time(), 0.0
    for step, chosen in enumerate(plan):
        width = int(lengths[chosen].max())
        ids = torch.full((len(chosen), width), tokenizer.pad_token_id)
        weight = torch.zeros(len(chosen), width)
        for i, r in enumerate(chosen):
            ids[i, : lengths[r]] = torch.tensor(rows[r])
            weight[i, : lengths[r]] = PROMPT_WEIGHT
            weight[i, starts[r] : lengths[r]] = 1.0
        logits = model(input_ids=ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weight[:, 1:].flatten()
        loss = (loss * weight).sum() / weight.sum()
        loss.backward()
        updates.step()
        running = 0.98 * running + 0.02 * float(loss) if step else float(loss)
        if step % 50 == 0:
            print(f"step {step}/{len(plan)} loss {running:.4f} after {time.time() - began:.0f} s", flush=True)
    model.to(torch.bfloat16).save_pretrained(CRITIC)
    tokenizer.save_pretrained(CRITIC)
    print(f"trained on {lengths.sum():,} tokens in {(time.time() - began) / 60:.1f} minutes, loss {running:.4f}")


def load_critic(prompt: str = PROMPT, library: PromptLibrary | None = None, **settings: object) -> LLMCritic:
    """The trained critic as a run uses it."""
    section = LLMSection.model_validate(
        {
            "backend": "local",
            "model": str(CRITIC),
            "prompt": prompt,
            "max_tokens": 320,
            "concurrency": 64,
            "max_findings": 4,
            "repair_rounds": 0,
            "drop_unfound_quotes": True,
            **settings,
        }
    )
    return make_llm(
        "llm", section, CriticSection(llm=section), RunSection(model=str(STUDENT)), library or PromptLibrary()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=["train", "sharpen", "measure", "card"])
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--student", type=Path, default=STUDENT, help="whose weights to start from")
    args = parser.parse_args()
    if "train" in args.stages:
        train(args.episodes, args.batch, args.lr, args.student)
    if "sharpen" in args.stages:
        train(SHARPEN, args.batch, args.lr / 2, CRITIC, SEED + 10, hard=0.5)
    if "measure" in args.stages:
        from measure_critic import measure

        measure(load_critic)
    elif "card" in args.stages:
        from measure_critic import write_card

        write_card()


if __name__ == "__main__":
    main()
