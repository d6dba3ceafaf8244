"""Load an engine with its renderer, which every call of an agent takes."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hintdistill.config import TemplateSection
from hintdistill.core.errors import ArgumentError, ConfigError
from hintdistill.core.extensions import ENGINES
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.trust import in_use
from hintdistill.engines import Engine
from hintdistill.engines.loading import EngineJob, load
from hintdistill.injection.rendering import Renderer


@dataclass(frozen=True)
class LoadedModel:
    """Hold an engine and its renderer."""

    engine: Engine
    renderer: Renderer
    backend: str = ""
    """Registered name of the engine; empty if the caller made the engine."""
    lock: AbstractContextManager[Any] = field(default_factory=threading.RLock, compare=False, repr=False)
    """Lock held during rendering, because fast tokenizers cannot be used by two threads at once."""
    folder: Path | None = field(default=None, compare=False)
    """Folder of the tokenizer and, for an engine in this process, of the weights; None if the caller made the
    engine."""

    @property
    def turn(self) -> AbstractContextManager[Any]:
        """Lock that a call holds while it prepares requests and processes scores; only a session in this process uses
        it."""
        return nullcontext()


def load_engine(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    batch_tokens: int | None = None,
    backend: str = "transformers",
    trust_remote_code: bool = False,
    template: TemplateSection | None = None,
    **kwargs: Any,
) -> LoadedModel:
    """Load a model folder (or hub name) for rescoring; further keywords go to the engine.

    Args:
        backend: any registered engine that loads weights: `transformers`, `vllm`, or a plugin's engine.
        trust_remote_code: whether Python code in the model folder may run; it runs with your permissions.
        template: options of the chat template (`TemplateSection(options={"enable_thinking": False})`), or the file of
            another template.

    Raises:
        ModelError: the folder, its tokenizer or its chat template cannot be used, or vLLM is not installed.
        ConfigError: there is no such backend, it is a server (use `connect_engine`), or the template does not read an
            option.
    """
    if ENGINES.get(backend).remote:
        raise ConfigError(
            f"the engine {backend} is a server with an address", hint="use hd.connect_engine(name, base_url)"
        )
    with in_use(None, model_code=trust_remote_code):
        folder = resolve_model(name)
        renderer = Renderer.from_pretrained(folder, *_template(template))
        job = EngineJob(
            folder,
            dtype=dtype,
            device=device,
            batch_tokens=batch_tokens,
            id_of=renderer.vocabulary.get,
            key=model_key(folder).weights,
            options=kwargs,
        )
        return LoadedModel(load(backend, job), renderer, backend, folder=folder)


def _template(section: TemplateSection | None) -> tuple[dict[str, Any], str | None]:
    """Return the options and the file of a template section."""
    return ({}, None) if section is None else (section.options, section.file)


def connect_engine(
    name: str, base_url: str, model: str | None = None, *, template: TemplateSection | None = None, **kwargs: Any
) -> LoadedModel:
    """Rescore through a running server.

    Args:
        name: folder or hub name of the served model; only its tokenizer and chat template are read.
        base_url: address up to and including `/v1`.
        model: the server's name for the weights; default: `name`.
        template: options of the chat template, as in `load_engine`.
        kwargs: further arguments of `ServerEngine`.

    Raises:
        ModelError: the tokenizer or its chat template cannot be used.
        ServiceError: the server cannot be reached or does not serve the model.
    """
    from hintdistill.engines.server import ServerEngine

    folder = resolve_model(name)
    renderer = Renderer.from_pretrained(folder, *_template(template))
    if kwargs.get("dialect") == "echo":
        kwargs.setdefault("id_of", renderer.vocabulary.get)
    engine = ServerEngine(base_url, model or name, **kwargs)
    engine.text_of = renderer.text_of
    return LoadedModel(engine, renderer, "server", folder=folder)


def require_engine(engine: Any) -> LoadedModel:
    """Return the engine. Raises ArgumentError if it is not an engine."""
    if not isinstance(engine, LoadedModel):
        raise ArgumentError(
            f"`engine` is a {type(engine).__name__}",
            hint="make one with hd.load_engine(name), hd.connect_engine(name, base_url) or hd.Session(engine)",
        )
    return engine
