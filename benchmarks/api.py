"""Time a diagnosis after every turn of a conversation, with and without a session, alone and with other callers.

    python benchmarks/api.py [--model FOLDER ...] [--turns 20] [--callers 8]

Without --model: the example's student, and /tmp/smollm2 where it is. A conversation of the example world grows turn by turn, each
with a call of a tool that is not listed; after each turn the last step is diagnosed (up to four candidates, three placebos each). Seconds
of the wall clock, one torch thread per core of OMP_NUM_THREADS; `read` is tokens read by the model, `cpu` processor
seconds, which other jobs on the machine disturb less.

  cold       no session: every call reads its conversation from the beginning
  warm       one session for all turns
  row        N conversations of the last turns, each its own, one after another, in one warm session
  together   the same from N threads; the two take turns, a few turns of the conversations each, and `by_block` compares neighbours

Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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
BLOCK = 3
"""Turns after which the two arms change, so that what else the machine does meets both."""


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
    """The last turns of several conversations, one after another and together, by turns: block by block, so that load cancels."""
    talks = conversations(callers, turns)
    first = turns // 2
    sessions = {"row": hd.Session(loaded), "together": hd.Session(loaded)}
    for session in sessions.values():
        for messages, tools in talks:
            ask(session, after(messages, first - 1), tools)
    kept = sessions["together"].engine
    assert isinstance(kept, KeptEngine)
    batches, blocks = kept.batches, list[Block]()
    for start in range(first, turns, BLOCK):
        blocks.append(block(sessions, talks, range(start, min(turns, start + BLOCK))))
    row, together = ([s for b in blocks for s in b.seconds[arm]] for arm in ("row", "together"))
    over = [s / statistics.median(b.seconds["row"]) for b in blocks for s in b.seconds["together"]]
    return {
        "callers": callers,
        "single_median_s": round(statistics.median(row), 4),
        "single_p95_s": round(percentile(row, 0.95), 4),
        "row_s": round(sum(b.wall["row"] for b in blocks), 3),
        "together_s": round(sum(b.wall["together"] for b in blocks), 3),
        "row_cpu_s": round(sum(b.cpu["row"] for b in blocks), 3),
        "together_cpu_s": round(sum(b.cpu["together"] for b in blocks), 3),
        "together_p95_s": round(percentile(together, 0.95), 4),
        "p95_over_single": round(percentile(together, 0.95) / statistics.median(row), 2),
        "p95_over_single_by_block": round(percentile(over, 0.95), 2),
        "median_over_single_by_block": round(statistics.median(over), 2),
        "together_over_row_by_block": [round(b.wall["together"] / b.wall["row"], 2) for b in blocks],
        "calls": len(together),
        "batches": kept.batches - batches,
    }


@dataclass
class Block:
    """Some turns of all conversations, by arm: seconds of each call, of the wall clock, and of the processor."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)


def block(sessions: dict[str, hd.Session], talks: list[Any], measured: range) -> Block:
    """Both arms on the same turns, one right after the other."""
    out = Block()

    def caller(n: int) -> list[float]:
        messages, tools = talks[n]
        return [ask(sessions["together"], after(messages, t), tools) for t in measured]

    for arm in ("row", "together"):
        start, cpu = time.perf_counter(), time.process_time()
        if arm == "row":
            calls = [ask(sessions[arm], after(messages, t), tools) for t in measured for messages, tools in talks]
        else:
            with ThreadPoolExecutor(len(talks)) as pool:
                calls = [s for some in pool.map(caller, range(len(talks))) for s in some]
        out.seconds[arm], out.wall[arm] = calls, time.perf_counter() - start
        out.cpu[arm] = time.process_time() - cpu
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--only", choices=["growing", "among_others"], help="one of the two parts")
    args = parser.parse_args()
    models = args.model or [str(TOOLWORLD / "student"), *([str(SMOLLM2)] if SMOLLM2.is_dir() else [])]
    out: dict[str, Any] = {}
    for name in models:
        loaded = hd.load_engine(name, device="cpu", dtype=args.dtype)
        result: dict[str, Any] = {}
        if args.only != "among_others":
            result["growing"] = growing(loaded, args.turns)
        if args.only != "growing":
            result["among_others"] = among_others(loaded, args.callers, args.turns)
        out[Path(name).name] = result
        for part, figures in result.items():
            print(f"{Path(name).name}, {part}: " + ", ".join(f"{k} {v}" for k, v in figures.items()))
    print(json.dumps(out))


if __name__ == "__main__":
    main()
