"""Kill a small run at random times and file-system events, fill its disk at random moments, resume, and compare everything.

`make kill-test` runs it; it takes up to an hour and is no part of the tests. A kill is SIGKILL, at a random time or as soon as a
random file-system event has happened (a file of the folder appears, grows, is renamed or goes). A full disk is a limit on the
size of files or, where this user may mount one, a tmpfs that is made small; how much is left is drawn at random. A resume is
stopped in the same ways, until one comes to its end; then the folder's artefacts have to be those of a run that nobody stopped:
rows by key, targets, student, metrics and report, without times and paths.
Then a small run is repeated in one process, and the slope of its memory is taken.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from hintdistill.rescoring.store import TargetStore

ROOT = Path(__file__).resolve().parent.parent
SMALL = [
    "critic.use=[rules]",
    "traces.limit=20",
    "rollout.environment=null",
    "report.off_target={}",
    "rescore.top_k=4",
    "rescore.part_rows=4",
    "train.epochs=2",
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "train.save_steps=1",
    "train.keep_checkpoints=2",
    "train.logging_steps=1",
    "train.watch.steps=1",
    "train.anchor.candidates=1",
]
CLOCK = {
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "seconds",
    "usage",
    "signature",
    "peak",
    "started",
}
STOPS = ("time", "event", "disk full", "tmpfs full")
LIBRARIES = (
    "hintdistill.training.trainer",
    "hintdistill.pipeline.report",
    "hintdistill.pipeline.rescore",
    "peft",
    "pyarrow",
)
"""What every run loads first: once here, and not in each of hundreds of processes."""


def command(folder: Path) -> list[str]:
    """The run, or what continues it."""
    words = ["run", "configs/quickstart.yaml", f"run.dir={folder}", *SMALL, "-q"]
    return [*words, "--resume"] if (folder / "manifest.json").exists() else words


class Process:
    """A fork of this process, with its libraries loaded, that runs the command line in a separate session."""

    def __init__(self, words: Sequence[str], limit: int | None) -> None:
        # a pipe, which no limit on files concerns; what is written to it fits
        self._read, self._write = os.pipe()
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._run(words, limit)
        os.close(self._write)

    def _run(self, words: Sequence[str], limit: int | None) -> NoReturn:
        """In the child: ends the process."""
        code = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os.dup2(self._write, 2)
            if limit is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            os.chdir(ROOT)
            sys.argv = ["hintdistill", *words]
            from hintdistill.cli.main import main

            main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, seconds: float = float("inf")) -> None:
        """Wait until it has ended, or so long."""
        until = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < until:
            time.sleep(0.005)

    def kill(self) -> None:
        """SIGKILL to its whole session."""
        os.killpg(os.getpgid(self.pid), signal.SIGKILL)
        self.wait()

    def told(self) -> str:
        """Return what it wrote to standard error until it ended; can be read once."""
        with os.fdopen(self._read, encoding="utf-8", errors="replace") as pipe:
            return pipe.read()


def start(folder: Path, limit: int | None = None) -> Process:
    """Start the run or its resume; `limit`: bytes that a file may have."""
    sys.stderr.flush()
    return Process(command(folder), limit)


class Disk:
    """A tmpfs that can be made full. Where this user may not mount one, `mounted` is False, and it is a plain folder."""

    ROOM = 1 << 30

    def __init__(self, at: Path) -> None:
        self.at = at
        at.mkdir()
        self.mounted = self._mount(f"size={self.ROOM}", "-t", "tmpfs", "tmpfs")

    def _mount(self, options: str, *words: str) -> bool:
        try:
            done = subprocess.run(["mount", "-o", options, *words, str(self.at)], capture_output=True, check=False)
        except FileNotFoundError:
            return False
        return done.returncode == 0

    @contextlib.contextmanager
    def nearly_full(self, left: int) -> Iterator[None]:
        """For a while, `left` bytes can be written, rounded up to whole pages."""
        used = self.ROOM - shutil.disk_usage(self.at).free
        assert self._mount(f"remount,size={used + left}"), "a tmpfs cannot be made smaller"
        try:
            yield
        finally:
            assert self._mount(f"remount,size={self.ROOM}"), "a tmpfs cannot be made larger"

    def close(self) -> None:
        """Take it away, with what is on it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.at)], check=True)
        shutil.rmtree(self.at, ignore_errors=True)


