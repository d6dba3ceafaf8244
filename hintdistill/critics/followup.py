"""Turn what happened after a step into findings, without a model and at no cost.

| class | what follows the step | |---|---| | `user_correction` | the user's next message says that the step was wrong,
or after a single call, that the action was wrong | | `denied_call` | a person refused the call | | `edited_call` | a
person changed the call before it ran | | `unknown_tool` | the call was refused, and the next step makes the same call
to another tool, which works | | `wrong_argument` | the same, with one argument renamed | | `retried_call` | the same,
with one value slightly changed |

Unclear cases are not findings: a change of mind, an answer to a question, a mistake that users admit as theirs, a
look-up without results, a program that failed when it ran. So these findings are few, and most erring steps get no
finding.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from hintdistill.core.types import Critique, Finding, Message, Trace
from hintdistill.critics import Outcome, one_by_one
from hintdistill.critics.rules import CallResult, call_results, error_text, is_environment_fault
from hintdistill.prompts import PromptLibrary, hint_name

VERSION = 1
"""Version of the rules; it increases when a rule's findings change, so that stored critiques are made again."""
OPENING = 240
"""Number of characters of a user's message that are read, because a correction comes first."""
ANSWER = 600
"""Longest answer of a tool, in characters, that can be a refusal; a longer one is data."""
ALIKE = 0.6
"""Similarity (0 to 1) above which two argument values count as one value and its correction."""

HINTS = {
    "user_correction": "Read the user's request above once more, word by word, and do what it says and nothing else.",
    "denied_call": "Do not act here without the user's consent: say what you would do and why, and ask first.",
    "edited_call": "Check each argument against what the user asked for above before making this call.",
    "retried_call": "Check the name and every argument of this call against the tool's schema: in this form it is refused.",
}
"""The hint of each class, used unless the run's prompts have a template for it."""

