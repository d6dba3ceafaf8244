"""Measure how much memory is available and how much of it a stage uses."""

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
"""Parts of a peak that do not depend on how much a stage reads at once."""

SLOPES = (0.8, 2.0)
"""Bounds of the slope of measured over counted bytes. They are needed because two close points determine the slope
poorly."""


BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of one number, by precision."""
SMALL = 50_000_000
"""Maximum number of parameters for which a CPU always computes in float32, because nothing is gained by bfloat16."""


@cache
def cpu_has_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 natively (AVX512-BF16, AMX, or ARM's bf16); False if that is
    unknown."""
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
    """Return `run.dtype`, with `auto` resolved for a model of this many parameters.

    `auto` is bfloat16 on an accelerator, and on a CPU with native bfloat16 for models above `SMALL`; else float32.
    """
    if dtype != "auto":
        return dtype
    return "bfloat16" if not on_cpu or (parameters > SMALL and cpu_has_bfloat16()) else "float32"


@dataclass(frozen=True)
class Peak:
    """Hold the bytes in use at a stage's peak."""

    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """Sum of all parts, bytes."""
        return sum(self.parts.values())

    @property
    def added(self) -> int:
        """Bytes that the stage itself allocates. The parts in `BESIDE` are excluded, because they are counted exactly
        or known otherwise."""
        return self.total - sum(self.parts.get(name, 0) for name in BESIDE)


@dataclass(frozen=True)
class Growth:
    """Express the measured memory of a stage's own work as a linear function of the counted memory."""

    program: int
    """Resident bytes of a process that has imported everything but loaded no model; 0 on an accelerator."""
    base: float = 0.0
    slope: float = 1.0

    def __call__(self, counted: Peak) -> Peak:
        """Return the expected peak for a counted one."""
        parts = {name: counted.parts[name] for name in BESIDE if counted.parts.get(name)}
        own = max(0, round(self.base + self.slope * counted.added))
        return Peak(parts | {"program": self.program, "measured and extrapolated": own})


def grow_by(program: int, points: Sequence[tuple[int, int]]) -> Growth:
    """Return the least-squares line through (counted, measured) bytes of a stage's own work.

    The line goes through the mean. Its slope is limited to `SLOPES`, and is 1 if the counted bytes are nearly equal.
    """
    counted, measured = ([float(p[i]) for p in points] for i in (0, 1))
    x, y = fmean(counted), fmean(measured)
    slope = 1.0
    if max(counted) - min(counted) > 0.05 * max(counted):
        slope = min(max(linear_regression(counted, measured).slope, SLOPES[0]), SLOPES[1])
    return Growth(program, y - slope * x, slope)


@dataclass(frozen=True)
class Room:
    """Describe the memory that a run may use, in bytes."""

    available: int
    source: str
    """Origin of the figure, in words."""
    on_cpu: bool = True
    beside_program: bool = True
    """Whether this process and its libraries are already loaded, so that they need no further memory."""

    def need(self, peak: Peak) -> int:
        """Return the bytes that a stage needs of this memory."""
        return peak.total - (peak.parts.get("program", 0) if self.beside_program else 0)

    def holds(self, peak: Peak, share: float = 1.0) -> bool:
        """Return whether a stage fits into the given share of this memory."""
        return self.need(peak) <= share * self.available


def room(device: str = "auto", gigabytes: float | None = None) -> Room:
    """Return the free memory of a run's device, or `gigabytes` if that is given. The limit of a container is
    respected."""
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
    return (
        Room(free, "available") if limit is None or limit >= free else Room(limit, "left within the container's limit")
    )


def _accelerated(device: str) -> bool:
    if device.startswith("cpu"):
        return False
    import torch

    return torch.cuda.is_available()


def _container_room() -> int | None:
    """Return the bytes left within the control group's limit; None if it sets no limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)


def process_figure(key: str) -> int:
    """Return a figure of /proc/self/status in bytes, or the peak of the process if there is no such file."""
    try:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return int(line.split()[1]) * 1024


def high_water(device: Any) -> int:
    """Return the peak so far: resident bytes of the process on a CPU, allocated bytes on a CUDA device."""
    if device.type == "cpu":
        return process_figure("VmHWM")
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def clock() -> float:
    """Return a time in seconds: the CPU time of this process on one thread, else the wall-clock time."""
    import torch

    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()
