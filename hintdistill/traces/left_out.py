"""The reasons why readers leave out parts of a record, by key path.

The paths are exact: `observations[].metadata.scope.name` means that place and no other. `[]` means any entry of a list;
keys inside JSON strings are written as if the string were the object.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

REPEATING = frozenset(
    {
        "adk",
        "atif",
        "claude_code",
        "codex",
        "conversation",
        "eval_protocol",
        "inspect",
        "langfuse",
        "langsmith",
        "mlflow",
        "nemo_gym",
        "openhands",
        "openhands_events",
        "pydantic_ai",
        "qwen_code",
        "rllm",
        "spans",
        "swe_agent",
        "tau2",
        "toolbench",
    }
)
"""Formats whose records repeat the same string: for them one occurrence is searched for; for other formats, as many as
the record has."""


@cache
def left_out(format_name: str) -> dict[str, str]:
    """Return the key paths that a reader leaves out, each with its reason."""
    data = json.loads(Path(__file__).with_name("left_out.json").read_text(encoding="utf-8"))
    return {path: reason for reason, paths in data.get(format_name, {}).items() for path in paths}
