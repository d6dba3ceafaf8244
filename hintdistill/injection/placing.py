"""Find where the template's own render puts a hint, as an insertion into token ids.

The block is encoded in place: its ids are the difference between the renders with and without the hint. The hint
encoded alone could have other ids, because some tokenizers add a space at the beginning of a text (SentencePiece) or
merge across the hint's edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from hintdistill.core.errors import SpliceError, TemplateError
from hintdistill.core.types import HintRole, Message
from hintdistill.injection.opening import Opening, common, first_difference
from hintdistill.injection.rendering import SENTINEL, Renderer

BOUNDARY_SHIFTED = "boundary_shifted"
"""Note: the hint's place is inside a token, so the hint moved to the next boundary, and its ids differ from those of
the template's render."""

MINIMAL_TALK = "minimal_talk"
"""Note: the template refuses a message of the hint's role in this place, so the block comes from a minimal
conversation."""
_ABOVE = (Message(role="user", content="hd question"), Message(role="assistant", content="hd answer"))


@dataclass(frozen=True)
class Placed:
    """Describe an insertion into a context's ids."""

    insert_at: int
    block_ids: tuple[int, ...]
    shifted: bool
    """Whether the place is inside a token, so that the insertion moved to the next boundary."""
    own: tuple[int, ...] = ()
    """Ids of the template's own render with the hint, from the first differing one to the end; empty if shifted."""


class Context:
    """Hold a context as text and as ids (recorded ids if there are any), and insert hints into it."""

    def __init__(self, renderer: Renderer, text: str, recorded: Sequence[int]) -> None:
        self.renderer, self.text, self.recorded = renderer, text, tuple(recorded)

    @cached_property
    def _encoded(self) -> tuple[list[int], list[int]]:
        return self.renderer.encode_with_starts(self.text)

    @cached_property
    def _index(self) -> dict[int, int]:
        """The token that begins at a character, the first one of several; the text's end is a place, too."""
        ids, starts = self._encoded
        return {start: i for i, start in reversed(list(enumerate(starts)))} | {len(self.text): len(ids)}

    def put(self, hinted: str, words: str, from_end: bool, at_char: int | None = None) -> Placed:
        """Return the insertion by which a render with a hint differs from this context. There must be exactly one, and
        it must contain `words`.

        Repeated text can make the place ambiguous by a few characters. The chosen place is the one at which the hinted
        ids are the plain ids with one insertion, or else the first one at the start of a token.

        Args:
            from_end: whether the recorded context must agree with the render from the place to the end, instead of up
                to the place. If several places fit, the last one is chosen, otherwise the first one.
            at_char: the only acceptable place, if it is known.

        Raises:
            TemplateError: the render with the hint is not the render without it plus one insertion.
            SpliceError: the recorded context differs from the template's render there.
        """
        extra = len(hinted) - len(self.text)
        alike = common(self.text, hinted)
        places = [
            at
            for at in range(max(0, alike - max(extra, 0)), alike + 1)
            if (at_char is None or at == at_char)
            and words in hinted[at : at + extra]
            and hinted[at + extra :] == self.text[at:]
        ]
        places = places[::-1] if from_end else places
        if extra <= 0 or not places:
            raise TemplateError(
                "the template changes more than the place of the hint: " + first_difference(self.text, hinted)
            )
        ids, starts = self._encoded
        whole = self.renderer.encode(hinted)
        index = self._index
        added = len(whole) - len(ids)
        for at in (index[char] for char in places if char in index):
            if added > 0 and whole[:at] == ids[:at] and whole[at + added :] == ids[at:]:
                block = tuple(whole[at : at + added])
                return Placed(self._in_recorded(at, from_end), block, False, tuple(whole[at:]))
        char = next((at for at in places if at in index), places[-1])
        at = index.get(char, int(np.searchsorted(starts, char, side="left")))
        edge = starts[at] if at < len(starts) else len(self.text)
        block = tuple(self.renderer.encode_after(self.text[:edge], hinted[char : char + extra]))
        return Placed(self._in_recorded(at, from_end), block, True)

    def _in_recorded(self, at: int, from_end: bool) -> int:
        ids, _ = self._encoded
        rest = len(ids) - at
        if from_end:
            if rest and self.recorded[-rest:] != tuple(ids[at:]):
                raise SpliceError(
                    "the recorded context does not end as this template prints it, so the hint has no exact place",
                    hint="traces.token_ids=ignore renders the trace again",
                )
            return len(self.recorded) - rest
        if self.recorded[:at] != tuple(ids[:at]):
            raise SpliceError(
                "the recorded context does not begin as this template prints it, so the hint has no exact place",
                hint="traces.token_ids=ignore renders the trace again",
            )
        return at


