"""Find control tokens in text: the tokens of a chat template, spelled out in a hint or a trace.

A tokenizer turns such a spelling into the token itself. A hint with a control token could close its turn and open
another. It is refused, because its critic may have read the token in a hostile tool result. In a trace, control tokens
are part of what the student read, so they only cause a note.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Sequence

from hintdistill.core.errors import ControlTokensError
from hintdistill.core.types import Message
from hintdistill.injection.rendering import Renderer

NOTE = "control_tokens_in_text"
_KNOWN: weakref.WeakKeyDictionary[Renderer, dict[int, str]] = weakref.WeakKeyDictionary()
_CHARACTERS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def control_texts(renderer: Renderer) -> dict[int, str]:
    """Return id → spelling of a template's tokens. Some tokenizers also add plain words and runs of blanks as tokens;
    these are left out."""
    if (known := _KNOWN.get(renderer)) is not None:
        return known
    texts = {i: renderer.decode([i]).strip() for i in renderer.special_ids}
    special = set(renderer.tokenizer.all_special_ids)
    _KNOWN[renderer] = {i: text for i, text in texts.items() if text and (i in special or text[:1] in ("<", "[", "|"))}
    return _KNOWN[renderer]


def refuse_in_hint(renderer: Renderer, hint: str) -> None:
    """Raise ControlTokensError if a hint contains control tokens or control characters."""
    controls = control_texts(renderer)
    if characters := sorted({f"U+{ord(c):04X}" for c in _CHARACTERS.findall(hint)}):
        raise ControlTokensError(f"the hint contains the control characters {', '.join(characters)}")
    if written := controls.keys() & set(renderer.encode(hint)):
        words = ", ".join(repr(controls[i]) for i in sorted(written))
        raise ControlTokensError(
            f"the hint contains the control tokens {words}, which could open or close a turn",
            hint="write the hint without them; text in the trace may have manipulated the critic",
        )


def note_of(renderer: Renderer, before: Sequence[Message]) -> tuple[str, ...]:
    """Return a note if messages that the agent did not write spell control tokens; it names their roles."""
    spelled = tuple(control_texts(renderer).values())
    roles = [m.role for m in before if m.role not in ("assistant", "system") and _any(spelled, m.content or "")]
    return (f"{NOTE} ({', '.join(dict.fromkeys(roles))})",) if roles else ()


def _any(words: Sequence[str], text: str) -> bool:
    return any(word in text for word in words)
