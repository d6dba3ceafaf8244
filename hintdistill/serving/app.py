"""Define the HTTP server: routes, limits and metrics. Needs the extra `serve`."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hintdistill import __version__
from hintdistill.core.errors import HintdistillError, InputError, ServiceError, TraceError
from hintdistill.recording import otlp
from hintdistill.serving.asked import DiagnoseAsked, RankAsked, RescoreAsked
from hintdistill.serving.gate import BusyError, Gate, TimedOutError
from hintdistill.serving.service import Service

OPEN = ("/health",)
"""Paths that need no token."""
Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class Limits:
    """Hold the limits of a server."""

    token: str | None = None
    """Token required as `Authorization: Bearer …`, if set."""
    max_body_bytes: int = 16 << 20
    workers: int = 8
    """Number of requests processed at the same time; the model reads them together."""
    max_waiting: int = 64
    """Number of further requests that may wait; others get status 429."""
    timeout_s: float = 120.0


class Metrics:
    """Count requests for Prometheus, in a separate registry."""

    def __init__(self, service: Service, gate: Gate) -> None:
        self.registry = CollectorRegistry()
        of = {"registry": self.registry}
        self.requests = Counter("hintdistill_requests_total", "Number of answered requests.", ["path", "status"], **of)
        self.seconds = Histogram("hintdistill_request_seconds", "Seconds until the answer.", ["path"], **of)
        Gauge("hintdistill_requests_inside", "Requests being processed or waiting.", **of).set_function(
            lambda: gate.inside
        )
        records = Gauge("hintdistill_trace_records", "Trace records written to disk since the start.", **of)
        records.set_function(lambda: service.sink.written if service.sink else 0)
        for name, text in (
            ("conversations", "Number of kept conversations."),
            ("bytes", "Memory used by kept conversations."),
            ("asked", "Tokens that separate passes would have read."),
            ("computed", "Tokens that were read."),
            ("batches", "Calls of the model, each for one or several callers."),
            ("targets", "Number of kept targets."),
        ):
            if name in service.session.stats():
                gauge = Gauge(f"hintdistill_session_{name}", text, **of)
                gauge.set_function(lambda name=name: service.session.stats()[name])


def create_app(service: Service, limits: Limits = Limits()) -> FastAPI:
    """Return the application for any ASGI server."""
    gate = Gate(limits.workers, limits.max_waiting, limits.timeout_s)
    metrics = Metrics(service, gate)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        gate.close()

    app = FastAPI(
        title="hintdistill",
        version=__version__,
        summary="Which step went wrong, and which hint would have prevented it?",
        lifespan=lifespan,
    )
    _questions(app, service, gate)
    _records(app, service, gate, limits)

    @app.get("/health", tags=["server"])
    async def health() -> dict[str, Any]:
        """Return the state of the server: whether it answers, its model, and the number of current requests."""
        return {"status": "ok", "engine": service.session.engine.key, "inside": gate.inside}

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def metrics_page() -> Response:
        """Return the counters for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(HintdistillError)
    async def declared(request: Request, error: HintdistillError) -> JSONResponse:
        return refusal(error)

    paths = {route.path for route in app.routes if hasattr(route, "path")}
    app.add_middleware(Doorkeeper, limits=limits, metrics=metrics, paths=frozenset(paths))
    return app


def _questions(app: FastAPI, service: Service, gate: Gate) -> None:
    @app.post("/v1/diagnose", tags=["questions"])
    async def diagnose(asked: DiagnoseAsked) -> dict[str, Any]:
        """Return the step that went wrong, and the hint that would have prevented the error."""
        return await gate.run(lambda: service.diagnose(asked))

    @app.post("/v1/rescore", tags=["questions"])
    async def rescore(asked: RescoreAsked) -> dict[str, Any]:
        """Return the effect that a hint would have had on a step."""
        return await gate.run(lambda: service.rescore(asked))

    @app.post("/v1/rank", tags=["questions"])
    async def rank(asked: RankAsked) -> dict[str, Any]:
        """Return several hints for one step, best first."""
        return await gate.run(lambda: service.rank(asked))


