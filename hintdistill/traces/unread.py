"""Messages whose words are under keys that no reader knows: never read as silence.

Such a message is noted; `guards.py` makes the turns after it context only, because what they answer is not known.
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
"""Keys of a message that say something of it and are not its words, as `plain_key` spells them."""
UNREAD = "unread_keys"
"""Key of a message's `extra` that names the keys of its words, if they are not among the known ones."""
UNSEEN = "unseen_items"
"""Key of a message's `extra` that names what stood in its place and cannot be shown: a hosted tool's work, an unknown item."""
HOSTED = "hosted_tools"
"""Key of a message's `extra` that names the tools of the server it called."""
_SAID = ("content", "tool_calls", "reasoning", "token_ids", "raw_text")


def note_unread(fields: dict[str, Any], value: Mapping[Any, Any], extra: dict[str, Any]) -> None:
    """Read a refusal as what the model said; note a message that says nothing that was read, and holds something.

    Args:
        fields: of the message, changed in place.
        value: the message as its reader gave it.
        extra: its keys that were not read, changed in place.
    """
    if fields["role"] == "assistant" and isinstance(extra.get("refusal"), str) and extra["refusal"]:
        fields["content"] = extra.pop("refusal")
    if any(fields.get(k) for k in _SAID) or (value.get("content") is not None and fields["role"] != "assistant"):
        return
    unread = [k for k, v in extra.items() if v and isinstance(v, str | list | dict) and plain_key(k) not in BESIDE]
    if unread:
        extra[UNREAD] = [str(k) for k in unread]
