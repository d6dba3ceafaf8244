"""Train the tiny toolworld critic: an LLM that names the erring step, quotes it and writes the hint. A few minutes on one core.

    python examples/toolworld/build_critic.py train      # writes critic/, starting from the student's weights
    python examples/toolworld/build_critic.py measure    # and its card

It learns from demonstrated episodes that the world's own checker labels, in the words of the compact prompt
`prompts/critic/toolworld.jinja`, and answers with the critic's JSON. It never sees a trace that the student produced.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from build_student import Muon, batches  # noqa: E402
from demonstrator import CORPUS_MIX, Demonstrator, draw_task, facts  # noqa: E402
from hints import TRAINED  # noqa: E402
from world import HABITS, label_steps  # noqa: E402

from hintdistill.config import CriticSection, LLMSection, RunSection  # noqa: E402
from hintdistill.critics.answers import LLMAnswer, LLMFinding  # noqa: E402
from hintdistill.critics.backends import by_bytes  # noqa: E402
from hintdistill.critics.build import make_llm  # noqa: E402
from hintdistill.critics.llm import LLMCritic  # noqa: E402
from hintdistill.critics.local import question_ids  # noqa: E402
from hintdistill.prompts import PromptLibrary  # noqa: E402
from hintdistill.types import Finding, Trace  # noqa: E402

STUDENT, CRITIC = HERE / "student", HERE / "critic"
PROMPT = "critic/toolworld.jinja"
EPISODES = 6000
SEED = 23
RATES = dict.fromkeys(HABITS, 0.5)
"""Half the triggers err, so that right and wrong steps in the same place are seen equally often."""
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


def episode(rng: random.Random, name: str, names: str = "old") -> tuple[Trace, list[Finding]]:
    """A demonstrated episode as a trace, and what the world's checker says of it, each finding with its hint."""
    played = Demonstrator(draw_task(rng, names, mix=CORPUS_MIX), rng, RATES, hints=False).play()
    trace = Trace(id=name, messages=tuple(played.messages), tools=played.task.tools)
    listed = ", ".join(t["function"]["name"] for t in trace.tools)
    found = []
    for f in label_steps(trace):
        hint = WORDING[f.error_class].format(**(facts(played.task.kind, f.error_class, listed) | said(f)))
        found.append(f.model_copy(update={"hint": hint}))
    return trace, found


def said(finding: Finding) -> dict[str, str]:
    """The facts of a finding that name what this very step did."""
    keep = {"unknown_tool": ("wrong",), "wrong_argument": ("wrong", "tool"), "skipped_lookup": ("argument", "tool"),
            "ignored_error": ("tool",)}[finding.error_class]  # fmt: skip
    return {k: str(finding.facts[k]) for k in keep}


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


def build_rows(tokenizer: object, n: int) -> tuple[list[list[int]], list[int]]:
    """Token ids of question and answer, and where the answer begins, of `n` episodes."""
    asking = LLMCritic(LLMSection(backend="local", prompt=PROMPT), PromptLibrary(), _Unasked())  # type: ignore[arg-type]
    rng = random.Random(SEED)
    rows, starts = [], []
    for i in range(n):
        trace, found = episode(rng, f"demo-{i}")
        question = question_ids(tokenizer, [{"role": "user", "content": asking.prompt(trace)}])
        reply = tokenizer(answer(found), add_special_tokens=False)["input_ids"]  # type: ignore[operator]
        rows.append([*question, *reply, tokenizer.eos_token_id])  # type: ignore[attr-defined]
        starts.append(len(question))
    return rows, starts


def train(episodes: int, batch: int, lr: float, student: Path) -> None:
    """One epoch from the student's weights: Muon for the matrices, AdamW for embeddings and norms, cosine schedule."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).train()
    rows, starts = build_rows(tokenizer, episodes)
    lengths = np.array([len(r) for r in rows])
    print(f"{episodes} episodes, {lengths.sum():,} tokens, longest {lengths.max()}", flush=True)
    named = list(model.named_parameters())
    matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    rest = [p for n, p in named if p.ndim != 2 or "embed" in n or "lm_head" in n]
    optimizers = [Muon(matrices, lr=lr), torch.optim.AdamW(rest, lr=1.5 * lr, betas=(0.9, 0.98), weight_decay=0.0)]
    base = [[g["lr"] for g in o.param_groups] for o in optimizers]
    plan = batches(lengths, batch, np.random.default_rng(SEED))
    began, running = time.time(), 0.0
    for step, chosen in enumerate(plan):
        scale = min(1.0, (step + 1) / 20) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / len(plan))))
        for optimizer, rates in zip(optimizers, base, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
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
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        running = 0.98 * running + 0.02 * float(loss) if step else float(loss)
        if step % 50 == 0:
            print(f"step {step}/{len(plan)} loss {running:.4f} after {time.time() - began:.0f} s", flush=True)
    model.to(torch.bfloat16).save_pretrained(CRITIC)
    tokenizer.save_pretrained(CRITIC)
    print(f"trained on {lengths.sum():,} tokens in {(time.time() - began) / 60:.1f} minutes, loss {running:.4f}")


def load_critic(prompt: str = PROMPT, library: PromptLibrary | None = None, **settings: object) -> LLMCritic:
    """The trained critic as a run uses it."""
    section = LLMSection.model_validate(
        {"backend": "local", "model": str(CRITIC), "prompt": prompt, "max_tokens": 320, "concurrency": 64, "max_findings": 4,
         "repair_rounds": 0, "drop_unfound_quotes": True, **settings}
    )  # fmt: skip
    return make_llm(
        "llm", section, CriticSection(llm=section), RunSection(model=str(STUDENT)), library or PromptLibrary()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="+", choices=["train", "measure"])
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--student", type=Path, default=STUDENT, help="whose weights to start from")
    args = parser.parse_args()
    if "train" in args.stages:
        train(args.episodes, args.batch, args.lr, args.student)
    if "measure" in args.stages:
        from measure_critic import measure

        measure(load_critic)


if __name__ == "__main__":
    main()
