"""Why readers leave out what they leave out, key path by key path.

The paths are exact: `observations[].metadata.scope.name` stands for that place and no other. `[]` is any entry of a list; keys
inside JSON strings are written as if the string were the object.
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
"""Formats whose records say the same several times; of their strings one is looked for, of other formats' as many as there are."""


@cache
def left_out(format_name: str) -> dict[str, str]:
    """Return the key paths that a reader leaves out, each with its reason."""
    data = json.loads(Path(__file__).with_name("left_out.json").read_text(encoding="utf-8"))
    return {path: reason for reason, paths in data.get(format_name, {}).items() for path in paths}
