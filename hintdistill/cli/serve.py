"""The commands that serve other processes: `serve` and `mcp`. They parse and call; they contain no logic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="Model folder or hub name of the student.", show_default=False)]
BaseUrl = Annotated[
    str | None, typer.Option(help="Score on this vLLM server instead of in this process; the URL ends in /v1.")
]
ServedAs = Annotated[str | None, typer.Option(help="Name of the weights on that server; default: MODEL.")]
Config = Annotated[Path | None, typer.Option(help="Configuration whose `critic` section is used; default: the rules.")]
Traces = Annotated[Path | None, typer.Option(help="Folder for received traces; without it they are refused.")]
Memory = Annotated[int, typer.Option(min=1, help="Largest memory for cached conversations, in MB.")]


def serve(
    model: Model,
    base_url: BaseUrl = None,
    served_as: ServedAs = None,
    config: Config = None,
    traces: Traces = None,
    memory_mb: Memory = 1024,
    host: Annotated[
        str, typer.Option(help="Address to listen on; access from other machines needs a token in HINTDISTILL_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8710,
    max_waiting: Annotated[
        int, typer.Option(min=0, help="Maximum number of waiting requests; further requests get status 429.")
    ] = 64,
    timeout_s: Annotated[float, typer.Option(min=0.001, help="Seconds after which a request gets status 504.")] = 120.0,
) -> None:
    """Serve agents over HTTP: diagnose, rescore, rank, traces. See docs/agents.md."""
    from hintdistill.serving.start import Backend
    from hintdistill.serving.start import serve as start

    start(Backend(model, base_url, served_as, memory_mb, config, traces), host, port, max_waiting, timeout_s)


def mcp(
    model: Model,
    base_url: BaseUrl = None,
    served_as: ServedAs = None,
    config: Config = None,
    traces: Traces = None,
    memory_mb: Memory = 1024,
) -> None:
    """Serve agents as tools of the Model Context Protocol over stdio."""
    from hintdistill.serving.start import Backend, serve_tools

    serve_tools(Backend(model, base_url, served_as, memory_mb, config, traces))
