"""Keep the state of an agent's conversations between calls of an engine."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from hintdistill.agents.loaded import LoadedModel, require_engine
from hintdistill.core.errors import ArgumentError
from hintdistill.core.scores import Target
from hintdistill.engines.kept import KeptEngine
from hintdistill.engines.turns import Turns

TARGETS = 256
"""Maximum number of targets that a session keeps."""


class Session(LoadedModel):
    """Replace the engine in every call: `hd.diagnose(messages, engine=session, …)`.

    Keys and values of growing conversations are kept in bounded memory; the least recently used conversation is dropped
    first. Requests that arrive at the same time are read together. A finding with the same words in the same context is
    not scored again. The kept state belongs to the weights: call `clear` after they have changed.
    """

    def __init__(self, engine: LoadedModel, *, memory_mb: int = 1024, readers: int | None = None) -> None:
        """Wrap an engine.

        Args:
            engine: from `load_engine` or `connect_engine`. A server keeps prefixes itself, so its calls pass through,
                and only targets are kept here.
            memory_mb: limit on kept keys, values and hidden states, in 2^20 bytes.
            readers: number of threads that read the callers of one batch side by side, each with one torch thread; None
                for torch's number of threads on a CPU, if the model allows it. It has no effect on a server.

        Raises:
            ArgumentError: `engine` is not an engine or is already a session, or the limit or `readers` is not positive.
        """
        from hintdistill.engines.transformers import TransformersEngine

        loaded = require_engine(engine)
        if isinstance(loaded, Session):
            raise ArgumentError("`engine` is already a Session")
        if not isinstance(memory_mb, int) or memory_mb <= 0:
            raise ArgumentError(f"`memory_mb` must be a positive whole number, not {memory_mb!r}")
        if readers is not None and (not isinstance(readers, int) or readers <= 0):
            raise ArgumentError(f"`readers` must be a positive whole number, not {readers!r}")
        inner = loaded.engine
        turns = Turns(loaded.lock)
        kept = inner
        if isinstance(inner, TransformersEngine):
            kept = KeptEngine(inner, memory_mb << 20, turns, readers)
        super().__init__(kept, loaded.renderer, loaded.backend, turns, loaded.folder)
        object.__setattr__(self, "_targets", OrderedDict())

    @property
    def turn(self) -> AbstractContextManager[Any]:
        """Let one call compute at a time, in order of arrival; while the model reads, another call may have the
        turn."""
        return self.lock if isinstance(self.engine, KeptEngine) else nullcontext()

    def stats(self) -> dict[str, Any]:
        """Return counts: kept conversations and bytes, requested and computed tokens, batches of callers, kept targets.

        The model's counts are missing for an engine outside this process.
        """
        targets = {"targets": len(self._targets)}  # type: ignore[attr-defined]
        if not isinstance(self.engine, KeptEngine):
            return targets
        e = self.engine
        counts = {"conversations": e.conversations, "bytes": e.bytes, "asked": e.asked, "computed": e.computed}
        return {**counts, "batches": e.batches, **targets}

    def clear(self) -> None:
        """Forget all kept state."""
        with self.lock:
            self._targets.clear()  # type: ignore[attr-defined]
        if isinstance(self.engine, KeptEngine):
            self.engine.clear()

    def known(self, key: str) -> Target | None:
        """Return a kept target, or None."""
        with self.lock:
            found: Target | None = self._targets.get(key)  # type: ignore[attr-defined]
            if found is not None:
                self._targets.move_to_end(key)  # type: ignore[attr-defined]
            return found

    def keep(self, key: str, target: Target) -> None:
        """Keep a target; beyond `TARGETS`, the least recently used one is dropped."""
        with self.lock:
            self._targets[key] = target  # type: ignore[attr-defined]
            while len(self._targets) > TARGETS:  # type: ignore[attr-defined]
                self._targets.popitem(last=False)  # type: ignore[attr-defined]
