"""Build twins: an erring step, token for token, in the changed context in which it is right.

An edit is a set of replacements in messages and schemas, and of removed messages. It is applied to the trace, and the
context is rendered anew; tokens are never patched. The edit is rendered place by place, so that each place is one range
between a common beginning and a common end. A template that changes more than that place is refused
(`rerender_differs`). If the original context was recorded, the ids outside the places are kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from hintdistill.core.effects import effect_of
from hintdistill.core.errors import SpliceError, TemplateError, TwinError
from hintdistill.core.types import Finding, Replacement, Trace, Twin, TwinEdit
from hintdistill.injection.control_tokens import control_texts
from hintdistill.injection.recorded import changed, onto_recorded, require_kept, require_text
from hintdistill.injection.rendering import Renderer
from hintdistill.injection.splice import StepSite

SLACK = 64
"""Number of characters by which the printed form of a changed schema may exceed twice its JSON."""


@dataclass(frozen=True)
class Stage:
    """Hold the trace, up to and including the step, after some of an edit's places were changed."""

    trace: Trace
    step: int
    """Number of the step in it; lower than in the original if earlier steps were removed."""
    part: str
    """Description of the part that the last place belongs to. One part covers the places of one replacement, or of
    removed messages."""
    may_hide: bool
    """Whether the template may omit it: a schema's list of required arguments, which follows from the rest."""
    removed: int
    """Maximum number of characters that the last place may remove from the render."""
    added: int
    """Maximum number of characters that it may add."""


def apply_edit(trace: Trace, step: int, edit: TwinEdit) -> tuple[Trace, int]:
    """Return the trace up to and including the step under an edit, and the step's number in it.

    Its messages have no recorded contexts and log-probabilities, because these belong to the original context.

    Raises:
        TwinError: an old text does not occur where and as often as stated (`count`), the edit is in a wrong place
            (`beyond_step`, `edits_a_step`), changes nothing (`empty`), or makes a schema invalid (`not_a_schema`).
    """
    last = list(stages(trace, step, edit))[-1]
    return last.trace, last.step


def stages(trace: Trace, step: int, edit: TwinEdit) -> Iterator[Stage]:
    """Yield the trace under growing parts of an edit, one place at a time; the last one is the whole edit. Raises the
    errors of `apply_edit`."""
    draft = _Draft(trace, step)
    todo = [lambda r=r: draft.replace(r) for r in edit.replacements if r.old]
    # from the back, so that every number is one of the original trace
    additions = sorted((r for r in edit.replacements if not r.old), key=lambda r: r.index, reverse=True)
    todo += [lambda r=r: draft.add(r) for r in additions]
    todo += [lambda run=run: draft.remove(run) for run in _runs(edit.removed)]
    if not todo:
        raise TwinError("empty", "the edit changes nothing")
    for change in todo:
        yield from change()