def _records(app: FastAPI, service: Service, gate: Gate, limits: Limits) -> None:
    body = {
        "required": True,
        "content": {
            "application/json": {
                "schema": {},
                "examples": {
                    "conversation": {"value": {"messages": [{"role": "user", "content": "Hi"}], "tools": []}},
                    "otlp": {"value": {"resourceSpans": []}},
                },
            },
            "application/x-protobuf": {"schema": {"type": "string", "format": "binary"}},
        },
    }

    @app.post("/v1/traces", tags=["traces"], openapi_extra={"requestBody": body})
    async def traces(request: Request) -> Response:
        """Store traces: one record or a list of records in any format that can be read one record at a time, or OTLP
        (JSON or protobuf).

        The answer is sent when they are on disk. A record that is not a trace is refused with its reason; the other
        records are stored.
        """
        kind = request.headers.get("content-type", otlp.JSON_TYPE)
        encoding = request.headers.get("content-encoding", "")
        raw = await request.body()
        if kind.startswith(otlp.PROTOBUF_TYPE):
            spans = otlp.decode(raw, kind, encoding, limits.max_body_bytes)
            await gate.run(lambda: service.spans(spans))
            return Response(b"", media_type=otlp.PROTOBUF_TYPE)
        try:
            value = json.loads(otlp.unpacked(raw, encoding, limits.max_body_bytes))
        except (ValueError, RecursionError) as error:
            raise TraceError(f"the body is not JSON: {error}") from None
        if isinstance(value, dict) and "resourceSpans" in value:
            spans = otlp.decode(json.dumps(value).encode(), otlp.JSON_TYPE)
            await gate.run(lambda: service.spans(spans))
            return JSONResponse({})
        records = value if _is_list_of_records(value) else [value]
        made = await gate.run(lambda: service.record(records))
        return JSONResponse(made, 200 if made["accepted"] or not records else 422)


def _is_list_of_records(value: Any) -> bool:
    """Return whether a body holds several records; a bare list of messages or items is one record."""
    return isinstance(value, list) and not any(isinstance(v, dict) and ("role" in v or "type" in v) for v in value)


def refusal(error: HintdistillError) -> JSONResponse:
    """Return the response for an error, with a description and advice."""
    status, headers = 400, dict[str, str]()
    if isinstance(error, BusyError):
        status, headers = 429, {"Retry-After": "1"}
    elif isinstance(error, TimedOutError):
        status = 504
    elif isinstance(error, ServiceError):
        status = 502
    elif isinstance(error, InputError):
        status = 422
    said = {"reason": error.reason, "message": error.message, "hint": error.hint}
    return JSONResponse({"error": said}, status, headers)


class Doorkeeper:
    """Middleware that checks the token and the size of bodies, and counts every request."""

    def __init__(
        self,
        app: Callable[[Message, Receive, Send], Awaitable[None]],
        limits: Limits,
        metrics: Metrics,
        paths: frozenset[str],
    ) -> None:
        self.app, self.limits, self.metrics, self.paths = app, limits, metrics, paths

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass one request on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        start, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refused = self._refuses(scope)
            if refused is not None:
                await refused(scope, receive, counted)
                return
            body = await self._body(receive)
            if body is None:
                large = _said(413, f"the body is larger than {self.limits.max_body_bytes} bytes")
                await large(scope, receive, counted)
                return
            await self.app(scope, _replay(body, receive), counted)
        finally:
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)

    def _refuses(self, scope: Message) -> JSONResponse | None:
        headers = {k.lower(): v for k, v in scope["headers"]}
        if self.limits.token is not None and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
            if not secrets.compare_digest(given, self.limits.token.encode()):
                return _said(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.limits.max_body_bytes:
            return _said(413, f"the body is larger than {self.limits.max_body_bytes} bytes")
        return None

    async def _body(self, receive: Receive) -> bytes | None:
        """Return the whole body; None if it is too large, regardless of its header."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return b"".join(parts)
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.max_body_bytes:
                return None
            if not message.get("more_body"):
                return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _said(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    reason = {401: "unauthorized", 413: "body_too_large"}[status]
    return JSONResponse({"error": {"reason": reason, "message": message, "hint": ""}}, status, headers)
