"""Measure how stages grow with the number of traces: peak memory and CPU seconds of each, at several sizes.

    python benchmarks/growth.py [--sizes 600 1200 2400] [--docs]
    python benchmarks/growth.py --sizes 2000 100000 --one-in 10 --candidates 1 --tiny --part-rows 512 --keep DIR --docs

The traces are made here, every one another task: a conversation of the shipped toolworld with words of its own. Of the shipped ones
about every second has an error that the rules find; `--one-in N` takes so many of both that one in N has. Each stage runs in a
process of its own, which continues the run, so that its peak of resident memory is its own. The student is the shipped one
of 1.5 M parameters, or with `--tiny` a random one of one layer × 32 with the same tokenizer, so that the stages around the model
are what is measured. Rescoring is the costly one: `--candidates` sets how many clean steps a trace are scored
(`train.anchor.candidates`), and `--rescore-most` bounds its size.

With `--keep` traces and runs stay in a folder. Whatever stops the script, the same command goes on: stages that are done are not run
again, and of one that was stopped the seconds of all its processes are added up.

Aims: no stage grows by more than 2 kB a trace (keys, offsets and the light columns of targets are about that), and the report of
100,000 traces takes at most 60 s. `--docs` writes the table into docs/scale.md. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blocks import put

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hintdistill.pipeline.stages import STAGES  # noqa: E402

PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- growth: made by benchmarks/growth.py --docs -->", "<!-- end of growth -->"
MEASURED = tuple(s for s in STAGES if s != "train")  # a training grows with its rows, not with the traces
SHIPPED, STUDENT = ROOT / "examples/toolworld/traces.jsonl", ROOT / "examples/toolworld/student"
SETTINGS = (
    "critic.use=[rules]",
    "rollout.environment=null",
    "rollout.splits=[]",
    "train.twins.per_finding=1",
    "report.off_target={}",
)
BYTES_A_TRACE, REPORT_SECONDS = 2000, 60
"""The aims."""
EVERY = 5.0
"""Seconds between notes of what a stage has taken."""


@dataclass(frozen=True)
class Form:
    """What the runs are like, whatever their size."""

    one_in: int | None = None
    """One trace in so many errs; None for as many as among the shipped ones."""
    candidates: int = 4
    """Clean steps of a trace that are scored."""
    tiny: bool = False
    """Whether the student is a random one of one layer."""
    part_rows: int | None = None
    """Targets of a file; None for the default."""

    @property
    def said(self) -> str:
        """The form in words."""
        erring = "about every second trace errs" if self.one_in is None else f"one trace in {self.one_in} errs"
        student = "a random student of one layer × 32" if self.tiny else "the shipped student of 1.5 M parameters"
        parts = "" if self.part_rows is None else f", {self.part_rows} targets a file (`rescore.part_rows`)"
        steps = "one clean step is" if self.candidates == 1 else f"{self.candidates} clean steps are"
        return f"{erring}, {steps} scored in each trace, {student}{parts}"


def conversations(one_in: int | None) -> Iterator[dict[str, Any]]:
    """Yield the shipped conversations over and over, in the order of the file, or so that one in `one_in` errs."""
    shipped = [json.loads(line) for line in SHIPPED.read_text().splitlines()]
    if one_in is None:
        yield from itertools.cycle(shipped)
    from hintdistill.config import CHECKS
    from hintdistill.core.types import Trace
    from hintdistill.critics.rules import RulesCritic
    from hintdistill.traces.reading import read_traces

    critic = RulesCritic(CHECKS)
    said = {t.id: bool(critic.check(t).findings) for t in read_traces([SHIPPED]) if isinstance(t, Trace)}
    kinds = [itertools.cycle([t for t in shipped if said[t["id"]] is errs]) for errs in (False, True)]
    yield from (next(kinds[number % (one_in or 1) == 0]) for number in itertools.count())


def write_traces(path: Path, number: int, one_in: int | None = None) -> None:
    """Write `number` conversations, each another task: a shipped one with another id, task and first words."""
    with path.open("w", encoding="utf-8") as file:
        for i, shipped in enumerate(itertools.islice(conversations(one_in), number)):
            trace, rng = dict(shipped), random.Random(i)
            trace |= {"id": f"{trace['id'].split('#')[0]}#{i}", "task_id": f"task-{i}"}
            messages = [dict(m) for m in trace["messages"]]
            for message in messages:
                # ids would be those of other words
                for key in ("prompt_token_ids", "token_ids", "logprobs"):
                    message.pop(key, None)
                if message["role"] == "user":
                    words = " ".join(f"{rng.randrange(10**6):06}" for _ in range(12))
                    message["content"] = f"{message['content']} (request {words})"
            trace["messages"] = messages
            file.write(json.dumps(trace) + "\n")


def make_student(folder: Path) -> None:
    """Make a random student of one layer × 32 with the shipped one's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    config = AutoConfig.from_pretrained(STUDENT)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 1, "num_key_value_heads": 1}
    config.update({**small, "head_dim": 32, "num_hidden_layers": 1, "layer_types": ["full_attention"]})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(STUDENT).save_pretrained(folder)