def fill(folder: Path, disk: Disk, draw: random.Random, counts: Counter[str]) -> list[str]:
    """A run on a disk that gets full; returns what is wrong."""
    left, how = int(10 ** draw.uniform(2.5, 6.5)), "disk full"
    if disk.mounted and draw.random() < 0.5:
        how = "tmpfs full"
        with disk.nearly_full(left):
            process = start(folder)
            process.wait()
    else:
        process = start(folder, left)
        process.wait()
    said = process.told()
    counts[how if process.returncode else "ended"] += 1
    if process.returncode not in (0, 3) or "Traceback" in said:
        return [f"a full disk ({how}): exit {process.returncode}: {said[-300:]}"]
    return []


def state_of(folder: Path) -> frozenset[tuple[str, int]]:
    """Names and sizes below a folder."""
    found = set()
    for at, _, files in os.walk(folder):
        for name in files:
            path = Path(at) / name
            with contextlib.suppress(OSError):
                found.add((str(path), path.stat().st_size))
    return frozenset(found)


def stop(process: Process, folder: Path, draw: random.Random, seconds: float) -> str:
    """Kill the process at a random time, or after a random number of file-system events."""
    began = time.monotonic()
    if draw.random() < 0.4:
        process.wait(draw.uniform(0.0, seconds))
        how = "time"
    else:
        left, before, how = draw.randint(1, 60), state_of(folder), "event"
        while left > 0 and process.poll() is None and time.monotonic() - began < 4 * seconds:
            now = state_of(folder)
            left -= len(now ^ before)
            before = now
    if process.poll() is None:
        process.kill()
        return how
    return "ended"


def plain(value: Any, folder: Path) -> Any:
    """Without times and the name of the folder."""
    if isinstance(value, dict):
        return {k: plain(v, folder) for k, v in value.items() if k not in CLOCK}
    if isinstance(value, list):
        return [plain(v, folder) for v in value]
    if value == folder.name:
        return "RUN"  # the report names its folder
    return value.replace(str(folder), "RUN") if isinstance(value, str) else value


