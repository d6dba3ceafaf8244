"""Put load on `hintdistill serve` with many clients that each diagnose a growing conversation; measure the server.

    python benchmarks/serve_load.py [--clients 50] [--seconds 120] [--model FOLDER]

Starts the server on the shipped student, as a process of its own. Every client holds a conversation of its own, diagnoses its last
step after each turn, records it, and begins another after twelve turns; a 429 is waited out and counted. Needs the extra `agents`.
Memory is the server's resident size, read each second; `memory_growth` compares the last tenth of the run with the second one.

Last line: one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from api import after, conversations, percentile  # noqa: E402
from support.agent_server import Serve  # noqa: E402

TURNS = 12


async def client(n: int, http: httpx.AsyncClient, talks: list[Any], until: float, out: dict[str, list[Any]]) -> None:
    """One agent: turn after turn, conversation after conversation."""
    talk = n
    while time.monotonic() < until:
        messages, tools = talks[talk % len(talks)]
        for turn in range(TURNS):
            if time.monotonic() >= until:
                return
            asked = {"messages": after(messages, turn), "tools": tools, "step": -1}
            start = time.perf_counter()
            while (answer := await http.post("/v1/diagnose", json=asked)).status_code == 429:
                out["busy"].append(1)
                await asyncio.sleep(1)
            out["status"].append(answer.status_code)
            out["seconds"].append(time.perf_counter() - start)
            kept = await http.post("/v1/traces", json={"messages": asked["messages"], "id": f"{n}-{talk}-{turn}"})
            out["kept"].append(kept.status_code == 200)
        talk += 50


async def watch(process: psutil.Process, until: float, sizes: list[int]) -> None:
    """The server's memory, each second."""
    while time.monotonic() < until:
        sizes.append(process.memory_info().rss)
        await asyncio.sleep(1)


async def load(server: Serve, clients: int, seconds: float) -> dict[str, Any]:
    """Run the clients; what they saw."""
    talks = conversations(4 * clients, TURNS)
    out: dict[str, list[Any]] = {k: [] for k in ("busy", "status", "seconds", "kept")}
    sizes: list[int] = []
    until = time.monotonic() + seconds
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=server.url, timeout=300, limits=limits) as http:
        tasks = [client(n, http, talks, until, out) for n in range(clients)]
        await asyncio.gather(*tasks, watch(psutil.Process(server.process.pid), until, sizes))
    tenth = max(1, len(sizes) // 10)
    early, late = sizes[tenth : 2 * tenth] or sizes, sizes[-tenth:]
    answered = out["status"].count(200)
    return {
        "clients": clients,
        "seconds": seconds,
        "answered": answered,
        "failed": len(out["status"]) - answered,
        "busy_429": len(out["busy"]),
        "per_second": round(answered / seconds, 2),
        "median_s": round(statistics.median(out["seconds"]), 3),
        "p95_s": round(percentile(out["seconds"], 0.95), 3),
        "traces_kept": sum(out["kept"]),
        "memory_mb": round(statistics.mean(late) / 2**20, 1),
        "memory_growth": round(statistics.mean(late) / statistics.mean(early) - 1, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--model", default=str(ROOT / "examples" / "toolworld" / "student"))
    parser.add_argument("--memory-mb", default="64")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = Serve(Path(folder), "--memory-mb", args.memory_mb, model=args.model).wait()
        try:
            found = asyncio.run(load(server, args.clients, args.seconds))
        finally:
            code = server.stop()
        lines = sum(len(p.read_text().splitlines()) for p in server.traces.glob("calls-*.jsonl"))
    found |= {"traces_on_disk": lines, "stopped_with": code, "cores": os.cpu_count()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
