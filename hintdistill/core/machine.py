"""How much memory there is, and how much a stage takes of it."""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, linear_regression
from typing import Any

CGROUP = Path("/sys/fs/cgroup")
BESIDE = ("program", "weights", "other models", "stored targets")
"""Parts of a peak that do not grow with what a stage reads at once."""

SLOPES = (0.8, 2.0)
"""Bounds of a slope of measured over counted bytes: two points that are near each other say little about it."""


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number by precision."""
SMALL = 50_000_000
"""Parameters up to which a CPU computes in float32 whatever it has: there is nothing to gain."""


@cache
def cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 by itself (AVX512-BF16, AMX, or ARM's bf16); where that is unknown it
    has not."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16", "bf16"})


@cache
def _trim() -> Callable[[int], int] | None:
    """Return glibc's `malloc_trim`, if there is one."""
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def give_back() -> None:
    """Hand freed blocks of the host's memory back to the system: glibc would keep what the largest batch took, or more."""
    if (trim := _trim()) is not None:
        trim(0)


def precision(dtype: str, on_cpu: bool, parameters: int) -> str:
    """Return `run.dtype` with `auto` decided for a model of so many parameters.

    `auto` is bfloat16 on an accelerator, and on a CPU that has it for models above `SMALL`; else float32.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if not on_cpu or (parameters > SMALL and cpu_has_bfloat16()) else "float32"


@dataclass(frozen=True)
class Peak:
    """Bytes at the worst moment of a stage."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum of the parts, bytes."""
        return sum(self.parts.values())

    @property
    def added(self) -> int:
        """Bytes of the stage's own work, without `BESIDE`, which is counted exactly or known from elsewhere."""
        return self.total - sum(self.parts.get(name, 0) for name in BESIDE)


@dataclass(frozen=True)
class Growth:
    """Measured memory of a stage's own work as a straight line of the counted one."""

    program: int
    """Resident bytes of a process that has imported everything and loaded no model; 0 on an accelerator."""
    base: float = 0.0
    slope: float = 1.0

    def __call__(self, counted: Peak) -> Peak:
        """Return the peak that is to be expected where so much is counted."""
        parts = {name: counted.parts[name] for name in BESIDE if counted.parts.get(name)}
        own = max(0, round(self.base + self.slope * counted.added))
        return Peak(parts | {"program": self.program, "measured and extrapolated": own})


def grow_by(program: int, points: Sequence[tuple[int, int]]) -> Growth:
    """Return the line of least squares through (counted, measured) bytes of a stage's own work.

    The slope is 1 where the counted bytes are nearly the same, and within `SLOPES` in any case; the line goes through the mean.
    """
    counted, measured = ([float(p[i]) for p in points] for i in (0, 1))
    x, y = fmean(counted), fmean(measured)
    slope = 1.0
    if max(counted) - min(counted) > 0.05 * max(counted):
        slope = min(max(linear_regression(counted, measured).slope, SLOPES[0]), SLOPES[1])
    return Growth(program, y - slope * x, slope)


@dataclass(frozen=True)
class Room:
    """Memory that a run may use, bytes."""

    available: int
    source: str
    """Where the figure comes from."""
    on_cpu: bool = True
    beside_program: bool = True
    """Whether this process, its libraries loaded, is there already, so that they need no further room."""

    def need(self, peak: Peak) -> int:
        """Return what a stage wants of this room, bytes."""
        return peak.total - (peak.parts.get("program", 0) if self.beside_program else 0)

    def holds(self, peak: Peak, share: float = 1.0) -> bool:
        """Return whether a stage fits into this share of it."""
        return self.need(peak) <= share * self.available


def room(device: str = "auto", gigabytes: float | None = None) -> Room:
    """Return what the device of a run has free; `gigabytes` says it instead. A container's own limit counts."""
    on_cpu = not _accelerated(device)
    if gigabytes is not None:
        return Room(int(gigabytes * 1e9), "--memory", on_cpu, beside_program=False)
    if not on_cpu:
        import torch

        free, _ = torch.cuda.mem_get_info(None if device == "auto" else device)
        return Room(int(free), "free on the device", on_cpu=False)
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = _container_room()
    return Room(free, "available") if limit is None or limit >= free else Room(limit, "left of the container's limit")


def _accelerated(device: str) -> bool:
    if device.startswith("cpu"):
        return False
    import torch

    return torch.cuda.is_available()


def _container_room() -> int | None:
    """Return what the control group leaves, None if it sets no limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)


def process_figure(key: str) -> int:
    """Read a figure of /proc/self/status, bytes; the peak of the process if there is no such file."""
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(line.split()[1]) * 1024


def high_water(device: Any) -> int:
    """Read the peak so far: resident bytes of the process on a CPU, of what is allocated on a CUDA device."""
    if device.type == "cpu":
        return process_figure("VmHWM")
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def clock() -> float:
    """Read seconds: of this process on one CPU thread, else of the wall."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
