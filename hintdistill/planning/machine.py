"""How much memory there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hintdistill.planning.memory import Peak

CGROUP = Path("/sys/fs/cgroup")


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
        """What a stage wants of this room, bytes."""
        return peak.total - (peak.parts.get("program", 0) if self.beside_program else 0)

    def holds(self, peak: Peak, share: float = 1.0) -> bool:
        """Whether a stage fits into this share of it."""
        return self.need(peak) <= share * self.available


def room(device: str = "auto", gigabytes: float | None = None) -> Room:
    """What the device of a run has free; `gigabytes` says it instead. A container's own limit counts."""
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
    """What the control group leaves, None where it sets no limit."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(0, int(limit) - used)
