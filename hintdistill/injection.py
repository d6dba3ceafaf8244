"""Trace + Finding → Injection. Pure: token ids in, token ids out.

The context is never re-rendered with the hint in it, because several templates would then rewrite other messages and
the "effect" would be that. The hint's block is the template's own render of the hint message where that render is a
pure insertion; otherwise it is taken from a minimal conversation in the same template and spliced at the message
boundary (`spliced_block`). Where the template refuses a placement, the next one of the configured order is tried, and
the record says which was refused and why; when none is left, the error names the template's words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from hintdistill.config import InjectSection
from hintdistill.errors import QuoteNotFoundError, SpliceError, TemplateError
from hintdistill.hints import guards, hint_text, placebo_texts
from hintdistill.legal import legal_continuations
from hintdistill.prompts import PromptLibrary
from hintdistill.quotes import locate, tokens_in
from hintdistill.rendering import RenderedStep, Renderer
from hintdistill.types import Finding, HintRole, Injection, Message, PlaceboBlock, Placement, Trace

QuoteFound = Literal["exact", "normalised", "fuzzy", "whole_step"]


@dataclass(frozen=True)
class Splice:
    """Where a hint goes in a context, and its tokens."""

    insert_at: int
    block_ids: tuple[int, ...]
    placement: Placement
    role: HintRole | None
    notes: tuple[str, ...] = ()


class StepSite:
    """One step of one trace, rendered once, into which any number of hints can be spliced."""

    def __init__(self, trace: Trace, step: int, renderer: Renderer) -> None:
        """Render the step. Raises TemplateError or SpliceError; see `Renderer.step`."""
        self.trace, self.step, self.renderer = trace, step, renderer
        self.rendered: RenderedStep = renderer.step(trace, step)
        self.opening = self.rendered.opening
        self.text, self.spans = renderer.token_spans(self.rendered.step_ids)

    @cached_property
    def known_text(self) -> str:
        """Everything the student had read, as text."""
        return self.renderer.decode(self.rendered.context_ids)

    def splice(self, text: str, placement: Placement, role: HintRole | None) -> Splice:
        """Tokens and place of one hint.

        Raises:
            TemplateError: the template refuses this placement, or would drop the hint's words.
            SpliceError: the place is not at a boundary that can be found exactly.
        """
        if placement == "message":
            assert role is not None
            return self._as_message(text, role)
        return self._in_observation(text)

    def _as_message(self, text: str, role: HintRole) -> Splice:
        opening, message = self.opening, Message(role=role, content=text)
        notes: list[str] = []
        hinted = self.renderer.render((*opening.before, message), opening.tools, header=False)
        if hinted.startswith(opening.bare):
            block: str | None = hinted[len(opening.bare) :].removesuffix(opening.trailer)
        else:
            # the hint message makes the template rewrite what stands above it
            block = self._minimal_block(message)
            notes.append("spliced_block")
        if block is None or text.strip() not in block:
            raise TemplateError(f"the template drops a {role} message in this place")
        at, shifted = self.renderer.splice_point(self.rendered.context_ids, opening.text, len(opening.bare))
        if shifted:
            raise SpliceError("the assistant header does not begin at a token boundary")
        return Splice(at, tuple(self.renderer.encode(block)), "message", role, tuple(notes))

    def _minimal_block(self, message: Message) -> str | None:
        """The hint message as the template prints it after a short conversation."""
        user, assistant = Message(role="user", content="Hello"), Message(role="assistant", content="Hello")
        for start in ((user,), (user, assistant)):
            try:
                short = self.renderer.opening(start, ())
                longer = self.renderer.render((*start, message), (), header=False)
            except TemplateError:
                continue
            if longer.startswith(short.bare):
                return longer[len(short.bare) :].removesuffix(short.trailer)
        return None

    def _in_observation(self, text: str) -> Splice:
        opening = self.opening
        last = opening.before[-1] if opening.before else None
        if last is None or last.role not in ("tool", "user"):
            raise SpliceError("there is no observation right above the step")
        longer = last.model_copy(update={"content": (last.content or "") + text})
        hinted = self.renderer.render((*opening.before[:-1], longer), opening.tools, header=False)
        char = _insertion_point(opening.bare + opening.trailer, hinted, text)
        if char is None:
            raise TemplateError("the template does not print the last observation verbatim")
        at, shifted = self.renderer.splice_point(self.rendered.context_ids, opening.text, char)
        return Splice(
            at, tuple(self.renderer.encode(text)), "observation", None, ("boundary_shifted",) if shifted else ()
        )


def _insertion_point(plain: str, hinted: str, block: str) -> int | None:
    """Where `hinted` has `block` that `plain` has not, all else equal; None where they differ otherwise."""
    if len(hinted) != len(plain) + len(block):
        return None
    common = 0
    while common < len(plain) and plain[common] == hinted[common]:
        common += 1
    for at in range(common, max(-1, common - len(block) - 1), -1):
        if hinted[at : at + len(block)] == block and hinted[at + len(block) :] == plain[at:]:
            return at
    return None


class Injector:
    """Builds injections under one configuration."""

    def __init__(self, renderer: Renderer, library: PromptLibrary, config: InjectSection, placebos: int = 3) -> None:
        self.renderer, self.library, self.config, self.placebos = renderer, library, config, placebos
        self._last: StepSite | None = None

    def inject(self, trace: Trace, finding: Finding) -> Injection:
        """Splice the finding's hint above its step.

        Raises:
            TemplateError: the template has no place for a hint here; names each placement tried and why not.
            SpliceError: the step or the place cannot be told apart exactly, or the quote is nowhere in the step.
            PromptError: no hint could be rendered.
        """
        site = self._site(trace, finding.step)
        span, quote_found = self._span(site, finding)
        hint = hint_text(trace, finding, self.library)
        pairs = placebo_texts(trace, finding, hint, self.library, self.placebos + 1)
        if self.config.hint == "placebo":
            hint, pairs = pairs[0][1], pairs[1:]
        splice = self._place(site, hint)
        placebos = []
        for kind, text in pairs[: self.placebos]:
            other = site.splice(self._formatted(text, splice.placement), splice.placement, splice.role)
            placebos.append(PlaceboBlock(kind=kind, text=text, insert_at=other.insert_at, block_ids=other.block_ids))
        rendered = site.rendered
        return Injection(
            trace_id=trace.id, finding=finding, hint=hint, context_ids=rendered.context_ids, insert_at=splice.insert_at,
            block_ids=splice.block_ids, step_ids=rendered.step_ids, span=span, quote_found=quote_found,
            fidelity=rendered.fidelity, placement=splice.placement, role=splice.role, notes=rendered.notes + splice.notes,
            guards=guards(hint, trace, finding.step, site.known_text, site.text), placebos=tuple(placebos),
            recorded_logprobs=trace.step(finding.step).logprobs,
            legal=legal_continuations(trace, trace.step(finding.step), self.renderer, rendered.step_ids, site.text, site.spans),
        )  # fmt: skip

    def _site(self, trace: Trace, step: int) -> StepSite:
        """The rendered step; kept for the next finding, which is often of the same step."""
        if self._last is None or self._last.trace is not trace or self._last.step != step:
            self._last = StepSite(trace, step, self.renderer)
        return self._last

    def _span(self, site: StepSite, finding: Finding) -> tuple[tuple[int, int], QuoteFound]:
        whole = (0, len(site.rendered.step_ids))
        if not finding.quote:
            return whole, "whole_step"
        found = locate(finding, site.text, site.trace.step(site.step), self.config.min_quote_match)
        tokens = tokens_in(found[0], site.spans) if found else None
        if found is not None and tokens is not None:
            return tokens, found[1]
        if not self.config.whole_step_without_quote:
            raise QuoteNotFoundError(
                f"trace {site.trace.id}, step {site.step}: the quote {finding.quote[:60]!r} is nowhere in the step",
                hint="inject.whole_step_without_quote=true uses the whole step instead",
            )
        return whole, "whole_step"

    def _formatted(self, hint: str, placement: Placement) -> str:
        form = self.config.message_format if placement == "message" else self.config.observation_format
        return form.replace("{hint}", hint)

    def _place(self, site: StepSite, hint: str) -> Splice:
        refused: list[str] = []
        for placement, role in self._options():
            try:
                splice = site.splice(self._formatted(hint, placement), placement, role)
            except (TemplateError, SpliceError) as error:
                refused.append(f"{placement}{f'/{role}' if role else ''}: {error.message}")
                continue
            if not splice.block_ids:
                raise SpliceError(f"the hint {hint[:40]!r} tokenises to nothing")
            notes = splice.notes + tuple(f"refused {r}" for r in refused)
            return Splice(splice.insert_at, splice.block_ids, splice.placement, splice.role, notes)
        raise TemplateError(
            f"trace {site.trace.id}, step {site.step}: no placement for a hint in this chat template; "
            + "; ".join(refused),
            hint="inject.placements and inject.roles say what is tried, in order",
        )

    def _options(self) -> Sequence[tuple[Placement, HintRole | None]]:
        options: list[tuple[Placement, HintRole | None]] = []
        for placement in self.config.placements:
            options += [(placement, r) for r in self.config.roles] if placement == "message" else [(placement, None)]
        return options
