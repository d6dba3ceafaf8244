"""Offer the agent's calls as tools of the Model Context Protocol. Needs the extra `serve`."""

from __future__ import annotations

from typing import Any

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

from hintdistill import __version__
from hintdistill.core.errors import HintdistillError
from hintdistill.serving.asked import DiagnoseAsked, RankAsked, RescoreAsked
from hintdistill.serving.service import Service

Messages = list[dict[str, Any]]
Tools = list[dict[str, Any]] | None


def create_server(service: Service) -> MCPServer:
    """Return a server with the tools `diagnose`, `rescore`, `rank_hints` and, if traces are stored, `record_traces`."""
    server = MCPServer(
        "hintdistill",
        version=__version__,
        instructions="Ask which step of a failed conversation went wrong, and which hint would have prevented it.",
        log_level="WARNING",
    )

    @server.tool()
    def diagnose(messages: Messages, tools: Tools = None, step: int | None = None) -> dict[str, Any]:
        """Find the step that went wrong in a conversation, the wrong words, and the hint that would have prevented the
        error.

        `messages` are chat messages, Responses items or Anthropic messages; `tools` are the schemas that the agent had;
        `step` limits the answer to one assistant message (from 0; negative numbers count from the end).
        """
        return _said(lambda: service.diagnose(DiagnoseAsked(messages=messages, tools=tools, step=step)))

    @server.tool()
    def rescore(
        messages: Messages, hint: str, quote: str | None = None, tools: Tools = None, step: int | None = None
    ) -> dict[str, Any]:
        """Measure the effect that a hint above a step would have had on the probability of its words. `quote` are the
        wrong words of the step."""
        return _said(
            lambda: service.rescore(RescoreAsked(messages=messages, hint=hint, quote=quote, tools=tools, step=step))
        )

    @server.tool()
    def rank_hints(
        messages: Messages, hints: list[str], quote: str | None = None, tools: Tools = None, step: int | None = None
    ) -> dict[str, Any]:
        """Rank several hints for one step, best first."""
        return _said(
            lambda: service.rank(RankAsked(messages=messages, hints=hints, quote=quote, tools=tools, step=step))
        )

    if service.sink is not None:

        @server.tool()
        def record_traces(records: list[dict[str, Any]]) -> dict[str, Any]:
            """Store conversations for later training, each as `{"messages": […], "tools": […]}` or in another known
            format."""
            return _said(lambda: service.record(list(records)))

    return server


def _said(ask: Any) -> dict[str, Any]:
    """Return the answer, or raise ToolError with the error's message."""
    try:
        answer: dict[str, Any] = ask()
    except HintdistillError as error:
        raise ToolError(str(error)) from error
    return answer
