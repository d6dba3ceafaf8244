"""Measure a small model as a critic on the 30 shortest labelled records, through the constrained backend.

    python benchmarks/critic_labels.py LABELS [--model build/smollm2] [--out runs/critic_labels] [--write] [key=value …]

LABELS is a folder or file of labelled sets (Who&When, AgentProcessBench, AgentRx). The rule: of the records with at least two of the
student's steps, the 20 shortest erring ones and the 10 shortest clean ones, in tokens of the critic; so all fit a window of 8,192
with the question and an answer of 1,024. The prompts are the shipped ones, one answer a record, greedy; an answer that reaches its
limit counts as failed. About ten minutes of one core. Answers are kept in OUT as they come, so the same command continues after a
kill. Last line: one JSON object. `--write` puts the figures into docs/critics.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from blocks import put  # noqa: E402
from command import exit_code  # noqa: E402

from hintdistill.config.file import load_config  # noqa: E402
from hintdistill.core.errors import InputError  # noqa: E402
from hintdistill.core.models import load_tokenizer, resolve_model  # noqa: E402
from hintdistill.critics.evaluation import lines  # noqa: E402
from hintdistill.critics.record import Count, whole  # noqa: E402
from hintdistill.critics.strategies import tool_lines  # noqa: E402
from hintdistill.pipeline.context import RunContext, in_use  # noqa: E402
from hintdistill.pipeline.labels import score_labelled  # noqa: E402
from hintdistill.pipeline.progress import Console  # noqa: E402
from hintdistill.pipeline.store import RunDir  # noqa: E402
from hintdistill.traces.formats.annotated import Labelled, read_annotated  # noqa: E402

CONFIG = ROOT / "benchmarks" / "critic_labels.yaml"
PAGE = ROOT / "docs" / "critics.md"
BEGIN, END = "<!-- small critic: made by benchmarks/critic_labels.py --write -->", "<!-- end of small critic -->"
WANTED = {"findings": 20, "none": 10}
"""Erring records and clean ones."""
LEAST_STEPS = 2
"""With one step there is nothing to locate."""


def chosen(labelled: Sequence[Labelled], count: Count) -> list[Labelled]:
    """Return the shortest records of each label in `WANTED`, in order of their length. Raises InputError if there are too few."""
    out: list[tuple[int, str, Labelled]] = []
    for verdict, number in WANTED.items():
        of = [x for x in labelled if x.label.verdict == verdict and len(x.trace.own_steps) >= LEAST_STEPS]
        if len(of) < number:
            raise InputError(f"{len(of)} records with the label {verdict} and {LEAST_STEPS} steps; {number} are needed")
        sized = [(count(whole(x.trace).text) + count(tool_lines(x.trace)), x.trace.id, x) for x in of]
        out += sorted(sized, key=lambda s: s[:2])[:number]
    return [x for *_, x in sorted(out, key=lambda s: s[:2])]


def text(result: Mapping[str, Any]) -> str:
    """Return the figures as one paragraph."""
    e, guess, about = result["erring"], result["guessing"], result["about"]
    quotes = result["quotes"]
    return (
        f"{about['model']} as critic, through the constrained backend with the shipped prompts ({about['dtype']}, {about['date']}), "
        f"on the {e['exact']['n']} shortest erring and {result['clean']['false_alarm']['n']} shortest clean records with two or more steps "
        f"({', '.join(f'{n} of {name}' for name, n in about['sets'].items())}): exact step {_rate(e['exact'])}, within one step "
        f"{_rate(e['within_one'])}, any root finding {_rate(e['any_root'])}; a random step {guess['random']:.1%}, the best constant "
        f"{guess['best_constant']:.1%} ({guess['constant']}); false alarms {_rate(result['clean']['false_alarm'])}; "
        f"{result['failed']['hits']} of {result['failed']['n']} answers failed; quotes found in their step {_rate(quotes)}."
    )


def _rate(of: Mapping[str, Any]) -> str:
    if not of["n"]:
        return "–"
    return f"{of['rate']:.1%} [{100 * of['low']:.1f}, {100 * of['high']:.1f}] of {of['n']}"


def measure(args: argparse.Namespace) -> None:
    """Ask what is owed, score, print; write the page if that is asked for."""
    model = [f"critic.llm.model={args.model.resolve()}", f"run.model={args.model.resolve()}"] if args.model else []
    config = load_config(CONFIG, [f"traces.path={args.labels.resolve()}", *model, *args.overrides])
    began = time.process_time()
    tokenizer = load_tokenizer(resolve_model(str(config.critic.llm.model)))
    read = [x for x in read_annotated([args.labels]) if isinstance(x, Labelled)]
    records = chosen(read, lambda told: len(tokenizer(told, add_special_tokens=False)["input_ids"]))
    with in_use(config):
        result = score_labelled(RunContext(config, RunDir(args.out), Console()), records)
    sets = [x.source_set for x in records]
    result["about"] = {
        "model": args.name or Path(str(config.critic.llm.model)).name,
        "dtype": config.run.dtype,
        "date": time.strftime("%Y-%m-%d"),
        "sets": {name: sets.count(name) for name in sorted({*sets})},
        "cpu_seconds": round(time.process_time() - began, 1),
    }
    print("\n".join(lines(result)))
    print(text(result))
    print(json.dumps({k: result[k] for k in ("about", "erring", "clean", "failed", "quotes", "guessing", "usage")}))
    if args.write:
        put(PAGE, BEGIN, END, text(result))


def main() -> int:
    """Parse and run; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--model", type=Path, help="model folder of the critic")
    parser.add_argument("--name", help="name of the model on the page; by default its folder's")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "critic_labels")
    parser.add_argument("--write", action="store_true", help="put the figures into docs/critics.md")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    args = parser.parse_intermixed_args()
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    return exit_code(lambda: measure(args))


if __name__ == "__main__":
    sys.exit(main())
