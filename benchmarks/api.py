"""What an agent waits for: a diagnosis after every turn of a conversation, with and without a session, alone and among others.

    python benchmarks/api.py [--model FOLDER ...] [--turns 20] [--callers 8]

Without --model: the example's student, and /tmp/smollm2 where it is. A conversation of the example world grows turn by turn, each
with a call of a tool that is not listed; after each turn the last step is diagnosed (up to four candidates, three placebos each). Seconds
of the wall clock, one torch thread per core of OMP_NUM_THREADS; `read` is tokens read by the model, `cpu` processor
seconds, which other jobs on the machine disturb less.

  cold       no session: every call reads its conversation from the beginning
  warm       one session for all turns
  row        N conversations of the last turns, each its own, one after another, in one warm session
  together   the same from N threads

Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import hintdistill as hd  # noqa: E402
from hintdistill.engines.kept import KeptEngine  # noqa: E402
from hintdistill.traces.reading import read_traces  # noqa: E402

WRONG = "find_everything"
TOOLWORLD = ROOT / "examples" / "toolworld"
SMOLLM2 = Path("/tmp/smollm2")


def conversations(n: int, turns: int) -> list[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Messages and tools of `n` conversations of so many turns, each with another beginning."""
    out = []
    for trace in read_traces([TOOLWORLD / "traces.jsonl"]):
        if len(out) == n:
            break
        messages = [{"role": m.role, "content": m.content} for m in trace.before(0)]
        for k in range(turns):
            # as text, which every chat template prints
            call = json.dumps({"name": WRONG, "arguments": {"query": f"item {k}"}})
            messages += [
                {"role": "assistant", "content": f"<tool_call>\n{call}\n</tool_call>"},
                {"role": "user", "content": json.dumps({"error": f"unknown tool, number {k}"})},
            ]
        out.append((messages, list(trace.tools)))
    return out


def after(messages: list[dict[str, Any]], turn: int) -> list[dict[str, Any]]:
    """The conversation after a turn, counted from 0."""
    ends = [i + 2 for i, m in enumerate(messages) if m["role"] == "assistant"]
    return messages[: ends[turn]]


def ask(engine: hd.LoadedModel, messages: list[dict[str, Any]], tools: list[dict[str, Any]]) -> float:
    """Seconds of one diagnosis."""
    start = time.perf_counter()
    last = sum(m["role"] == "assistant" for m in messages) - 1
    names = ", ".join(t["function"]["name"] for t in tools)
    hint = f"There is no tool {WRONG}. The tools are {names}."
    finding = hd.Finding(step=last, error_class="unknown_tool", quote=WRONG, hint=hint, facts={"wrong": WRONG})
    found = hd.diagnose(messages, tools=tools, engine=engine, step=-1, twins=False, critic=[finding])
    assert found.findings and found.findings[0].hints
    return time.perf_counter() - start


def percentile(values: list[float], share: float) -> float:
    """Nearest rank."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def growing(loaded: hd.LoadedModel, turns: int) -> dict[str, Any]:
    """One conversation, cold and warm."""
    ((messages, tools),) = conversations(1, turns)
    ask(loaded, after(messages, 0), tools)
    before = loaded.engine.saved.computed
    cold = [ask(loaded, after(messages, t), tools) for t in range(turns)]
    cold_read = loaded.engine.saved.computed - before
    session = hd.Session(loaded)
    warm = [ask(session, after(messages, t), tools) for t in range(turns)]
    return {
        "turns": turns,
        "cold_s": round(sum(cold), 3),
        "warm_s": round(sum(warm), 3),
        "cold_last_s": round(cold[-1], 4),
        "warm_last_s": round(warm[-1], 4),
        "cold_read": cold_read,
        "warm_read": session.stats()["computed"],
        "kept_mb": round(session.stats()["bytes"] / 2**20, 1),
    }


def among_others(loaded: hd.LoadedModel, callers: int, turns: int) -> dict[str, Any]:
    """The last turns of several conversations, one after another and together."""
    talks = conversations(callers, turns)
    first, measured = turns // 2, range(turns // 2, turns)

    def warmed() -> hd.Session:
        session = hd.Session(loaded)
        for messages, tools in talks:
            ask(session, after(messages, first - 1), tools)
        return session

    session, row = warmed(), list[float]()
    start, cpu = time.perf_counter(), time.process_time()
    for t in measured:
        row += [ask(session, after(messages, t), tools) for messages, tools in talks]
    in_a_row, row_cpu = time.perf_counter() - start, time.process_time() - cpu
    session = warmed()
    assert isinstance(session.engine, KeptEngine)
    batches, gate = session.engine.batches, threading.Barrier(callers)

    def caller(n: int) -> list[float]:
        messages, tools = talks[n]
        gate.wait()
        return [ask(session, after(messages, t), tools) for t in measured]

    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(callers) as pool:
        together = [s for some in pool.map(caller, range(callers)) for s in some]
    at_once, together_cpu = time.perf_counter() - start, time.process_time() - cpu
    single = statistics.median(row)
    return {
        "callers": callers,
        "single_median_s": round(single, 4),
        "row_s": round(in_a_row, 3),
        "together_s": round(at_once, 3),
        "row_cpu_s": round(row_cpu, 3),
        "together_cpu_s": round(together_cpu, 3),
        "together_p95_s": round(percentile(together, 0.95), 4),
        "p95_over_single": round(percentile(together, 0.95) / single, 2),
        "calls": len(together),
        "batches": session.engine.batches - batches,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--callers", type=int, default=8)
    args = parser.parse_args()
    models = args.model or [str(TOOLWORLD / "student"), *([str(SMOLLM2)] if SMOLLM2.is_dir() else [])]
    out: dict[str, Any] = {}
    for name in models:
        loaded = hd.load_engine(name, device="cpu", dtype="float32")
        result = {
            "growing": growing(loaded, args.turns),
            "among_others": among_others(loaded, args.callers, args.turns),
        }
        out[Path(name).name] = result
        for part, figures in result.items():
            print(f"{Path(name).name}, {part}: " + ", ".join(f"{k} {v}" for k, v in figures.items()))
    print(json.dumps(out))


if __name__ == "__main__":
    main()
