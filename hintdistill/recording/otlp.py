"""Convert OTLP/HTTP bodies, JSON or protobuf, to the JSON that the reader of spans accepts."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import Any

from hintdistill.core.errors import ConfigError, TraceError

IDS = ("traceId", "spanId", "parentSpanId")
JSON_TYPE, PROTOBUF_TYPE = "application/json", "application/x-protobuf"


def decode(body: bytes, content_type: str, encoding: str = "", max_bytes: int = 1 << 30) -> dict[str, Any]:
    """Return the request as OTLP's JSON, with ids as hexadecimal digits.

    Raises:
        TraceError: the body is not an OTLP request of that type, or is larger than `max_bytes` when unpacked.
        ConfigError: the body is protobuf, but `opentelemetry-proto` is not installed.
    """
    body = unpacked(body, encoding, max_bytes)
    if content_type.startswith(PROTOBUF_TYPE):
        return _from_protobuf(body)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("resourceSpans"), list):
        raise TraceError("the body is not an OTLP trace request: the list `resourceSpans` is missing")
    return value


def unpacked(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return the body after undoing gzip. Raises TraceError if it is not gzip, or unpacks to more than `max_bytes`."""
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        raise TraceError(f"the content encoding {encoding!r} is not supported; use gzip")
    try:
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
        out = unpacker.decompress(body, max_bytes + 1)
    except (zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"the body is not gzip: {error}") from None
    if len(out) > max_bytes:
        raise TraceError(f"the body unpacks to more than {max_bytes} bytes")
    return out


def _from_protobuf(body: bytes) -> dict[str, Any]:
    try:
        from google.protobuf.json_format import MessageToDict
        from google.protobuf.message import DecodeError
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    except ImportError:
        raise ConfigError(
            "OTLP in protobuf needs opentelemetry-proto", hint='pip install "hintdistill[serve]"'
        ) from None
    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise TraceError(f"the body is not an OTLP trace request: {error}") from None
    value: dict[str, Any] = MessageToDict(request)
    for resource in value.get("resourceSpans", ()):
        for scope in resource.get("scopeSpans", ()):
            for span in scope.get("spans", ()):
                # protobuf's JSON has bytes in base64, OTLP's in hexadecimal digits
                span.update({k: base64.b64decode(span[k]).hex() for k in IDS if k in span})
    return value
