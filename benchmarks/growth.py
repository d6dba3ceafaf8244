"""Measure how stages grow with the number of traces: peak memory and CPU seconds of each, at several sizes.

    python benchmarks/growth.py [--sizes 600 1200 2400] [--rescore-most N] [--docs]

The traces are made here, every one another task: a conversation of the shipped toolworld with words of its own, about one in three
with an error that the rules find. Each stage runs in a process of its own, which continues the run, so that its peak of resident
memory is its own. The student is the shipped
one of 1.5 M parameters, so that the stages around the model are what is measured. Rescoring is the costly one: `--rescore-most`
bounds its size, and its slope says what more would take.

Aims: no stage grows by more than 2 kB a trace (keys, offsets and the light columns of targets are about that), and the report of
100,000 traces takes at most 60 s. `--docs` writes the table into docs/scale.md. Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from hintdistill.pipeline.stages import STAGES  # noqa: E402

PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- growth: made by benchmarks/growth.py --docs -->", "<!-- end of growth -->"
MEASURED = tuple(s for s in STAGES if s != "train")  # a training grows with its rows, not with the traces
SETTINGS = (
    "critic.use=[rules]",
    "rollout.environment=null",
    "rollout.splits=[]",
    "train.twins.per_finding=1",
    "report.off_target={}",
)


def write_traces(path: Path, number: int) -> None:
    """Write `number` conversations, each another task: a shipped one with another id, task and first words."""
    shipped = [json.loads(line) for line in (ROOT / "examples/toolworld/traces.jsonl").read_text().splitlines()]
    with path.open("w", encoding="utf-8") as file:
        for i in range(number):
            trace, rng = dict(shipped[i % len(shipped)]), random.Random(i)
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


def run_stage(stage: str, folder: str, traces: str) -> None:
    """Run one stage of the run in a folder, in this process, and print seconds and peak of resident memory."""
    from hintdistill.config.file import load_config
    from hintdistill.pipeline.context import RunContext
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.stages import run_stages, write_report
    from hintdistill.pipeline.store import RunDir

    config = load_config(ROOT / "configs/quickstart.yaml", [*SETTINGS, f"traces.path={traces}", f"run.dir={folder}"])
    rundir = RunDir.create(folder, config, resume=True)
    ctx = RunContext(config, rundir, Console(quiet=True))
    before = time.process_time()
    if stage == "report":
        write_report(ctx)
    else:
        run_stages(ctx, first=stage, until=stage)
    seconds = time.process_time() - before
    rundir.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak_bytes": peak}))


def measure(number: int, stages: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Peak and seconds of each stage on so many traces."""
    out: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(prefix="hintdistill-growth-") as name:
        traces, folder = Path(name) / "traces.jsonl", Path(name) / "run"
        write_traces(traces, number)
        for stage in stages:
            words = [sys.executable, __file__, "--stage", stage, "--folder", str(folder), "--traces", str(traces)]
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{stage} of {number} traces failed:\n{done.stderr[-3000:]}")
            out[stage] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{number:>7,} {stage:>9}: {out[stage]['seconds']:8.1f} s, {out[stage]['peak_bytes'] / 1e6:7.0f} MB",
                flush=True,
            )
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[600, 1200, 2400])
    parser.add_argument("--rescore-most", type=int, default=10**9, help="larger sizes are not rescored")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("--stage")
    parser.add_argument("--folder")
    parser.add_argument("--traces")
    asked = parser.parse_args()
    if asked.stage:
        run_stage(asked.stage, asked.folder, asked.traces)
        return
    found: dict[int, dict[str, dict[str, float]]] = {}
    for n in asked.sizes:
        stages = tuple(s for s in MEASURED if s != "rescore" or n <= asked.rescore_most)
        found[n] = measure(n, stages)
    grown = slopes(found)
    print(table(found, grown))
    if asked.docs:
        text = PAGE.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        PAGE.write_text(f"{head}{BEGIN}\n{table(found, grown)}\n{END}{tail}", encoding="utf-8")
    result: dict[str, Any] = {"sizes": {str(n): of for n, of in found.items()}, "one_more_trace": grown}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