class _Draft:
    """Hold a trace while an edit is applied to it."""

    def __init__(self, trace: Trace, step: int) -> None:
        self.trace, self.step = trace, step
        self.at = trace.step_indices[step]
        self.contents = [m.content for m in trace.messages[: self.at + 1]]
        self.tools: list[dict[str, Any] | None] = list(trace.tools)
        self.added: list[tuple[int, dict[str, Any]]] = []
        self.removed: set[int] = set()
        self.replaced = 0

    def made(self, part: str, removed: int, added: int, may_hide: bool = False) -> Stage:
        """Return the trace in its current state."""
        messages = []
        for i, message in enumerate(self.trace.messages[: self.at + 1]):
            if i in self.removed:
                continue
            changed = self.contents[i] != message.content
            update: dict[str, Any] = {"content": self.contents[i]} if changed else {}
            if message.role == "assistant":
                update |= {"prompt_token_ids": None, "logprobs": None}
            messages.append(message.model_copy(update=update) if update else message)
        tools: list[dict[str, Any]] = []
        for i in range(len(self.tools) + 1):
            tools += [schema for at, schema in reversed(self.added) if at == i]
            if i < len(self.tools) and (kept := self.tools[i]) is not None:
                tools.append(kept)
        t = self.trace
        # made anew: a copy would keep the step numbers it has worked out
        trace = Trace(
            id=t.id,
            messages=tuple(messages),
            tools=tuple(tools),
            task_id=t.task_id,
            model=t.model,
            source=t.source,
            template=t.template,
            extra=t.extra,
        )
        gone = sum(i in self.removed for i in self.trace.step_indices[: self.step])
        return Stage(trace, self.step - gone, part, may_hide, removed, added)

    def replace(self, r: Replacement) -> Iterator[Stage]:
        """Change one place after another."""
        text = self._text(r)
        parts = text.split(r.old)
        if len(parts) - 1 != r.count:
            where = f"{r.where} {r.index}"
            raise TwinError("count", f"{r.old[:60]!r} occurs {len(parts) - 1} times in {where}, not {r.count}")
        if r.new == r.old:
            raise TwinError("empty", f"{r.old[:60]!r} is replaced by itself")
        self.replaced += 1
        part = f"replacement {self.replaced}, of {r.old[:40]!r} in {r.where} {r.index}"
        listed = r.old.startswith('"required": ')
        for n in range(1, r.count + 1):
            now = r.new.join(parts[: n + 1]) + "".join(r.old + p for p in parts[n + 1 :])
            if r.where == "message":
                self.contents[r.index] = now
                yield self.made(part, len(json.dumps(r.old)), len(json.dumps(r.new)))
                continue
            schema = None if not now else _schema(now, last=n == r.count)
            if schema is not None or not now:
                self.tools[r.index] = schema
                yield self.made(part, 2 * len(r.old) * n + SLACK, 2 * len(r.new) * n + SLACK, listed)

    def add(self, r: Replacement) -> Iterator[Stage]:
        """Append to a message, or add a schema."""
        if r.count != 1 or not r.new:
            raise TwinError("empty", "an addition must have a text and the count 1")
        if r.where == "message":
            self.contents[r.index] = self._text(r) + r.new
            yield self.made(f"the addition to message {r.index}", 2, len(json.dumps(r.new)))
            return
        if r.index > len(self.tools):
            raise TwinError("count", f"there are {len(self.tools)} tools; none can be added at {r.index}")
        schema = _schema(r.new, last=True)
        assert schema is not None
        name = (schema.get("function") or schema).get("name")
        if name in self.trace.tool_schemas:
            raise TwinError("not_a_schema", f"the tool {name} is already listed")
        self.added.append((r.index, schema))
        yield self.made(f"the tool added at {r.index}", SLACK, 4 * len(r.new) + SLACK)

    def remove(self, run: tuple[int, int]) -> Iterator[Stage]:
        """Remove a run of messages, together with the results of every call among them."""
        first, end = run
        if end > self.at:
            raise TwinError("beyond_step", f"message {end - 1} does not come before the step")
        following = self.trace.messages[end : self.at + 1]
        if any(self.trace.messages[i].tool_calls for i in range(first, end)) and following[0].role == "tool":
            raise TwinError("edits_a_step", f"message {end} answers a call that is removed")
        if self.trace.messages[first].role == "tool":
            raise TwinError("edits_a_step", f"message {first} answers a call that stays")
        self.removed |= set(range(first, end))
        yield self.made(
            f"the messages from {first}", len(json.dumps([str(m) for m in self.trace.messages[first:end]])) * 2, 0
        )

    def _text(self, r: Replacement) -> str:
        if r.where == "tools":
            if r.index >= len(self.tools) or (schema := self.tools[r.index]) is None:
                raise TwinError("count", f"there is no tool {r.index}")
            return json.dumps(schema, ensure_ascii=False)
        if r.index >= self.at:
            raise TwinError("beyond_step", f"message {r.index} does not come before the step")
        if self.trace.messages[r.index].role == "assistant":
            raise TwinError("edits_a_step", f"message {r.index} is an earlier step, whose tokens must not change")
        return self.contents[r.index] or ""


