"""Warm a small model up on BFCL's training split, and say whether it makes errors and follows hints.

    python examples/bfcl/warm_up.py a [--model build/smollm2] [--out build/bfcl]      # trains, measures on validation, keeps the try
    python examples/bfcl/warm_up.py --docs                                            # writes the table of tries into docs/bfcl.md

One thread. A killed call is given again and goes on: training from its last checkpoint, measuring after the last finished part. The
model is a transformers folder without a tool template; `examples/smollm2/get_model.py` makes one.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT)]

from bfcl_accept import ACCEPT, Bounds, verdict  # noqa: E402
from bfcl_data import Entry, entries, fraction, splits  # noqa: E402
from bfcl_packing import encoded, length, loss, pack  # noqa: E402
from bfcl_rows import Mix, RowMaker, Sheet, usable  # noqa: E402
from bfcl_suite import CALLS_AS_TEXT, finding_of, opening, wrong  # noqa: E402

from benchmarks.blocks import put  # noqa: E402
from hintdistill.core.storage import writing_aside  # noqa: E402
from hintdistill.core.types import Message, Trace  # noqa: E402
from hintdistill.engines.transformers import TransformersEngine  # noqa: E402
from hintdistill.injection.hints import hint_text  # noqa: E402
from hintdistill.injection.rendering import Renderer  # noqa: E402
from hintdistill.prompts import PromptLibrary  # noqa: E402
from hintdistill.rollouts.parsing import parse_hermes  # noqa: E402
from hintdistill.rollouts.sampling import Sampler, SamplingOptions  # noqa: E402

TRIES = HERE / "tries.json"
PAGE = ROOT / "docs" / "bfcl.md"
MARKS = "<!-- tries: made by examples/bfcl/warm_up.py --docs -->", "<!-- end of tries -->"
LONGEST = 260
"""Tokens of an opening, up to which a task is trained and validated on: twice as many would take twice the time."""
CALL_TASKS, NO_CALL_TASKS = 120, 60
"""Tasks of the validation part on which a student is accepted."""
PLACEBO = "Please take care with this step."
"""Not among the placebos that are trained on."""
NEW_TOKENS, BATCH = 96, 16
LORA = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
KEEP_EVERY = 5


@dataclass(frozen=True)
class Recipe:
    """One way to warm up."""

    mix: Mix
    steps: int
    sheets: int
    """Sheets of a step."""
    learning_rate: float
    why: str
    decision: float | None = None
    """See `bfcl_packing.answer_weights`."""

    @property
    def content(self) -> str:
        """What the weights depend on: everything but the words about it."""
        return json.dumps({k: v for k, v in asdict(self).items() if k != "why" and v is not None}, sort_keys=True)


RECIPES = {
    "a": Recipe(
        Mix(),
        steps=75,
        sheets=4,
        learning_rate=8e-4,
        why="one run. A third of the drawn rows have a hint or a placebo, for calls and refusals alike; two thirds of the foreign "
        "requests are hard",
    ),
    "b": Recipe(
        Mix(no_call=0.2),
        steps=100,
        sheets=4,
        learning_rate=8e-4,
        why="after try a the student refuses every request: the first token of a refusal has probability .8 for any request. A "
        "refusal is short, so in try a its first token had three times the weight of a call's, and 46 % of the rows were "
        "refusals. In try b half of every row's weight is on the first token, which says whether a call comes; there are fewer "
        "refusals, and a third more steps",
        decision=0.5,
    ),
}


def chosen(renderer: Renderer, split: str) -> list[Entry]:
    """The tasks of a split that a student of this size can read."""
    found = [entries()[i] for i in splits()[split]]
    return [e for e in found if usable(e) and length(renderer, opening(e, as_text=True)) <= LONGEST]


def batches(maker: RowMaker, recipe: Recipe, first: int) -> Iterator[list[Sheet]]:
    """The sheets of each step from step `first` on."""
    sheets = maker.sheets(seed=0)
    for _ in islice(sheets, first * recipe.sheets):
        pass
    for _ in range(first, recipe.steps):
        yield list(islice(sheets, recipe.sheets))


class Training:
    """The weights, the optimiser, and how far they are; what is needed to go on lies in `folder`."""

    def __init__(self, model: Path, recipe: Recipe, folder: Path) -> None:
        """Load the model, and the last checkpoint where there is one."""
        from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        self.recipe, self.path = recipe, folder / "training.pt"
        base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        self.model = get_peft_model(base, LoraConfig(**LORA, task_type="CAUSAL_LM"))
        self.weights = [p for p in self.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(self.weights, lr=recipe.learning_rate, weight_decay=0.0)
        self.done, self.seconds, self.log = 0, 0.0, list[dict[str, Any]]()
        if self.path.is_file():
            kept = torch.load(self.path, weights_only=True)
            if kept["recipe"] != recipe.content:
                raise SystemExit(f"{self.path} is of another recipe; remove it or name another --out")
            set_peft_model_state_dict(self.model, kept["adapter"])
            self.optimiser.load_state_dict(kept["optimiser"])
            self.done, self.seconds, self.log = kept["done"], kept["seconds"], kept["log"]

    def keep(self) -> None:
        """Write a checkpoint."""
        from peft import get_peft_model_state_dict

        with writing_aside(self.path) as aside:
            torch.save(
                {
                    "recipe": self.recipe.content,
                    "adapter": get_peft_model_state_dict(self.model),
                    "optimiser": self.optimiser.state_dict(),
                    "done": self.done,
                    "seconds": self.seconds,
                    "log": self.log,
                },
                aside,
            )

    def step(self, renderer: Renderer, sheets: Sequence[Sheet]) -> None:
        """Train on some sheets; processor seconds are counted."""
        began, recipe = time.process_time(), self.recipe
        left = 1 - self.done / recipe.steps
        for group in self.optimiser.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, (self.done + 1) / 8) * max(0.05, left)
        causal = self.model.base_model.model
        end = renderer.tokenizer.eos_token_id
        rows, total, tokens = [r for s in sheets for r in s.rows], 0.0, 0
        for sheet in sheets:  # one by one: nothing is padded
            packed = pack([encoded(renderer, sheet, end)], end, recipe.decision)
            value = loss(causal.model, causal.lm_head, packed) * (len(sheet.rows) / len(rows))
            value.backward()
            total, tokens = total + value.item(), tokens + packed.ids.numel()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.done += 1
        self.seconds += time.process_time() - began
        self.log.append(
            {
                "loss": round(total, 4),
                "tokens": tokens,
                "kinds": dict(Counter(f"{'call' if r.calls else 'no_call'}, {r.kind}" for r in rows)),
            }
        )


def train(model: Path, recipe: Recipe, folder: Path) -> Path:
    """Train and write the student's folder, bfloat16, adapter merged. What is there is not trained again."""
    student = folder / "student"
    if (student / "trained.json").is_file():
        return student
    renderer = Renderer.from_pretrained(model)
    tasks = chosen(renderer, "train")
    training = Training(model, recipe, folder)
    training.model.train()
    for sheets in batches(RowMaker(tasks, recipe.mix), recipe, training.done):
        training.step(renderer, sheets)
        if training.done % KEEP_EVERY == 0:
            training.keep()
            recent = training.log[-KEEP_EVERY:]
            mean = sum(r["loss"] for r in recent) / len(recent)
            print(
                f"step {training.done}/{recipe.steps}  loss {mean:.3f}  {training.seconds:.0f} s of one core",
                flush=True,
            )
    training.model.merge_and_unload().save_pretrained(student)
    renderer.tokenizer.save_pretrained(student)
    kinds = sum((Counter(r["kinds"]) for r in training.log), Counter[str]())
    facts = {
        "tasks": len(tasks),
        "seconds": round(training.seconds),
        "tokens": sum(r["tokens"] for r in training.log),
        "rows": dict(sorted(kinds.items())),
        "loss": [r["loss"] for r in training.log],
    }
    (student / "trained.json").write_text(json.dumps(facts), encoding="utf-8")
    training.path.unlink(missing_ok=True)
    return student