_DONE = r"(?:used|called|asked|checked|looked|read|searched|chosen|picked|sent|booked|cancel+ed|run|done|put|taken|kept|waited|stopped)"
_SAID = r"(?:said|asked(?: for| you)?|meant|told you|requested|specified)"
_WRONG = re.compile(
    "|".join(
        (
            # English
            r"\b(?:that|this|it)(?:['’]s| is| was) (?:just |simply |completely |still |clearly )?"
            r"(?:wrong|incorrect|a mistake)\s*(?:[.!,;:—–-]|$)",
            r"\b(?:that|this|it)(?:['’]s| is| was)(?: not|n['’]t) (?:right|correct|true|it)\s*(?:[.!,;:—–-]|$)",
            r"\b(?:that|this|it)(?:['’]s| is| was)(?: not|n['’]t) what i (?:had )?(?:asked|wanted|want|meant|said|requested|need)",
            r"\bnot what i (?:asked|wanted|meant|said|requested)",
            r"^(?:no[,.!]?\s+)?(?:wrong|incorrect)[.!,]",
            r"^no[,.!—–-]*\s+i (?:mean|meant)\b",
            r"\byou(?:['’]ve| have)? (?:misunderstood|misread|ignored (?:my|what i)|got (?:that|this|it) wrong|made a mistake"
            r"|(?:used|called|picked|chose|booked|cancel+ed|edited|changed|deleted|sent) the wrong\b"
            rf"|should(?: have|['’]ve|n['’]t have| not have) {_DONE}"
            r"|were (?:not )?supposed to)",
            rf"\bi (?:only |just )?(?:wanted|{_SAID})\b[^.?!\n]{{1,120}}(?:,| and) not\b",
            r"\bi (?:did not|didn['’]t|never) (?:ask(?:ed)?|tell|told|want(?:ed)?) (?:you |for )",
            r"^(?:please )?(?:undo|revert|roll back) (?:that|this|it|what you|your)\b",
            # German
            r"\bdas (?:ist|war) (?:leider )?(?:falsch|nicht (?:richtig|korrekt))\b|\bdas stimmt (?:so )?nicht\b",
            r"\bdas (?:ist|war) nicht,? (?:das,? )?was ich\b",
            r"\b(?:du hast|sie haben) mich (?:falsch verstanden|missverstanden)\b",
            r"^nein[,.!]?\s+ich meinte\b",
            # French
            r"\bc['’](?:est|était) (?:faux|incorrect|une erreur)\b|\bce n['’](?:est|était) pas (?:correct|juste|ce que j)",
            r"\b(?:vous vous êtes|tu t['’]es) trompée?s?\b|^non[,.!]?\s+je voulais dire\b",
            # Spanish and Portuguese
            r"\b(?:eso|esto) (?:no es (?:correcto|cierto|lo que)|está mal|es incorrecto)\b",
            r"\bte (?:has equivocado|equivocaste)\b|\bse equivocó\b",
            r"^no[,.!]?\s+me refería a\b|\b(?:isso|isto) (?:está errado|não (?:está certo|é o que|foi o que))",
            # Italian
            r"\b(?:questo|quello) (?:è sbagliato|non è (?:corretto|giusto|quello che))|\bhai sbagliato\b",
            # Chinese, Japanese
            r"^(?:不对|不對|错了|錯了)|(?:这|那|這)(?:是错的|是錯的|不对|不對|不是我(?:想|要))|你(?:搞错|弄错|理解错|搞錯|弄錯)了",
            r"^(?:いいえ、)?(?:違います|違う|間違い)|間違って(?:います|いる)|そうではありません",
        )
    ),
    re.IGNORECASE,
)
_OF_AN_ACT = re.compile(
    r"\b(?:undo|revert|roll back|the wrong|ask(?:ed)? (?:you )?(?:to|for)|wanted (?:you )?to|supposed to|should)\b",
    re.IGNORECASE,
)
_OWN_FAULT = re.compile(
    r"\b(?:my (?:mistake|fault|bad|error)|i (?:made a|gave you the|was) (?:mistake|wrong|mistaken)|i misspoke|sorry,? i|i forgot"
    r"|mein fehler|ma faute|mi error|culpa mía|colpa mia|我的错|私の間違い)",
    re.IGNORECASE,
)
_PERSON = r"(?:the )?(?:user|human|operator|reviewer|approver)"
_REFUSED = r"(?:denied|rejected|declined|refused|disapproved|did(?: not|n['’]t) (?:approve|allow|permit)|do(?:es)?(?: not|n['’]t) want)"
_CALL = r"(?:tool (?:call|use)|function call|call|action|command|operation|edit|request|permission|execution)"
_DENIED = re.compile(
    rf"^\W*(?:\w+\W+){{0,6}}?{_PERSON}(?: has| have)? {_REFUSED}\b"
    rf"|\b{_CALL}(?: to \w+)?(?: was| has been| were|:)? {_REFUSED} by {_PERSON}\b|\b(?:denied|rejected|declined) by {_PERSON}\b",
    re.IGNORECASE,
)
_EDITED = re.compile(
    rf"^\W*(?:\w+\W+){{0,6}}?{_PERSON}(?: has)? (?:modified|edited|changed|amended|corrected) (?:the|your|this)"
    rf"(?: proposed| suggested)? (?:{_CALL}|arguments|parameters|changes|input)\b"
    rf"|\b(?:{_CALL}|arguments|parameters|changes)(?: was| were| has been| have been)? (?:modified|edited|changed|amended) by {_PERSON}\b",
    re.IGNORECASE,
)
_BLAMES_CALL = re.compile(
    r"\b(?:argument|parameter|missing|required|invalid|unexpected|unrecognized|unsupported|must (?:be|have|match|start|not)|validation"
    r"|schema|malformed|type ?error|format|(?:unknown|no such|undefined) (?:tool|function|argument|parameter|option|field|column))\b",
    re.IGNORECASE,
)
_NO_TOOL = re.compile(
    r"\b(?:unknown|no such|undefined|invalid|unrecognized) (?:tool|function|action|command)\b"
    r"|\b(?:tool|function) .{0,60}(?:not found|does not exist|is not)",
    re.IGNORECASE,
)
_PROGRAM = re.compile(r"traceback \(most recent call last\)|\bline \d+", re.IGNORECASE)


