"""Read parts of a batch in several threads at the same time.

A call of a small model keeps only one core busy: its operations are too short to be divided, and Python runs between
them. So the callers of a batch are divided instead. Each reader computes with one torch thread, because two thread
pools slow each other down, and there are as many readers as torch may use threads. Python's lock costs little here,
because it is released while an operation computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier, Thread
from typing import Any, TypeVar

import torch

from hintdistill.engines.forward import READER

UNEVEN = 1.2
"""Largest part, relative to an even part, for reading side by side; above it, one reader with all threads is as
fast."""
Part = TypeVar("Part")
Made = TypeVar("Made")


class SideBySide:
    """Run the readers of one model."""

    def __init__(self, readers: int) -> None:
        """Set the maximum number of readers; their threads start when they are first needed."""
        self.readers = readers
        self._pool: ThreadPoolExecutor | None = None

    def divide(self, weights: Sequence[float]) -> list[list[int]]:
        """Divide items among the readers so that each has about the same work, and return the item numbers of each
        reader, without empty parts. If the items cannot be divided evenly, return one part.
        """
        parts: list[list[int]] = [[] for _ in range(max(1, min(self.readers, len(weights))))]
        loads = [0.0] * len(parts)
        for i in sorted(range(len(weights)), key=lambda i: -weights[i]):
            least = loads.index(min(loads))
            parts[least].append(i)
            loads[least] += weights[i]
        if not sum(loads) or max(loads) * len(parts) > UNEVEN * sum(loads):
            return [list(range(len(weights)))] if weights else []
        return [sorted(part) for part in parts if part]

    def map(self, work: Callable[[Part], Made], parts: Sequence[Part]) -> list[Made]:
        """Return the result of `work` for each part; a single part runs in the calling thread. All parts have ended
        when this returns or raises; of several errors, the first part's is raised.
        """
        if len(parts) < 2:
            return [work(part) for part in parts]
        pool = self._started()
        futures = [pool.submit(_read, work, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]

    def _started(self) -> ThreadPoolExecutor:
        """Return the threads, each limited to one torch thread."""
        if self._pool is None:
            pool = ThreadPoolExecutor(self.readers, thread_name_prefix="hintdistill-part")
            threads, all_are_there = torch.get_num_threads(), Barrier(self.readers)

            def limit(_: int) -> None:
                # asked first: a thread that has not begun would take the common number later, in place of this one
                torch.get_num_threads()
                torch.set_num_threads(1)
                all_are_there.wait()

            list(pool.map(limit, range(self.readers)))
            # the setting is each thread's own, but the last one is also what threads that are still to come begin with
            other = Thread(target=torch.set_num_threads, args=(threads,))
            other.start()
            other.join()
            self._pool = pool
        return self._pool


def _read(work: Callable[[Part], Made], part: Part) -> Made:
    """Do the work without gradients, marked as a separate reader."""
    token = READER.set(object())
    try:
        with torch.inference_mode():
            return work(part)
    finally:
        READER.reset(token)


def readers_for(model: Any, on_cpu: bool) -> int:
    """Return the number of threads that may run a model at the same time: torch's threads on a CPU, or 1 if a pass
    changes the model.

    Rotary embeddings whose frequencies follow the length of the sequence (dynamic, longrope) write them into the model;
    the effects of code from the model's folder are not known.
    """
    modules = list(model.modules())
    kinds = str([getattr(module, "rope_type", "") for module in modules])
    own_code = any(type(module).__module__.startswith("transformers_modules") for module in modules)
    return 1 if not on_cpu or own_code or "dynamic" in kinds or "longrope" in kinds else torch.get_num_threads()