def _schema(text: str, last: bool) -> dict[str, Any] | None:
    """Return a tool schema from its text; None if the text is not valid yet because more changes follow. Raises
    TwinError."""
    try:
        value = json.loads(text)
    except ValueError as error:
        if last:
            raise TwinError("not_a_schema", f"the edited schema is not JSON: {error}") from None
        return None
    function = value.get("function", value) if isinstance(value, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise TwinError("not_a_schema", "the edited schema is not an object with a name")
    return value


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return numbers as half-open runs, the last run first."""
    runs: list[tuple[int, int]] = []
    for n in sorted(set(numbers)):
        if runs and runs[-1][1] == n:
            runs[-1] = (runs[-1][0], n + 1)
        else:
            runs.append((n, n + 1))
    return runs[::-1]


def located(trace: Trace, step: int, old: str, new: str) -> Replacement:
    """Return the replacement of words that occur exactly once in the step's context: in messages of others and tool
    schemas.

    Raises:
        TwinError: they do not occur, or occur more than once (`count`).
    """
    places: list[tuple[Literal["message", "tools"], int]] = []
    if old:
        for i, message in enumerate(trace.before(step)):
            if message.role != "assistant":
                places += [("message", i)] * (message.content or "").count(old)
        for i, tool in enumerate(trace.tools):
            places += [("tools", i)] * json.dumps(tool, ensure_ascii=False).count(old)
    if len(places) != 1:
        raise TwinError("count", f"{old[:60]!r} occurs {len(places)} times above step {step}, not once")
    return Replacement(where=places[0][0], index=places[0][1], old=old, new=new)


class TwinBuilder:
    """Render twins with one tokenizer and template."""

    def __init__(self, renderer: Renderer) -> None:
        self.renderer = renderer
        self._last: StepSite | None = None

    def site(self, trace: Trace, step: int) -> StepSite:
        """Return the original step. It is kept for the next edit of the same step. Raises TemplateError or
        SpliceError."""
        if self._last is None or self._last.trace is not trace or self._last.step != step:
            self._last = StepSite(trace, step, self.renderer)
        return self._last

    def build(self, trace: Trace, finding: Finding, edit: TwinEdit, span: tuple[int, int]) -> Twin:
        """Return the twin of a finding's step under an edit.

        Args:
            span: quoted tokens of the step, half-open.

        Raises:
            TwinError: see `apply_edit`; also if the template does not print a changed part (`not_shown`) or changes
                more than the edit's places (`rerender_differs`), the recorded context differs from its render there
                (`recorded_differs`), or the edit writes a control token (`control_tokens`).
            TemplateError: the original step cannot be rendered.
            SpliceError: the same, or an id outside the edit differs from the original; every twin is checked.
        """
        self._refuse_control_tokens(edit)
        site = self.site(trace, finding.step)
        original = tuple(self.renderer.encode(site.opening.text))
        made, origin = self._rendered(site, original, edit)
        recorded = site.rendered.context_ids
        context_ids = onto_recorded(original, recorded, made, origin, loose=bool(edit.removed))
        try:
            require_kept(original, recorded, made, origin, context_ids)
            if self.renderer.decode(original) == self.renderer.decode(recorded):
                require_text(self.renderer.decode(made), self.renderer.decode(context_ids))
        except SpliceError as error:
            raise SpliceError(f"trace {trace.id}, step {finding.step}: {error.message}") from None
        return Twin(
            trace_id=trace.id,
            finding=finding,
            edit=edit,
            context_ids=context_ids,
            step_ids=site.rendered.step_ids,
            span=span,
            action_start=site.rendered.action_start,
            fidelity=site.rendered.fidelity,
            notes=site.rendered.notes,
        )

    def _refuse_control_tokens(self, edit: TwinEdit) -> None:
        for r in edit.replacements:
            written = control_texts(self.renderer).keys() & set(self.renderer.encode(r.new))
            if written:
                words = self.renderer.decode(sorted(written))
                raise TwinError("control_tokens", f"the edit writes the control tokens {words!r}")

    def _rendered(
        self, site: StepSite, original: tuple[int, ...], edit: TwinEdit
    ) -> tuple[tuple[int, ...], list[int | None]]:
        """Return the ids of the edited context as the template prints it, and the position of each in the original
        render."""
        ids, text = original, site.opening.text
        origin: list[int | None] = list(range(len(ids)))
        shown: dict[str, bool] = {}
        for stage in stages(site.trace, site.step, edit):
            try:
                rendered = self.renderer.step(stage.trace, stage.step)
            except (TemplateError, SpliceError) as error:
                raise TwinError("rerender_differs", f"the edited trace cannot be rendered: {error.message}") from error
            if rendered.step_ids != site.rendered.step_ids:
                raise TwinError("rerender_differs", "the step itself is printed differently in the edited context")
            start, end, new_end = changed(text, rendered.opening.text)
            if end - start > stage.removed or new_end - start > stage.added:
                raise TwinError("rerender_differs", f"the template changes more than {stage.part} in the render")
            seen = stage.may_hide or (end, new_end) != (start, start)
            shown[stage.part] = shown.get(stage.part, False) or seen
            text, now = rendered.opening.text, tuple(self.renderer.encode(rendered.opening.text))
            start, end, new_end = changed(ids, now)
            origin = origin[:start] + [None] * (new_end - start) + origin[end:]
            ids = now
        hidden = [part for part, seen in shown.items() if not seen]
        if hidden or ids == original:
            raise TwinError("not_shown", f"the template does not print {', '.join(hidden) or 'the edit'}")
        return ids, origin


def state_changing_calls(original: Trace, twin: Trace, step: int) -> list[str]:
    """Return the tools called by the step that change something, or may; `step` is its number in the twin.

    A tool that took another one's name, or is a copy of another one, has the effects of both.
    """
    found = []
    for call in twin.step(step).tool_calls:
        schemas = []
        for i, schema in enumerate(twin.tools):
            if _name(schema) == call.name:
                schemas.append(schema)
                schemas += original.tools[i : i + 1] if len(twin.tools) == len(original.tools) else ()
                schemas += [other for other in original.tools if _but_for_its_name(other) == _but_for_its_name(schema)]
        if effect_of(call.name, schemas, original.tool_effects) != "reads":
            found.append(call.name)
    return list(dict.fromkeys(found))


def _name(schema: dict[str, Any]) -> Any:
    return (schema.get("function") or schema).get("name")


def _but_for_its_name(schema: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in (schema.get("function") or schema).items() if k != "name"}
