"""Load engines by name: the shipped loaders, and the job that each receives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hintdistill.config import EngineSection
from hintdistill.core.errors import ConfigError
from hintdistill.core.extensions import ENGINES
from hintdistill.core.registry import loaded
from hintdistill.engines import Engine

if TYPE_CHECKING:
    from hintdistill.engines.server import ServerEngine
    from hintdistill.engines.transformers import TransformersEngine
    from hintdistill.engines.vllm import VLLMEngine


@dataclass(frozen=True)
class EngineJob:
    """Describe the weights and settings of an engine."""

    folder: Path
    """The model folder with the weights and their tokenizer."""
    section: EngineSection = field(default_factory=EngineSection)
    """The configuration section `rescore.engine`."""
    dtype: str = "auto"
    device: str = "auto"
    batch_tokens: int | None = None
    top_k: int | None = None
    """Number of log-probabilities requested at each position; None if the caller does not know it yet."""
    id_of: Callable[[str], int | None] | None = None
    """Function that returns the id of a token's text."""
    text_of: Callable[[int], str] | None = None
    """Function that returns the text of a token's id."""
    key: str | None = None
    """Key of the weights, for engines that cannot determine it."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments of the engine."""


def load(name: str, job: EngineJob) -> Engine:
    """Load the engine with a given name.

    Raises:
        ConfigError: there is no such engine, its host is not allowed, or its capabilities differ from those of its
            entry.
        ModelError, ServiceError: the engine cannot be loaded or reached.
    """
    entry = ENGINES.get(name)
    engine = loaded(entry.implementation)(job)
    if not isinstance(engine, Engine):
        raise ConfigError(
            f"the engine {name} is a {type(engine).__name__}, which lacks one of capabilities, key, max_length and "
            "score"
        )
    if frozenset(engine.capabilities) != entry.capabilities:
        said = [", ".join(sorted(c)) or "none" for c in (entry.capabilities, engine.capabilities)]
        raise ConfigError(f"the engine {name} is registered with the capabilities {said[0]} but has {said[1]}")
    return engine


@contextmanager
def opened(name: str, job: EngineJob) -> Iterator[Engine]:
    """Yield the engine with a given name, and close it at the end if it has `close`. Raises the errors of `load`."""
    engine = load(name, job)
    try:
        yield engine
    finally:
        close = getattr(engine, "close", None)
        if close is not None:
            close()


def transformers(job: EngineJob) -> TransformersEngine:
    """Return the engine `transformers`, in this process."""
    from hintdistill.engines.transformers import TransformersEngine

    return TransformersEngine.load(job.folder, job.dtype, job.device, job.batch_tokens, **job.options)


def vllm(job: EngineJob) -> VLLMEngine:
    """Return the engine `vllm`, in this process."""
    from hintdistill.engines.vllm import VLLMEngine

    bounds = {"max_logprobs": job.top_k, "max_length": job.section.max_length}
    given = {k: v for k, v in bounds.items() if v is not None}
    return VLLMEngine.load(job.folder, job.dtype, **{**given, **job.options})


def server(job: EngineJob) -> ServerEngine:
    """Return the engine `server`. Raises ConfigError if the host is not allowed."""
    from hintdistill.engines.server import ServerEngine

    section = job.section
    assert section.base_url is not None and section.model is not None
    engine = ServerEngine(
        (section.base_url, *section.more_urls),
        section.model,
        max_length=section.max_length,
        dialect=section.dialect,
        id_of=job.id_of,
        api_key_env=section.api_key_env,
        concurrency=section.concurrency,
        timeout_s=section.timeout_s,
        retries=section.retries,
        allow_hosts=section.allow_hosts,
        **job.options,
    )
    engine.text_of, engine.key = job.text_of, job.key or engine.key
    return engine
