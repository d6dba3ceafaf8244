"""Measure how fast traces are read, compared with plain `json.loads` per line, and how much memory that takes.

    python benchmarks/ingest.py [--megabytes 1000] [--repeats 3]

The file is made here: OpenAI chat conversations of a support agent, twenty-five messages each, every text drawn anew, so
that no line repeats another; a dozen tool schemas, the same for all, as in the files of one agent. Reading and parsing
alternate; processor time, the best of the repeats. Aim: 50 MB/s on one core, and at most 2.5 times the time of
`json.loads`. Memory is the highest resident size of the reading process, for this file and for one a tenth of its size.

Last line: one JSON object.
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
from collections.abc import Callable
from pathlib import Path

WORDS = [
    f"{a}{b}"
    for a in ("book", "pay", "seat", "flight", "date", "bag", "user", "change")
    for b in ("ing", "er", "s", "")
]


def text(rng: random.Random, words: int) -> str:
    """Some words, with the punctuation and line breaks of real messages."""
    return " ".join(rng.choices(WORDS, k=words)) + rng.choice((".", "?\n", '! "ok"', " – é"))


_SCHEMA = {
    "type": "object",
    "properties": {"reservation": {"type": "string", "description": text(random.Random(1), 12)}},
}
TOOLS = [{"type": "function", "function": {"name": f"tool{i}", "parameters": _SCHEMA}} for i in range(12)]


def record(rng: random.Random, number: int) -> dict[str, object]:
    """One conversation, 20 kB or so."""
    messages: list[dict[str, object]] = [{"role": "system", "content": text(rng, 900)}]
    for turn in range(6):
        messages.append({"role": "user", "content": text(rng, rng.randint(5, 60))})
        arguments = json.dumps({"reservation": text(rng, 2), "passengers": [{"name": text(rng, 2), "age": turn}]})
        call = {
            "id": f"call_{number}_{turn}",
            "type": "function",
            "function": {"name": "update", "arguments": arguments},
        }
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
        result = json.dumps({text(rng, 1): rng.random() for _ in range(rng.randint(4, 30))})
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        messages.append({"role": "assistant", "content": text(rng, rng.randint(10, 120))})
    return {"id": f"run{number}", "task_id": number // 4, "messages": messages, "tools": TOOLS, "reward": rng.random()}


def make(path: Path, megabytes: int) -> int:
    """Write the file; returns its records."""
    rng, count = random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1_000_000:
            file.write(json.dumps(record(rng, count)) + "\n")
            count += 1
    return count


def parse(path: Path) -> int:
    """The bound: every line decoded, nothing more."""
    with path.open("rb") as file:
        return sum(1 for line in file if json.loads(line))


def read(path: Path) -> int:
    """Every record read as a trace."""
    from hintdistill.core.types import Trace
    from hintdistill.traces.reading import read_traces

    return sum(isinstance(outcome, Trace) for outcome in read_traces([path]))


def timed(work: Callable[[Path], int], path: Path, expected: int) -> float:
    """Processor seconds (the machine may have others on it); every record must have been read."""
    began = time.process_time()
    got = work(path)
    took = time.process_time() - began
    assert got == expected, f"{work.__name__} read {got} of {expected} records"
    return took


def memory_mb(path: Path) -> float:
    """Highest resident size of a process that reads the file, MB."""
    command = [sys.executable, __file__, "--only-read", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only-read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.only_read:
        read(arguments.only_read)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
        return
    with tempfile.TemporaryDirectory() as folder:
        path, tenth = Path(folder) / "traces.jsonl", Path(folder) / "tenth.jsonl"
        count = make(path, arguments.megabytes)
        make(tenth, max(1, arguments.megabytes // 10))
        size = path.stat().st_size / 1e6
        print(f"{count} records, {size:.0f} MB")
        times: dict[str, list[float]] = {"json_loads": [], "read_traces": []}
        for _ in range(arguments.repeats):
            times["json_loads"].append(timed(parse, path, count))
            times["read_traces"].append(timed(read, path, count))
        best = {name: min(found) for name, found in times.items()}
        figures = {
            "megabytes": round(size, 1),
            "records": count,
            "json_loads_mb_per_s": round(size / best["json_loads"], 1),
            "read_traces_mb_per_s": round(size / best["read_traces"], 1),
            "ratio": round(best["read_traces"] / best["json_loads"], 3),
            "aim_ratio": 2.5,
            "aim_mb_per_s": 50,
            "memory_mb": round(memory_mb(path), 1),
            "memory_mb_of_a_tenth": round(memory_mb(tenth), 1),
        }
    for name, value in figures.items():
        print(f"{name:>22} {value}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