class FollowupCritic:
    """Read what came after each step; see the module's docstring."""

    name = "followup"

    def __init__(self, library: PromptLibrary) -> None:
        self._hints = {c: None if library.has(hint_name(c)) else text for c, text in HINTS.items()}

    def key(self, trace: Trace) -> str:
        """See `Critic.key`."""
        return hashlib.sha256(f"followup:{VERSION}:{json.dumps(self._hints)}".encode()).hexdigest()

    def critique(self, traces: Iterable[Trace]) -> Iterator[Outcome]:
        """See `Critic.critique`. Never fails."""
        return one_by_one(self.check, traces)

    def check(self, trace: Trace) -> Critique:
        """Return all findings of one trace in step order, at most one for a step; a person's reaction to a call comes
        first."""
        calls = call_results(trace)
        findings: list[Finding] = []
        for step in (k for k in range(len(trace.step_indices)) if k not in trace.given_steps):
            found = next(_at(trace, step, calls), None)
            if found is not None:
                findings.append(
                    found.model_copy(update={"critic": self.name, "hint": self._hints.get(found.error_class)})
                )
        return Critique(
            trace_id=trace.id,
            verdict="findings" if findings else "none",
            findings=tuple(findings),
            critics=(self.name,),
        )


def _at(trace: Trace, step: int, calls: list[CallResult]) -> Iterator[Finding]:
    mine = [c for c in calls if c.step == step]
    for call in mine:
        if (finding := _by_a_person(call)) is not None:
            yield finding
    for call in mine:
        if (finding := _retried(trace, call, calls)) is not None:
            yield finding
    if (finding := _corrected(trace, step)) is not None:
        yield finding


def _corrected(trace: Trace, step: int) -> Finding | None:
    at = trace.step_indices[step]
    after = trace.messages[at + 1 : at + 2]
    asked = (trace.messages[at].content or "").rstrip().endswith(("?", "？"))
    # a no to a question answers it; what comes back from a tool is no user's
    if not after or after[0].role != "user" or asked or trace.messages[at].tool_calls:
        return None
    said = correction(after[0].content or "")
    if said is None:
        return None
    acted = _acts_before(trace, step)
    # after calls, the answer may be wrong or the call may: it is the call where there is one and the user speaks of an act
    if acted and not (len(acted) == 1 and _OF_AN_ACT.search(said) and acted[0] not in trace.given_steps):
        return None
    return Finding(
        step=acted[0] if acted else step,
        error_class="user_correction",
        confidence=0.8,
        facts={"said": said},
        evidence=f"the user's next message: {said}",
    )


def _acts_before(trace: Trace, step: int) -> list[int]:
    """Return the steps with calls between the previous user message and this step."""
    by_message = {at: k for k, at in enumerate(trace.step_indices)}
    out = []
    for at in range(trace.step_indices[step] - 1, -1, -1):
        message = trace.messages[at]
        if message.role == "user":
            break
        if message.tool_calls:
            out.append(by_message[at])
    return out


def correction(text: str) -> str | None:
    """Return the sentence in which a user calls the preceding steps wrong; None unless a sentence clearly does."""
    opening = text.strip()[:OPENING]
    if not opening or _OWN_FAULT.search(opening):
        return None
    for sentence in re.split(r"(?<=[.!?。！？])\s*|\n+", opening):
        # a question asks whether it is wrong
        if not sentence.rstrip().endswith(("?", "？")) and _WRONG.search(sentence.strip()):
            return sentence.strip()
    return None


def _by_a_person(call: CallResult) -> Finding | None:
    text = _answer(call.result)
    if text is None or len(text) > ANSWER:
        return None
    if _EDITED.search(text):
        raw = call.call.arguments_raw
        return _of_call(call, "edited_call", text, raw or call.call.name, in_arguments=bool(raw))
    if _DENIED.search(text):
        return _of_call(call, "denied_call", text, call.call.name, in_arguments=False)
    return None