def artefacts(folder: Path) -> dict[str, Any]:
    """Return the results of a run as plain data that can be compared."""
    out: dict[str, Any] = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        out[path.name] = plain(sorted(rows, key=lambda r: r["key"]), folder)
    for path in sorted([*folder.glob("*.json"), *folder.glob("index/*.json"), *folder.glob("student/*.json")]):
        out[str(path.relative_to(folder))] = plain(json.loads(path.read_text(encoding="utf-8")), folder)
    for path in sorted(folder.glob("train/*/metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        out["metrics"] = plain(rows, folder)
    for target in TargetStore(folder / "targets").read():
        out[f"target {target.key}"] = [
            np.asarray(getattr(target, n)).tobytes()
            for n in ("step_ids", "support_ids", "teacher_logprobs", "plain_logprobs")
        ]
    out["student"] = (folder / "student" / "model.safetensors").read_bytes()
    out["left over"] = sorted(str(p.relative_to(folder)) for p in folder.rglob("*writing*"))
    return out


def differences(wanted: dict[str, Any], got: dict[str, Any]) -> list[str]:
    """Names of artefacts that differ, with the first place where they do."""
    return [
        f"{n} differs: {_first(wanted.get(n), got.get(n))}"
        for n in sorted(wanted.keys() | got.keys())
        if wanted.get(n) != got.get(n)
    ]


def _first(a: Any, b: Any, at: str = "") -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [k for k in (*a, *b) if a.get(k) != b.get(k) or (k in a) != (k in b)]
        return _first(a.get(keys[0]), b.get(keys[0]), f"{at}.{keys[0]}") if keys else at
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        place = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        return _first(a[place], b[place], f"{at}[{place}]")
    return f"{at}: {str(a)[:120]} and {str(b)[:120]}"


def trial(folder: Path, disk: Disk, draw: random.Random, seconds: float, counts: Counter[str]) -> list[str]:
    """Stop and resume until it has ended; returns what is wrong."""
    wrong = []
    for _ in range(draw.randint(2, 12)):
        if draw.random() < 0.15:
            wrong += fill(folder, disk, draw, counts)
            continue
        process = start(folder)
        how = stop(process, folder, draw, seconds)
        counts[how] += 1
        said = process.told()
        if how == "ended" and process.returncode != 0:
            wrong.append(f"exit {process.returncode}: {said[-300:]}")
        if how == "ended":
            # a run that has come to its end is resumed once more, below
            break
    process = start(folder)
    process.wait()
    said = process.told()
    if process.returncode != 0:
        return [*wrong, f"the last resume: exit {process.returncode}: {said[-600:]}"]
    return wrong


def kills(number: int, minutes: float, seed: int) -> dict[str, Any]:
    """So many stops, or as many as the time allows."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    for name in LIBRARIES:
        importlib.import_module(name)
    draw, counts, wrong = random.Random(seed), Counter[str](), list[str]()
    until = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="hintdistill-kill-") as name:
        straight = Path(name) / "straight"
        began = time.monotonic()
        process = start(straight)
        process.wait()
        if process.returncode:
            raise SystemExit(process.told())
        process.told()
        seconds, wanted = time.monotonic() - began, artefacts(straight)
        trials = 0
        while sum(counts[n] for n in STOPS) < number and time.monotonic() < until:
            disk = Disk(Path(name) / f"trial{trials}")
            folder = disk.at / disk.at.name
            try:
                found = trial(folder, disk, draw, seconds, counts)
                if not found:
                    found = differences(wanted, artefacts(folder))
            finally:
                disk.close()
            wrong += [f"trial {trials}: {text}" for text in found]
            print("\n".join(found), end="\n" if found else "", file=sys.stderr, flush=True)
            trials += 1
            print(f"{trials} trials, {dict(counts)}, {len(wrong)} wrong", file=sys.stderr, flush=True)
    return {"seconds of a run": round(seconds, 1), "trials": trials, **counts, "wrong": wrong}


def memory_slope(loops: int) -> dict[str, float]:
    """MB that the process grows by a loop of a small run, by a straight line through the later three quarters."""
    import torch

    from hintdistill.config.file import load_config
    from hintdistill.pipeline.progress import Console
    from hintdistill.pipeline.run import run

    torch.set_num_threads(1)
    used = []
    for _ in range(loops):
        with tempfile.TemporaryDirectory() as name:
            config = load_config(ROOT / "configs" / "quickstart.yaml", [*SMALL, "train.epochs=1"])
            run(config, Path(name) / "run", console=Console(quiet=True))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        used.append(pages * resource.getpagesize() / 1e6)
        print(f"loop {len(used)}: {used[-1]:.1f} MB", file=sys.stderr, flush=True)
    later = np.array(used[loops // 4 :])
    slope = float(np.polyfit(np.arange(len(later)), later, 1)[0])
    return {"loops": loops, "MB a loop": round(slope, 3), "MB at the end": round(used[-1], 1)}


def main() -> None:
    """Run both; exit 1 where anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=50.0)
    parser.add_argument("--loops", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    found: dict[str, Any] = {"kills": kills(args.kills, args.minutes, args.seed)} if args.kills else {}
    if args.loops:
        found["memory"] = memory_slope(args.loops)
    print(json.dumps(found, indent=1))
    if found.get("kills", {}).get("wrong") or found.get("memory", {}).get("MB a loop", 0) >= 1:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
