"""Build a service and start it, over HTTP or as tools over stdio."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

from hintdistill import api
from hintdistill.config import CriticSection
from hintdistill.core.errors import ConfigError
from hintdistill.core.hosts import is_loopback
from hintdistill.recording.sink import TraceSink
from hintdistill.serving.service import Service

TOKEN_ENV = "HINTDISTILL_TOKEN"
EXTRA = 'pip install "hintdistill[serve]"'


@dataclass(frozen=True)
class Backend:
    """Describe the engine, critics and trace folder of a service."""

    model: str
    """Model folder or hub name; with `base_url`, only its tokenizer and template are read."""
    base_url: str | None = None
    """Address of a vLLM server, up to and including `/v1`; None scores in this process."""
    served_as: str | None = None
    """The server's name for the weights; default: `model`."""
    memory_mb: int = 1024
    """Limit on the memory of kept conversations, megabytes."""
    config: Path | None = None
    """Configuration whose section `critic` is used; None for the deterministic checks."""
    traces: Path | None = None
    """Folder for traces; None refuses traces."""


def make_service(backend: Backend) -> Service:
    """Load the parts of a service. Raises ConfigError, InputError, ModelError or ServiceError."""
    sink = TraceSink(backend.traces) if backend.traces is not None else None
    if backend.base_url is None:
        loaded = api.load_engine(backend.model)
    else:
        loaded = api.connect_engine(backend.model, backend.base_url, backend.served_as)
    section = CriticSection()
    if backend.config is not None:
        from hintdistill.config.file import load_config

        section = load_config(backend.config, []).critic
    panel = api.load_critic(section, str(loaded.folder))
    return Service(api.Session(loaded, memory_mb=backend.memory_mb), panel, sink)


def token_for(host: str) -> str | None:
    """Return the token that `HINTDISTILL_TOKEN` holds.

    Raises:
        ConfigError: there is no token, and the host is not this machine.
    """
    token = os.environ.get(TOKEN_ENV) or None
    if token is None and not is_loopback(host):
        raise ConfigError(
            f"a server on {host} can be reached from outside this machine and needs a token",
            hint=f"set the environment variable {TOKEN_ENV}, or leave --host at 127.0.0.1",
        )
    return token


def serve(backend: Backend, host: str, port: int, max_waiting: int, timeout_s: float) -> None:
    """Serve over HTTP until SIGTERM or SIGINT; then answer the accepted requests, and return.

    Raises:
        ConfigError: the extra is not installed, or the host needs a token.
    """
    token = token_for(host)
    try:
        import uvicorn

        from hintdistill.serving.app import Limits, create_app
    except ImportError as error:
        raise ConfigError(f"the server needs {error.name}", hint=EXTRA) from None
    app = create_app(make_service(backend), Limits(token=token, max_waiting=max_waiting, timeout_s=timeout_s))
    # uvicorn sends itself the signal again when it has stopped; what is done then is done, and the exit code says so
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        # no bound on the shutdown: every request inside has its own timeout
        uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=None)
    finally:
        signal.signal(signal.SIGTERM, before)


def serve_tools(backend: Backend) -> None:
    """Serve as tools over stdio until the client closes it. Raises ConfigError if the extra is not installed."""
    try:
        from hintdistill.serving.tools import create_server
    except ImportError as error:
        raise ConfigError(f"the tools need {error.name}", hint=EXTRA) from None
    create_server(make_service(backend)).run("stdio")