@contextlib.contextmanager
def noted(path: Path) -> Iterator[None]:
    """Note seconds and peak of resident memory of this process in a file every few seconds; at the end that it is done."""
    before, ended = time.process_time(), threading.Event()

    def note(done: bool = False) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        aside = path.with_suffix(".writing")
        aside.write_text(json.dumps({"seconds": time.process_time() - before, "peak_bytes": peak, "done": done}))
        aside.replace(path)

    def watch() -> None:
        while not ended.wait(EVERY):
            note()

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
    note(done=True)


def run_stage(stage: str, folder: str, traces: str, *more: str) -> None:
    """Run one stage of the run in a folder, in this process, and note beside it what that took."""
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.context import RunContext
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.stages import run_stages, write_report
    from hintdistill.pipeline.store import RunDir

    words = [*SETTINGS, f"traces.path={traces}", f"run.dir={folder}", *more]
    config = load_config(ROOT / "configs/quickstart.yaml", words)
    rundir = RunDir.create(folder, config, resume=True)
    ctx = RunContext(config, rundir, Console(quiet=True))
    with noted(Path(folder).parent / f"{stage}-{os.getpid()}.spent"):
        if stage == "report":
            write_report(ctx)
        else:
            run_stages(ctx, first=stage, until=stage)
    rundir.close()


def spent(folder: Path, stage: str) -> dict[str, float] | None:
    """Return what a stage has taken, all its processes together; None if it is not done."""
    found = [json.loads(p.read_text()) for p in folder.glob(f"{stage}-*.spent")]
    if not any(f["done"] for f in found):
        return None
    return {"seconds": sum(f["seconds"] for f in found), "peak_bytes": max(f["peak_bytes"] for f in found)}


def in_a_process(*words: str) -> None:
    """Run this script with these words in a process of its own. Raises SystemExit if it fails."""
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr[-3000:]}")


def measure(number: int, stages: tuple[str, ...], form: Form, base: Path) -> dict[str, dict[str, float]]:
    """Peak and seconds of each stage on so many traces, whose run is in a folder below `base`."""
    folder, out = base / str(number), dict[str, dict[str, float]]()
    folder.mkdir(parents=True, exist_ok=True)
    traces = folder / "traces.jsonl"
    if not traces.exists():
        write_traces(aside := traces.with_suffix(".writing"), number, form.one_in)
        aside.replace(traces)
    more = [f"train.anchor.candidates={form.candidates}"]
    if form.part_rows is not None:
        more.append(f"rescore.part_rows={form.part_rows}")
    if form.tiny:
        if not (base / "student" / "tokenizer_config.json").exists():
            # in a process of its own: what a process has taken counts in those that it starts
            in_a_process("--stage", "student", "--folder", str(base / "student"))
        more.append(f"run.model={base / 'student'}")
    for stage in stages:
        if spent(folder, stage) is None:
            in_a_process("--stage", stage, "--folder", str(folder / "run"), "--traces", str(traces), "--set", *more)
        found = spent(folder, stage)
        assert found is not None
        out[stage] = found
        print(f"{number:>7,} {stage:>9}: {found['seconds']:8.1f} s, {found['peak_bytes'] / 1e6:7.0f} MB", flush=True)
    return out


