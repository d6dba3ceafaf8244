"""Turn the edits that an LLM critic wrote for twins into replacements, and enforce their limits.

The critic has read the trace, which may contain hostile text, and its edit decides in which context a step is held. So
a critic's edit may only replace existing words. It must not add a message, a call or a tool, remove a message, write
markup of calls or turns, or give a tool the name of one that changes something (docs/security.md).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from hintdistill.core.effects import effect_of
from hintdistill.core.errors import TwinError
from hintdistill.core.types import Trace, TwinEdit
from hintdistill.critics.answers import MOST_REPLACEMENTS, LLMEdit
from hintdistill.critics.record import harmless
from hintdistill.critics.rules import MARKUP
from hintdistill.injection.twins import located

_CALL = re.compile(r"\"(?:name|arguments|tool_calls|function)\"\s*:", re.IGNORECASE)


def edit_of(trace: Trace, step: int, parts: Sequence[LLMEdit], critic: str) -> TwinEdit:
    """Return the edit that a critic wrote as quotes and replacements.

    Raises:
        TwinError: a quote does not occur exactly once in the step's context (`count`), or there are too many
            replacements (`too_many`).
    """
    if len(parts) > MOST_REPLACEMENTS:
        raise TwinError(
            "too_many",
            f"{len(parts)} replacements are too many for a small edit; at most {MOST_REPLACEMENTS} are allowed",
        )
    replacements = tuple(located(trace, step, part.quote, part.replacement) for part in parts)
    return TwinEdit(kind="critic", replacements=replacements, maker=critic)


def refuse_critics_edit(trace: Trace, edited: Trace, edit: TwinEdit) -> None:
    """Raise TwinError if a critic's edit exceeds its limits; see the module's docstring.

    Args:
        edited: the trace after the edit.
    """
    if edit.removed or any(not r.old for r in edit.replacements):
        raise TwinError(
            "critic_adds", "a critic's edit may only replace words; it must not add or remove messages or tools"
        )
    for r in edit.replacements:
        if harmless(r.new) != r.new or any(ord(c) < 32 and c not in "\n\t" for c in r.new):
            raise TwinError("control_tokens", f"the edit writes control characters or turn markers: {r.new[:60]!r}")
        if MARKUP.search(r.new) or (r.where == "message" and _CALL.search(r.new) and not _CALL.search(r.old)):
            raise TwinError("critic_adds", f"the edit writes text that looks like a call: {r.new[:60]!r}")
    if len(edited.tools) != len(trace.tools):
        raise TwinError("critic_adds", "the edit adds or removes a tool")
    for before, after in zip(trace.tools, edited.tools, strict=True):
        name = (after.get("function") or after)["name"]
        if (
            before != after
            and name not in trace.tool_schemas
            and effect_of(name, (before, after), trace.tool_effects) != "reads"
        ):
            raise TwinError("state_changing", f"the edit lists {name}, a tool that may change something")