def minimal_talk(renderer: Renderer, hint: Message, opening: Opening, refused: TemplateError) -> tuple[Opening, str]:
    """Return a minimal conversation up to the hint at its end, and the whole conversation with a generation prompt.

    A user's hint follows a question and its answer, so that there is a message boundary and the roles alternate. A
    system prompt is the first and only message, because some templates accept one only there.

    Args:
        opening: the context of the hint's step; its generation prompt must equal that of the minimal conversation.
        refused: the template's error about the hint in its place, raised if the minimal conversation is refused as
            well.
    """
    try:
        if hint.role == "system":
            own = renderer.render((hint,), (), header=True)
            first = str(renderer.tokenizer.bos_token or "")
            above = Opening(
                (), (), first if first and own.startswith(first) else "", opening.header, "", opening.prompt
            )
        else:
            own = renderer.render((*_ABOVE, hint), (), header=True)
            above = replace(renderer.opening(_ABOVE, ()), prompt=opening.prompt)
    except TemplateError:
        raise refused from None
    return above, own


def message_block(renderer: Renderer, opening: Opening, own: str, words: str, role: HintRole) -> tuple[str, str, bool]:
    """Return the text that a separate hint message adds to a context, from the template's render with that message
    last.

    Args:
        own: the render of the messages above the step and the hint, with a generation prompt.

    Returns:
        The block, the end of `own` that begins with it, and whether the template rewrites the messages above the hint.

    Raises:
        TemplateError: the template drops the hint, prints another assistant header below it, or the end of the message
            above it cannot be determined.
    """
    if words not in own:
        raise TemplateError(f"the template drops a {role} message in this place")
    rewrites = not own.startswith(opening.bare)
    if rewrites:
        _require_below_last(renderer, opening, words, role)
    start = _end_of_last(renderer, opening, own, words) if rewrites else len(opening.bare)
    rest = own[start:]
    if words not in rest:
        raise TemplateError(f"the template drops a {role} message in this place")
    if not rest.endswith(opening.prompt):
        raise TemplateError(
            f"the template's generation prompt after a {role} message differs from the one here: "
            + first_difference(opening.prompt, rest[-len(opening.prompt) :])
        )
    return rest[: len(rest) - len(opening.prompt)], rest, rewrites


def _require_below_last(renderer: Renderer, opening: Opening, words: str, role: HintRole) -> None:
    """Refuse a template that prints a message of this role above the preceding message. Raises TemplateError.

    The test gives the message above the hint a unique text, so that it cannot be confused with other text.
    """
    if not opening.before or not opening.before[-1].content:
        return
    marked = opening.before[-1].model_copy(update={"content": SENTINEL})
    talk = (*opening.before[:-1], marked, Message(role=role, content=words))
    text = renderer.render(talk, opening.tools, header=True)
    if text.rfind(words) < text.rfind(SENTINEL):
        raise TemplateError(f"the template prints a {role} message above the preceding message")


def _end_of_last(renderer: Renderer, opening: Opening, own: str, words: str) -> int:
    """Return the end of the last message above the hint, in a render that prints earlier messages differently.

    It is the position up to which the render has the longest common ending with the context, ignoring white space. If
    the render closes the last message with fewer tokens than the context does, the position is after those.

    Raises:
        TemplateError: the render prints the last message differently from the context.
    """
    limit = own.rfind(words)
    plain = "".join(opening.bare.split())
    best, length = limit, -1
    for end in range(limit, max(-1, limit - 400), -1):
        # both end alike, white space too, so that the closing of the message is whole
        if _tail_space(own[:end]) != _tail_space(opening.bare):
            continue
        shared = _shared_end(own, end, plain)
        if shared > length:
            best, length = end, shared
    last: Message | None = opening.before[-1] if opening.before else None
    content = (last.content or "").strip() if last is not None else ""
    wanted = "".join(content.split())[-20:]
    if length > 0 and (not wanted or wanted not in plain or wanted in plain[len(plain) - length :]):
        return best
    here, there = opening.bare.rfind(content), own.rfind(content, 0, limit)
    if content and here >= 0 and there >= 0:
        closed = renderer.encode(opening.bare[here + len(content) :])
        between, starts = renderer.encode_with_starts(own[there + len(content) : limit])
        same = next((i for i, (a, b) in enumerate(zip(between, closed, strict=False)) if a != b), None)
        if same:
            return there + len(content) + starts[same]
    raise TemplateError("the template prints the message above the hint differently when a hint follows it")


def _tail_space(text: str) -> str:
    return text[len(text.rstrip()) :]


def _shared_end(own: str, end: int, plain: str, most: int = 2000) -> int:
    """Return the length of the common ending of `own[:end]` and `plain`, in characters without white space, up to
    `most`."""
    at, shared = end - 1, 0
    while at >= 0 and shared < min(most, len(plain)):
        if own[at].isspace():
            at -= 1
            continue
        if own[at] != plain[-1 - shared]:
            break
        at, shared = at - 1, shared + 1
    return shared
