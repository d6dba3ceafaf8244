"""Detect messages whose words are under unknown keys, so that they are not taken for silence.

Such a message is noted; `guards.py` turns later student turns into context, because it is unknown what they answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hintdistill.traces.calls import plain_key

BESIDE = frozenset(
    key.replace("_", "")
    for key in (
        "id",
        "uuid",
        "parent_id",
        "name",
        "type",
        "kind",
        "object",
        "status",
        "index",
        "turn",
        "turn_idx",
        "step",
        "step_id",
        "timestamp",
        "time",
        "date",
        "created",
        "created_at",
        "updated_at",
        "start_time",
        "end_time",
        "duration",
        "model",
        "model_name",
        "usage",
        "usage_metadata",
        "token_usage",
        "cost",
        "metadata",
        "meta",
        "response_metadata",
        "additional_kwargs",
        "provider_metadata",
        "provider_options",
        "provider_specific_fields",
        "extra",
        "extras",
        "annotations",
        "author",
        "agent",
        "agent_id",
        "agent_name",
        "session_id",
        "message_id",
        "message_type",
        "finish_reason",
        "stop_reason",
        "stop_sequence",
        "stop_details",
        "error_type",
        "is_error",
        "tool_calls_error",
        "tool_call_ids",
        "server_items",
        "encrypted_reasoning",
        "hidden_thinking",
        "reasoning_details",
        "thinking_blocks",
        "logprobs",
        "tags",
        "labels",
        "label",
        "source",
        "origin",
        "user_tool_calls",
        "given_because",
        "system_fingerprint",
        "service_tier",
        "cache_control",
        "thinking_signature",
        "signature",
        "control_plane_step",
        "observation",
        "action",
        "args",
        "parts_beside",
        "hosted_tools",
        "request_beside",
        "run_id",
        "conversation_id",
        "state",
        "user_cost",
        "raw_data",
        "invalid_tool_calls",
        "llm_call_count",
        "subagents",
    )
)
"""Keys that describe a message and do not hold its words, in the spelling of `plain_key`."""
UNREAD = "unread_keys"
"""Key in a message's `extra` that lists the keys of its words, if they are unknown."""
UNSEEN = "unseen_items"
"""Key in a message's `extra` that names unreadable content in its place: a hosted tool's work, an unknown item."""
HOSTED = "hosted_tools"
"""Key in a message's `extra` that names the server-hosted tools it called."""
_SAID = ("content", "tool_calls", "reasoning", "token_ids", "raw_text")


def note_unread(fields: dict[str, Any], value: Mapping[Any, Any], extra: dict[str, Any]) -> None:
    """Read a refusal as output of the model, and note a message that has content but none that was read.

    Args:
        fields: the message's fields, changed in place.
        value: the message in the form that its reader gave it.
        extra: the message's unread keys, changed in place.
    """
    if fields["role"] == "assistant" and isinstance(extra.get("refusal"), str) and extra["refusal"]:
        fields["content"] = extra.pop("refusal")
    if any(fields.get(k) for k in _SAID) or (value.get("content") is not None and fields["role"] != "assistant"):
        return
    unread = [k for k, v in extra.items() if v and isinstance(v, str | list | dict) and plain_key(k) not in BESIDE]
    if unread:
        extra[UNREAD] = [str(k) for k in unread]