def _answer(result: str | None) -> str | None:
    """Return the message in a tool's answer: its text, or the message field of a JSON object."""
    if result is None:
        return None
    try:
        value = json.loads(result)
    except (ValueError, RecursionError):
        return result
    if isinstance(value, dict):
        words = [value[k] for k in ("error", "message", "reason", "status", "detail") if isinstance(value.get(k), str)]
        return " ".join(words) or None
    return value if isinstance(value, str) else None


def _retried(trace: Trace, call: CallResult, calls: list[CallResult]) -> Finding | None:
    error = error_text(call.result)
    if error is None or is_environment_fault(error) or _PROGRAM.search(error) or not _BLAMES_CALL.search(error):
        return None
    if not _next_is_own(trace, call.step):
        return None
    for later in (c for c in calls if c.step == call.step + 1):
        if later.result is None or error_text(later.result) is not None:
            continue
        if later.call.name == call.call.name:
            mended = _mended(call.call.arguments, later.call.arguments)
            if mended is not None and mended.wrong in call.call.arguments_raw:
                error_class = "wrong_argument" if mended.right else "retried_call"
                found = _of_call(call, error_class, error, mended.wrong, in_arguments=True)
                names = list(trace.tool_schemas.get(call.call.name, {}).get("properties", {}))
                return _knowing(found, mended, arguments=names)
        elif _NO_TOOL.search(error) and call.call.arguments == later.call.arguments:
            found = _of_call(call, "unknown_tool", error, call.call.name, in_arguments=False)
            return _knowing(found, _Mended(call.call.name, later.call.name), tools=list(trace.tool_schemas))
    return None


def _next_is_own(trace: Trace, step: int) -> bool:
    """Return whether the next step follows without a user message in between."""
    if step + 1 >= len(trace.step_indices):
        return False
    between: tuple[Message, ...] = trace.messages[trace.step_indices[step] + 1 : trace.step_indices[step + 1]]
    return all(m.role == "tool" for m in between)


class _Mended(NamedTuple):
    """Hold the name or value that a second attempt changed, and the new name; None for a value, which the context need
    not contain."""

    wrong: str
    right: str | None = None


def _knowing(finding: Finding, mended: _Mended, **names: list[str]) -> Finding:
    """Return the finding with the facts that its hint template may use."""
    if mended.right is None:
        return finding
    facts = {"wrong": mended.wrong, "right": mended.right} | {k: v for k, v in names.items() if v}
    return finding.model_copy(update={"facts": finding.facts | facts})


def _mended(before: dict[str, Any] | None, after: dict[str, Any] | None) -> _Mended | None:
    """Return the name or value of a call's arguments that the second attempt changed slightly; None if it is a
    different call."""
    if before is None or after is None or before == after:
        return None
    gone, new = [n for n in before if n not in after], [n for n in after if n not in before]
    changed = [n for n in before if n in after and before[n] != after[n]]
    if len(gone) == 1 and not changed and [before[gone[0]]] == [after[n] for n in new]:
        return _Mended(gone[0], new[0])
    if gone or new or len(changed) != 1:
        return None
    old, now = before[changed[0]], after[changed[0]]
    alike = type(old) is not type(now) or difflib.SequenceMatcher(None, str(old), str(now)).ratio() >= ALIKE
    if not alike:
        return None
    return _Mended(old if isinstance(old, str) and old else json.dumps(old, ensure_ascii=False))


def _of_call(call: CallResult, error_class: str, said: str, quote: str, *, in_arguments: bool) -> Finding:
    return Finding(
        step=call.step,
        error_class=error_class,
        quote=quote,
        quote_in="arguments" if in_arguments else "tool_name",
        call=call.index,
        confidence=0.9,
        facts={"tool": call.call.name, "said": said[:300]},
        evidence=f"the answer was: {said[:200]}",
    )