class Measuring:
    """Record what a student says on validation tasks, each part in a separate file."""

    def __init__(self, student: Path, folder: Path) -> None:
        """Load the student."""
        self.folder, self.renderer = folder, Renderer.from_pretrained(student)
        engine = TransformersEngine.load(student, "bfloat16", "cpu")
        options = SamplingOptions(temperature=0.0, max_new_tokens=NEW_TOKENS, max_steps=1, batch_size=BATCH)
        self.sampler = Sampler(engine, self.renderer, options)
        self.library = PromptLibrary(HERE / "prompts")

    def part(self, name: str, tasks: Sequence[Entry], after: dict[str, str]) -> dict[str, Message]:
        """What the student says of each task, with the message `after[id]` after the request where there is one."""
        path = self.folder / f"{name}.jsonl"
        kept = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
        said = {row["id"]: row["text"] for row in kept}
        owed = [t for t in tasks if t.id not in said]
        contexts = {t.id: self._context(t, after.get(t.id)) for t in owed}
        owed.sort(key=lambda t: len(contexts[t.id]))
        for start in range(0, len(owed), BATCH):
            some = owed[start : start + BATCH]
            ids = self.sampler.generate([contexts[t.id] for t in some], seed=0)
            with path.open("a", encoding="utf-8") as file:
                for task, sampled in zip(some, ids, strict=True):
                    ended = [i for i in sampled if i not in self.sampler.stop]
                    said[task.id] = self.renderer.decode(ended)
                    file.write(json.dumps({"id": task.id, "after": after.get(task.id), "text": said[task.id]}) + "\n")
            print(f"{name}: {min(start + BATCH, len(owed))}/{len(owed)}", flush=True)
        return {t.id: parse_hermes(said[t.id]) for t in tasks}

    def _context(self, task: Entry, after: str | None) -> list[int]:
        messages = [*opening(task, as_text=True)]
        if after is not None:
            messages.append(Message(role="user", content=after))
        return self.renderer.encode(self.renderer.render(messages, (), header=True))

    def hint(self, task: Entry, message: Message) -> str:
        """The hint for an erring step, from the possible answers: what a critic that knows them would say."""
        finding = finding_of(task, 0, message)
        assert finding is not None
        start = CALLS_AS_TEXT.make().reset(task.id)
        trace = Trace(id=task.id, task_id=task.id, messages=(*start.messages, message), tools=start.tools)
        return hint_text(trace, finding, self.library)


