"""Remember hints that worked, and offer them at inference in similar contexts until the student has been trained.

Before a step only its context is known. A remembered hint is offered under three conditions. The words of the last
message resemble those of the hint's own context, and resemble it more than any context in which a step went well. The
wrongly called tool has the same status in the context as before (listed or not, with the same arguments). Every name in
the hint occurs in the new context, so that no fact of one conversation is revealed in another. If the hint's own text
does not fit, the template of its error class is tried with the tools of the new context.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.agents.conversation import Conversation, conversation
from hintdistill.agents.diagnosis import Diagnosed, Diagnosis
from hintdistill.agents.loaded import LoadedModel, require_engine
from hintdistill.config import GateSection, RescoreSection
from hintdistill.core.errors import ArgumentError, PromptError
from hintdistill.core.storage import JsonlStore, content_key
from hintdistill.core.types import Finding, Message, Trace
from hintdistill.injection.hints import illegal_actions, leaks
from hintdistill.injection.levels import PLAIN, words_of
from hintdistill.prompts import PromptLibrary, hint_name, shipped_library
from hintdistill.rescoring.scorer import Scorer
from hintdistill.traces.formats import native

FILE, FINE = "memory.jsonl", "fine.jsonl"
MOST_FINE = 5000
"""Maximum number of kept contexts of steps that went well; the newest are kept."""


@dataclass(frozen=True)
class Remembered:
    """Describe a hint for the next step."""

    hint: str
    likeness: float
    """Share of their words that the two contexts have in common, 0 to 1."""
    key: str
    """Key of the entry, for `HintMemory.retire`."""
    error_class: str
    tool: str | None


class HintMemory:
    """Keep accepted hints in a folder, one JSON object per line. Several threads may use it, but only one process may
    write."""

    def __init__(self, folder: str | Path, *, min_likeness: float = 0.3, library: PromptLibrary | None = None) -> None:
        """Open a folder, or create it.

        Args:
            min_likeness: share of words that a context must have in common with a hint's context.
            library: templates of error classes; None for the shipped ones.

        Raises:
            ArgumentError: `min_likeness` is not above 0 and at most 1.
            InputError: the file contains a line that is not an entry.
        """
        if not 0 < min_likeness <= 1:
            raise ArgumentError(f"`min_likeness` must be above 0 and at most 1, not {min_likeness!r}")
        self.folder, self.min_likeness = Path(folder), min_likeness
        self.folder.mkdir(parents=True, exist_ok=True)
        self._library = library or shipped_library()
        self._store, self._lock = JsonlStore(self.folder / FILE), threading.Lock()
        self._entries = self._store.by_key()
        self._fine_store = JsonlStore(self.folder / FINE)
        self._fine = {k: frozenset(r["words"]) for k, r in list(self._fine_store.by_key().items())[-MOST_FINE:]}

    def __len__(self) -> int:
        """Return the number of entries that are not retired."""
        return len(self.active())

    def active(self) -> list[dict[str, Any]]:
        """Return the entries that are not retired, oldest first."""
        with self._lock:
            return [e for e in self._entries.values() if e.get("retired") is None]

    def retired(self) -> list[dict[str, Any]]:
        """Return the retired entries, each with the reason under `retired`."""
        with self._lock:
            return [e for e in self._entries.values() if e.get("retired") is not None]

    def add(self, diagnosis: Diagnosis) -> list[str]:
        """Remember the accepted hints of a diagnosis, and return the keys of their entries. For a known hint, the count
        is increased. Steps without findings are remembered as well: a hint is not offered if a context is more similar
        to theirs. So a diagnosis without findings is worth adding, too.

        Raises:
            ArgumentError: `diagnosis` is not a diagnosis.
            OSError: the folder cannot be written to.
        """
        if not isinstance(diagnosis, Diagnosis) or diagnosis.trace is None:
            raise ArgumentError(f"`diagnosis` is a {type(diagnosis).__name__}, not a result of hd.diagnose")
        self._went_well(diagnosis.trace, diagnosis)
        return [self._put(diagnosis.trace, found) for found in diagnosis.findings if found.accepted]

    def lookup(self, messages: Conversation, *, tools: Sequence[Any] | None = None) -> list[Remembered]:
        """Return the hints for the next step, most similar context first; empty if nothing fits.

        Args:
            messages: the conversation up to the step, as in `hd.diagnose`.
            tools: schemas of the tools that the agent has.

        Raises:
            ArgumentError, TraceError: see `hd.diagnose`.
        """
        trace = conversation(messages, tools)
        words, known = _words(trace.messages), _known_text(trace)
        with self._lock:
            fine = max((_likeness(words, w) for w in self._fine.values()), default=0.0)
        out: dict[str, Remembered] = {}
        for entry in self.active():
            likeness = _likeness(words, set(entry["words"]))
            if likeness < self.min_likeness or likeness <= fine or entry["stands"] != _stands(trace, entry["tool"]):
                continue
            # what it warns of may be named, though nothing here does
            told = " ".join((known, entry["tool"] or "", entry["finding"].get("quote") or ""))
            hint = next((h for h in self._wordings(entry, trace) if _fits(h, trace, told)), None)
            if hint is not None and (hint not in out or out[hint].likeness < likeness):
                out[hint] = Remembered(hint, likeness, entry["key"], entry["error_class"], entry["tool"])
        return sorted(out.values(), key=lambda r: -r.likeness)

    def review(self, engine: LoadedModel, min_probability: float | None = None) -> list[str]:
        """Retire the hints that this student no longer needs, because it hardly makes the error in their own context
        any more.

        Args:
            engine: engine of the current student.
            min_probability: probability of the decision token without the hint, below which a hint is retired; None for
                `rescore.gate.min_student_probability`.

        Returns:
            The keys of the newly retired entries.

        Raises:
            TemplateError, SpliceError, ContextLengthError: this student cannot read an entry's step.
        """
        least = GateSection().min_student_probability if min_probability is None else min_probability
        out = []
        for entry in self.active():
            probability = self._probability(require_engine(engine), entry)
            if probability < least:
                self.retire(entry["key"], f"the student gives the error a probability of {probability:.3g}")
                out.append(entry["key"])
        return out

    def retire(self, key: str, why: str) -> None:
        """Stop offering a hint. Raises ArgumentError if there is no such entry."""
        with self._lock:
            if key not in self._entries:
                raise ArgumentError(f"there is no entry {key!r}")
            self._write({**self._entries[key], "retired": why})

    def export(self, folder: str | Path) -> tuple[Path, Path]:
        """Write the entries as traces and findings: `traces.path` and `critic.recorded.path` of a run. Raises OSError."""
        out = Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        traces, findings = out / "traces.jsonl", out / "findings.jsonl"
        written: dict[str, Trace] = {}
        rows = []
        for entry in self.active():
            trace = _trace(entry)
            written.setdefault(trace.id, trace)
            finding = Finding.model_validate(entry["finding"]).model_copy(update={"hint": entry["hints"][0]})
            rows.append(
                {"trace": trace.id, **finding.model_dump(mode="json", exclude_defaults=True, exclude={"critic"})}
            )
        native.write(traces, written.values())
        findings.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        return traces, findings

    def _went_well(self, trace: Trace, diagnosis: Diagnosis) -> None:
        """Remember the contexts of examined steps without findings."""
        wrong = {f.step for f in diagnosis.findings}
        asked = trace.own_steps if diagnosis.step is None else (diagnosis.step,)
        with self._lock:
            rows = []
            for step in asked:
                words = _words(trace.before(step))
                key = content_key("fine", sorted(words))
                if step not in wrong and diagnosis.verdict != "abstain" and key not in self._fine:
                    self._fine[key] = frozenset(words)
                    rows.append({"key": key, "words": sorted(words)})
            self._fine_store.extend(rows)
            while len(self._fine) > MOST_FINE:
                del self._fine[next(iter(self._fine))]

    def _put(self, trace: Trace, found: Diagnosed) -> str:
        finding = found.finding
        calls = trace.step(finding.step).tool_calls
        tool = calls[min(finding.call or 0, len(calls) - 1)].name if calls else None
        words = sorted(_words(trace.before(finding.step)))
        assert found.best is not None and found.best.target.decision is not None
        key = content_key("memory", finding.error_class, tool, words, found.hint)
        with self._lock:
            known = self._entries.get(key)
            if known is not None:
                self._write({**known, "seen": known["seen"] + 1, "retired": None})
                return key
            upto = trace.step_indices[finding.step] + 1
            named = f"memory-{key}"
            kept = Trace(id=named, messages=trace.messages[:upto], tools=trace.tools, tool_effects=trace.tool_effects)
            self._write(
                {
                    "key": key,
                    "error_class": finding.error_class,
                    "tool": tool,
                    "stands": _stands(trace, tool),
                    "words": words,
                    "hints": [h.hint for h in found.hints if h.target.accepted or h is found.best],
                    "odds": found.odds,
                    "decision": found.best.target.decision.position,
                    "finding": finding.model_dump(mode="json", exclude_defaults=True),
                    "trace": json.loads(native.dump(kept)),
                    "seen": 1,
                    "retired": None,
                }
            )
        return key

    def _write(self, entry: dict[str, Any]) -> None:
        self._store.append(entry)
        self._entries[entry["key"]] = entry

    def _wordings(self, entry: dict[str, Any], trace: Trace) -> list[str]:
        """Return the entry's hints, and its class's template filled in with the tools of this context."""
        texts = list(entry["hints"])
        name = hint_name(entry["error_class"])
        if self._library.has(name):
            facts = {**entry["finding"].get("facts", {}), "tools": list(trace.tool_schemas), "variant": 0, "quote": ""}
            # a template may need a fact that no context has before its step
            with contextlib.suppress(PromptError):
                texts.append(self._library.render(name, {"tool": entry["tool"] or "", "arguments": [], **facts}))
        return texts

    def _probability(self, engine: LoadedModel, entry: dict[str, Any]) -> float:
        trace, finding = _trace(entry), Finding.model_validate(entry["finding"])
        with engine.lock:
            rendered = engine.renderer.step(trace, finding.step)
        scorer = Scorer(engine.engine, engine.renderer, RescoreSection(top_k=1))
        target = scorer.unhinted(entry["key"], trace.id, finding.step, rendered)
        at = min(entry["decision"], len(target.step_ids) - 1)
        return math.exp(float(target.plain_sampled[at]))


def _trace(entry: dict[str, Any]) -> Trace:
    return Trace.model_validate({k: v for k, v in entry["trace"].items() if k != native.MARK})


def _words(before: Sequence[Message]) -> set[str]:
    """Return the content words of the last message, without plain words of instructions and without numbers."""
    last = before[-1] if before else None
    said = words_of(last.content or "") if last is not None else []
    about = {w for w in said if w not in PLAIN and not any(c.isdigit() for c in w)}
    return about | ({f"<{last.role}>"} if last is not None else set())


def _likeness(a: Set[str], b: Set[str]) -> float:
    return len(a & b) / len(a | b) if a | b else 0.0


def _stands(trace: Trace, tool: str | None) -> list[str] | None:
    """Return the arguments of a tool in the schemas; None if the tool is not listed."""
    if tool is None or tool not in trace.tool_schemas:
        return None
    return sorted(trace.tool_schemas[tool].get("properties") or {})


def _known_text(trace: Trace) -> str:
    return "\n".join(m.content or "" for m in trace.messages)


def _fits(hint: str, trace: Trace, known: str) -> bool:
    """Return whether the hint mentions nothing unknown in this context, and no unlisted tool."""
    return not leaks(hint, trace, known) and not illegal_actions(hint, trace)