def slopes(found: dict[int, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Per stage, bytes and milliseconds that one more trace takes, from the smallest to the largest size it was run at."""
    out = {}
    for stage in MEASURED:
        sizes = [n for n, of in sorted(found.items()) if stage in of]
        if len(sizes) > 1:
            low, high = sizes[0], sizes[-1]
            more = {k: (found[high][stage][k] - found[low][stage][k]) / (high - low) for k in ("peak_bytes", "seconds")}
            out[stage] = {"bytes_per_trace": more["peak_bytes"], "ms_per_trace": 1e3 * more["seconds"]}
    return out


def table(found: dict[int, dict[str, dict[str, float]]], grown: dict[str, dict[str, float]]) -> str:
    """The figures as a table of Markdown."""
    sizes = sorted(found)
    lines = ["| stage | " + " | ".join(f"{n:,} traces" for n in sizes) + " | one more trace |"]
    lines += ["|---" * (len(sizes) + 2) + "|"]
    for stage in MEASURED:
        cells = []
        for n in sizes:
            of = found[n].get(stage)
            cells.append("–" if of is None else f"{of['peak_bytes'] / 1e6:,.0f} MB, {of['seconds']:,.0f} s")
        more = grown.get(stage)
        cells.append("–" if more is None else f"{more['bytes_per_trace'] / 1e3:.1f} kB, {more['ms_per_trace']:.1f} ms")
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def verdict(found: dict[int, dict[str, dict[str, float]]], grown: dict[str, dict[str, float]], form: Form) -> str:
    """What was measured, and what became of the aims, in words."""
    more = [s for s, of in grown.items() if of["bytes_per_trace"] > BYTES_A_TRACE]
    bytes_said = f"missed by {', '.join(more)}" if more else "met by all"
    most = max(found)
    seconds = found[most]["report"]["seconds"]
    report = f"The report of {most:,} traces takes {seconds:,.0f} s (aim {REPORT_SECONDS} s for 100,000"
    if most >= 100_000:
        report += ", met" if seconds <= REPORT_SECONDS else ", missed"
    return (
        f"Here {form.said}; one thread.\n"
        f"At most {BYTES_A_TRACE / 1e3:g} kB a trace is the aim: {bytes_said}. {report})."
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[600, 1200, 2400])
    parser.add_argument("--one-in", type=int, help="one trace in so many errs")
    parser.add_argument("--candidates", type=int, default=4, help="clean steps of a trace that are scored")
    parser.add_argument("--tiny", action="store_true", help="a random student of one layer")
    parser.add_argument("--part-rows", type=int, help="targets of a file, instead of the default")
    parser.add_argument("--rescore-most", type=int, default=10**9, help="larger sizes are not rescored")
    parser.add_argument("--keep", type=Path, help="folder in which the runs stay, to go on after a stop")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/scale.md")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    parser.add_argument("--traces", help=argparse.SUPPRESS)
    parser.add_argument("--set", nargs="*", default=[], help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.stage == "student":
        make_student(Path(asked.folder))
        return
    if asked.stage:
        run_stage(asked.stage, asked.folder, asked.traces, *asked.set)
        return
    form = Form(asked.one_in, asked.candidates, asked.tiny, asked.part_rows)
    found: dict[int, dict[str, dict[str, float]]] = {}
    with contextlib.ExitStack() as stack:
        base = asked.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hintdistill-growth-")))
        for n in asked.sizes:
            stages = tuple(s for s in MEASURED if s != "rescore" or n <= asked.rescore_most)
            found[n] = measure(n, stages, form, base.resolve())
    grown = slopes(found)
    print(table(found, grown))
    if asked.docs:
        put(PAGE, BEGIN, END, f"{table(found, grown)}\n\n{verdict(found, grown, form)}")
    result = {"sizes": {str(n): of for n, of in found.items()}, "one_more_trace": grown, "form": asdict(form)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