def validation_tasks(renderer: Renderer) -> list[Entry]:
    """The tasks that a student is accepted on, drawn once and for all."""
    found = sorted(chosen(renderer, "validation"), key=lambda e: fraction("validation " + e.id))
    calls, others = [e for e in found if e.answer], [e for e in found if not e.answer]
    return calls[:CALL_TASKS] + others[:NO_CALL_TASKS]


def measure(student: Path, folder: Path) -> dict[str, Any]:
    """Measure a student on validation tasks: plain, under a placebo, and its errors under a hint. Returns the verdict.

    One that is refused for what it says without a message is not asked again under messages.
    """
    one = Measuring(student, folder)
    tasks = validation_tasks(one.renderer)
    plain = one.part("plain", tasks, {})
    errors = {t.id: found for t in tasks if (found := wrong(t, plain[t.id])) is not None}
    rows: list[dict[str, Any]] = [
        {"id": t.id, "call": bool(t.answer), "error": errors[t.id].error_class if t.id in errors else None}
        for t in tasks
    ]
    first = verdict(rows, Bounds())
    if first["reasons"]:
        return first
    placebo = one.part("placebo", tasks, {t.id: PLACEBO for t in tasks})
    erring = [t for t in tasks if t.id in errors]
    hints = {t.id: one.hint(t, plain[t.id]) for t in erring}
    hinted = one.part("hinted", erring, hints)
    for task, row in zip(tasks, rows, strict=True):
        row["placebo_right"] = wrong(task, placebo[task.id]) is None
        if task.id in hinted:
            row["hint_right"] = wrong(task, hinted[task.id]) is None
    return verdict(rows, Bounds())


def table(tries: dict[str, Any]) -> str:
    """The tries as a table, with what each was accepted or refused for."""
    if not tries:
        return f"No try is finished; owed is `python examples/bfcl/warm_up.py {min(RECIPES)}`. Bounds: {ACCEPT}."
    lines = [
        "| try | trained on | errors | irrelevance | placebo keeps | repaired under hint / placebo, largest class | accepted |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in tries.items():
        made, seen = found["trained"], found["validation"]
        rows = sum(made["rows"].values())
        refusals = sum(n for kind, n in made["rows"].items() if kind.startswith("no_call"))
        kept, repaired = "–", "–"
        if seen["classes"] is not None:
            kept = f"{seen['kept']:.2f} ({seen['right']})"
            largest = seen["classes"][0]
            repaired = f"{largest['class']}: {largest['hint']} / {largest['placebo']} of {largest['errors']}"
        why = "yes" if seen["accepted"] else f"no: {'; '.join(seen['reasons'])}"
        lines.append(
            f"| {name} | {rows:,} rows, {refusals / rows:.0%} refusals, {made['tokens'] / 1e3:.0f} k tokens, {made['seconds']} s "
            f"| {seen['errors']:.2f} ({seen['calls']}) | {seen['irrelevance']:.2f} ({seen['no_calls']}) "
            f"| {kept} | {repaired} | {why} |"
        )
    lines += ["", "Bounds: " + ACCEPT + "."]
    return "\n".join(lines + [f"\nTry {n}: {t['recipe']['why']}." for n, t in tries.items()])


def main() -> int:
    """Run a recipe, or write the page."""
    parser = argparse.ArgumentParser(description="Warm a small model up on BFCL, and accept or refuse it.")
    parser.add_argument("recipe", nargs="?", choices=sorted(RECIPES))
    parser.add_argument("--model", type=Path, default=ROOT / "build" / "smollm2")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bfcl")
    parser.add_argument("--docs", action="store_true", help="write the table of tries into docs/bfcl.md")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    tries = json.loads(TRIES.read_text(encoding="utf-8")) if TRIES.is_file() else {}
    if asked.recipe:
        recipe, folder = RECIPES[asked.recipe], asked.out / asked.recipe
        folder.mkdir(parents=True, exist_ok=True)
        student = train(asked.model, recipe, folder)
        found = measure(student, folder)
        trained = json.loads((student / "trained.json").read_text(encoding="utf-8"))
        tries[asked.recipe] = {"recipe": asdict(recipe), "trained": trained, "validation": found}
        TRIES.write_text(json.dumps(tries, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(found, indent=1))
    if asked.docs:
        put(PAGE, *MARKS, table(tries))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
