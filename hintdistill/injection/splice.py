"""Splice hints into contexts: Trace + Finding → Injection, purely on token ids.

The context is never replaced by a render with the hint, because some templates would then rewrite other messages, and
the measured effect would include that. The hint's block comes from the template's own render with the hint. It is
everything that this render adds, or, if the template rewrites the messages above the hint, everything after the end of
the message above it (`spliced_block`). If the template refuses a message of the hint's role in this place, the block
comes from a minimal conversation (`minimal_talk`). From the first changed token on, the hinted context equals the
template's own render; every splice is checked. If the template refuses a placement, the next one in the configured
order is tried, and the record notes the refusal and its reason. If all are refused, the error quotes the template's
messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from hintdistill.config import InjectSection, RescoreSection
from hintdistill.core.context_block import ContextBlock
from hintdistill.core.errors import HintTooLongError, QuoteNotFoundError, SpliceError, TemplateError
from hintdistill.core.extensions import HINT_SOURCES, PLACEMENTS
from hintdistill.core.registry import loaded
from hintdistill.core.types import Finding, HintRole, Injection, Message, PlaceboBlock, PlaceboKind, Placement, Trace
from hintdistill.injection.action import below
from hintdistill.injection.candidates import other_hints
from hintdistill.injection.contexts import ContextCase, MadeContexts, contexts_of
from hintdistill.injection.control_tokens import note_of, refuse_in_hint
from hintdistill.injection.hints import guards, leaks, placebo_texts, primes
from hintdistill.injection.levels import hint_level
from hintdistill.injection.opening import RenderedStep, first_difference
from hintdistill.injection.placing import BOUNDARY_SHIFTED, MINIMAL_TALK, Context, Placed, message_block, minimal_talk
from hintdistill.injection.quotes import locate, tokens_in
from hintdistill.injection.rendering import Renderer
from hintdistill.injection.schema_tokens import legal_continuations
from hintdistill.prompts import PromptLibrary

SHORT_HINT = 64
"""Maximum number of tokens of a hint that is never too long relative to its context."""
QuoteFound = Literal["exact", "normalised", "fuzzy", "whole_step"]


@dataclass(frozen=True)
class Splice:
    """Hold the place of a hint in a context, and its tokens."""

    insert_at: int
    block_ids: tuple[int, ...]
    placement: Placement
    role: HintRole | None
    notes: tuple[str, ...] = ()
    own: tuple[int, ...] = ()
    """Ids with which the hinted context must end: those of the template's own render with the hint; empty if unknown."""


class StepSite:
    """Hold one step of one trace, rendered once, into which any number of hints can be spliced."""

    def __init__(self, trace: Trace, step: int, renderer: Renderer) -> None:
        """Render the step. Raises TemplateError or SpliceError; see `Renderer.step`."""
        self.trace, self.step, self.renderer = trace, step, renderer.for_trace(trace)
        self.rendered: RenderedStep = self.renderer.step(trace, step)
        self.opening = self.rendered.opening
        self.text, self.spans = self.renderer.token_spans(self.rendered.step_ids)

    @cached_property
    def known_text(self) -> str:
        """All text that the student had read."""
        return self.renderer.decode(self.rendered.context_ids)

    def splice(self, text: str, placement: Placement, role: HintRole | None, offset: int = 0) -> Splice:
        """Return the tokens and place of one hint; `offset` is the step token above which `assistant_turn` puts it.

        Raises:
            TemplateError: the template refuses this placement, or would drop the hint's words.
            SpliceError: the place has no exact token boundary.
        """
        made = loaded(PLACEMENTS.get(placement).implementation)(self, text, role, offset)
        assert isinstance(made, Splice)
        self._must_be_the_templates(made)
        return made

    def _must_be_the_templates(self, made: Splice) -> None:
        """Compare the spliced ids with the template's own render, for every hint and placebo. Raises SpliceError."""
        context = self.rendered.context_ids
        hinted = context[: made.insert_at] + made.block_ids + context[made.insert_at :]
        if made.own and hinted[-len(made.own) :] != made.own:
            ours, own = (self.renderer.decode(ids)[-160:] for ids in (hinted, made.own))
            raise SpliceError(
                f"trace {self.trace.id}, step {self.step}: the context with the hint differs from the template's "
                f"render with the hint in the place {made.placement}: {first_difference(own, ours)}"
            )

    @cached_property
    def context(self) -> Context:
        """Return the step's context, ready for insertions."""
        return Context(self.renderer, self.opening.text, self.rendered.context_ids)

    def in_turn(self, text: str, role: HintRole | None, offset: int) -> Splice:
        """Return the placement `assistant_turn`: inside the step, above its token `offset`."""
        at = len(self.rendered.context_ids) + offset
        above = self.opening.text + self.renderer.decode(self.rendered.step_ids[:offset])
        return Splice(at, tuple(self.renderer.encode_after(above, text)), "assistant_turn", None)

    def as_message(self, text: str, role: HintRole | None, offset: int) -> Splice:
        """Return the placement `message`: a hint message above the step. Raises the errors of `splice`.

        From the end of the message above it on, the hinted context is the template's own render of the conversation
        with the hint, including the generation prompt. If the template refuses this conversation, a minimal one is
        rendered instead (`minimal_talk`). Text that only the hinted render's generation prompt adds is part of the block.
        """
        assert role is not None
        opening, words = self.opening, text.strip()
        notes: tuple[str, ...] = ()
        hint = Message(role=role, content=text)
        try:
            above = opening
            own = self.renderer.render((*opening.before, hint), opening.tools, header=True)
        except TemplateError as refused:
            above, own = minimal_talk(self.renderer, hint, opening, refused)
            notes = (MINIMAL_TALK,)
        block, rest, rewrites = message_block(self.renderer, above, own, words, role)
        # before the context, whose render with the hint is mostly the same text and then not encoded twice
        ids, starts = self.renderer.encode_with_starts(own)
        placed = self.context.put(opening.bare + block + opening.header, words, True, len(opening.bare))
        if placed.shifted:
            raise SpliceError("the hint's message does not begin or does not end at a token boundary")
        start = len(own) - len(rest)
        if start not in starts:
            raise SpliceError("the template's own render does not begin the hint's message at a token boundary")
        tail = tuple(ids[starts.index(start) :])
        if opening.header != opening.prompt:
            # the step stands under the header of a finished one, so only the block is compared
            tail = tail[: len(tail) - len(self.renderer.encode(opening.prompt))]
            tail += tuple(self.renderer.encode(opening.header))
        notes = ("spliced_block", *notes) if rewrites or notes else ()
        return Splice(placed.insert_at, placed.block_ids, "message", role, notes, tail)

    def in_observation(self, text: str, role: HintRole | None, offset: int) -> Splice:
        """Return the placement `observation`: at the end of the message directly above the step. Raises the errors of `splice`."""
        opening = self.opening
        last = opening.before[-1] if opening.before else None
        if last is None or last.role not in ("tool", "user"):
            raise SpliceError("there is no observation right above the step")
        longer = last.model_copy(update={"content": (last.content or "") + text})
        hinted = self._with_header(self.renderer.render((*opening.before[:-1], longer), opening.tools, header=True))
        try:
            placed = self.context.put(hinted, text.strip(), from_end=True)
        except TemplateError:
            raise TemplateError("the template does not print the last observation verbatim") from None
        return self._put(placed, "observation")

    def in_system_prompt(self, text: str, role: HintRole | None, offset: int) -> Splice:
        """Return the placement `system_prompt`: at its end, or as a new one. Raises the errors of `splice`."""
        opening = self.opening
        first = opening.before[0] if opening.before else None
        if first is not None and first.role in ("system", "developer"):
            longer = first.model_copy(update={"content": (first.content or "") + text})
            hinted = self.renderer.render((longer, *opening.before[1:]), opening.tools, header=True)
        else:
            own = Message(role="system", content=text.strip())
            hinted = self.renderer.render((own, *opening.before), opening.tools, header=True)
        try:
            placed = self.context.put(self._with_header(hinted), text.strip(), from_end=False)
        except TemplateError:
            owner = (
                "does not print the system prompt verbatim"
                if first is not None and first.role == "system"
                else ("replaces its own system prompt, or rewrites messages, if one is given")
            )
            raise TemplateError(f"the template {owner}") from None
        return self._put(placed, "system_prompt")

    def _with_header(self, render: str) -> str:
        """Return a render with this step's header, or the header of a finished step if the template shows another one there."""
        opening = self.opening
        if opening.header == opening.prompt:
            return render
        if not render.endswith(opening.prompt):
            raise TemplateError("the template's generation prompt changes when a hint is given")
        return render[: len(render) - len(opening.prompt)] + opening.header

    @staticmethod
    def _put(placed: Placed, placement: Placement) -> Splice:
        notes = (BOUNDARY_SHIFTED,) if placed.shifted else ()
        return Splice(placed.insert_at, placed.block_ids, placement, None, notes, placed.own)


class Injector:
    """Build injections under one configuration."""

    def __init__(
        self,
        renderer: Renderer,
        library: PromptLibrary,
        config: InjectSection,
        placebos: Mapping[PlaceboKind, int] | None = None,
    ) -> None:
        """Take the configuration. `placebos` gives the number of each kind; the default is that of `rescore.placebos`."""
        self.renderer, self.library, self.config = renderer, library, config
        given = RescoreSection().placebos if placebos is None else placebos
        self.kinds: tuple[PlaceboKind, ...] = tuple(kind for kind, n in given.items() for _ in range(n))
        self._last: StepSite | None = None

    def inject(self, trace: Trace, finding: Finding) -> Injection:
        """Splice the finding's hint above its step.

        Raises:
            TemplateError: the template has no place for a hint here; the message gives the reason for each placement.
            SpliceError: the step or the place has no exact boundary, or the quote does not occur in the step.
            PromptError: no hint could be rendered.
        """
        hint, pairs = self._first(trace, finding)
        return self._spliced(trace, finding, hint, pairs)

    def candidates(self, trace: Trace, finding: Finding) -> list[Injection]:
        """Splice up to `inject.candidates` hints above the finding's step, each with its own placebos.

        The first one is that of `inject`. Raises the errors of `inject`.
        """
        hint, pairs = self._first(trace, finding)
        others = other_hints(trace, finding, hint, self.library, self.config.candidates - 1)
        first = self._spliced(trace, finding, hint, pairs, (self.config.hint or "critic") if others else "")
        return [
            first,
            *(
                self._spliced(trace, finding, text, placebo_texts(trace, finding, text, self.library, self.kinds), name)
                for name, text in others
            ),
        ]

    def in_context(self, trace: Trace, finding: Finding, contexts: MadeContexts) -> list[Injection]:
        """Splice in the finding's contexts, all at the place of the teacher's own. Raises the errors of `inject`.

        If a hint source without a context writes the teacher's own text, there may be several candidates.
        """
        if contexts.text is None:
            made = self.candidates(trace, finding)
        else:
            kinds = self.kinds if contexts.text else ()
            pairs = placebo_texts(trace, finding, contexts.text, self.library, kinds)
            made = [self._spliced(trace, finding, contexts.text, pairs, document=contexts.document)]
        return [self._beside(trace, injection, contexts) for injection in made]

    def _beside(self, trace: Trace, injection: Injection, contexts: MadeContexts) -> Injection:
        """Return the injection with the recipe's further contexts at the same place."""
        if not contexts.views:
            return injection
        site, blocks = self._site(trace, injection.finding.step), dict[str, ContextBlock]()
        for name, text in contexts.views.items():
            if not text:
                blocks[name] = ContextBlock(text="", insert_at=injection.insert_at)
                continue
            refuse_in_hint(self.renderer, text)
            self._bounded(len(self.renderer.encode(text)), len(injection.context_ids), text, contexts.document)
            words = self._formatted(text, injection.placement)
            other = site.splice(words, injection.placement, injection.role, injection.step_offset)
            blocks[name] = ContextBlock(text=text, insert_at=other.insert_at, block_ids=other.block_ids)
        return injection.model_copy(update={"views": blocks})

    def with_placebos(
        self, trace: Trace, finding: Finding, hint: str, placebos: Sequence[tuple[PlaceboKind, str]]
    ) -> Injection:
        """Splice in a hint with these placebos instead of drawn ones. Raises the errors of `inject`."""
        return self._spliced(trace, finding, hint, placebos)

    def _first(self, trace: Trace, finding: Finding) -> tuple[str, Sequence[tuple[PlaceboKind, str]]]:
        source = HINT_SOURCES.get(self.config.hint or "critic")
        if source.context is not None:
            text = contexts_of(source.name, {}, ContextCase(trace, finding, self.library)).text or ""
            return text, placebo_texts(trace, finding, text, self.library, self.kinds if text else ())
        hint, pairs = loaded(source.implementation)(trace, finding, self.library, self.kinds)
        return hint, pairs

    def _spliced(
        self,
        trace: Trace,
        finding: Finding,
        hint: str,
        pairs: Sequence[tuple[PlaceboKind, str]],
        candidate: str = "",
        document: bool = False,
    ) -> Injection:
        site = self._site(trace, finding.step)
        span, quote_found = self._span(site, finding)
        splice = self._place(site, hint, span[0], document)
        unknown = leaks(hint, trace, site.known_text + site.text)
        level = hint_level(hint, trace, finding, unknown)
        placebos = []
        for kind, text in pairs:
            words = self._formatted(text, splice.placement)
            other = site.splice(words, splice.placement, splice.role, span[0])
            placebos.append(PlaceboBlock(kind=kind, text=text, insert_at=other.insert_at, block_ids=other.block_ids))
        rendered, message = site.rendered, trace.step(finding.step)
        # a hint inside the turn has the step's beginning above it: those tokens are read, not scored
        above = span[0] if PLACEMENTS.get(splice.placement).inside_step else 0
        legal = legal_continuations(trace, message, self.renderer, rendered.step_ids, site.text, site.spans)
        return Injection(
            trace_id=trace.id,
            finding=finding,
            hint=hint,
            level=level,
            candidate=candidate,
            context_ids=rendered.context_ids + rendered.step_ids[:above],
            insert_at=splice.insert_at,
            block_ids=splice.block_ids,
            step_ids=rendered.step_ids[above:],
            step_offset=above,
            span=(span[0] - above, span[1] - above),
            action_start=below(rendered.action_start, above),
            quote_found=quote_found,
            fidelity=rendered.fidelity,
            placement=splice.placement,
            role=splice.role,
            notes=rendered.notes
            + splice.notes
            + _of_another_distribution(message)
            + note_of(self.renderer, site.opening.before),
            guards=(
                *guards(hint, trace, finding.step, site.known_text, site.text),
                *((f"level: {level} is above {self.config.max_level}",) if level > self.config.max_level else ()),
                *(f"primes: {what}" for what in primes(hint, trace, finding)),
            ),
            placebos=tuple(placebos),
            recorded_logprobs=message.own_logprobs[above:] if message.own_logprobs else None,
            legal={t - above: ids for t, ids in legal.items() if t >= above},
        )

    def _site(self, trace: Trace, step: int) -> StepSite:
        """Return the rendered step. It is kept for the next finding, which often concerns the same step."""
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
                f"trace {site.trace.id}, step {site.step}: the quote {finding.quote[:60]!r} does not occur in the step",
                hint="inject.whole_step_without_quote=true uses the whole step instead",
            )
        return whole, "whole_step"

    def _formatted(self, hint: str, placement: Placement) -> str:
        return self.config.format_of(placement).replace("{hint}", hint)

    def _place(self, site: StepSite, hint: str, offset: int, document: bool) -> Splice:
        if not hint:
            # a context that is empty by its maker: nothing is put anywhere
            placement, role = self._options()[0]
            return Splice(len(site.rendered.context_ids), (), placement, role)
        refuse_in_hint(self.renderer, hint)
        tokens = len(self.renderer.encode(hint.strip()))
        if not tokens:
            raise SpliceError(f"the hint {hint[:40]!r} tokenises to nothing")
        self._bounded(tokens, len(site.rendered.context_ids), hint, document)
        refused: list[str] = []
        for placement, role in self._options():
            try:
                splice = site.splice(self._formatted(hint, placement), placement, role, offset)
            except (TemplateError, SpliceError) as error:
                refused.append(f"{placement}{f'/{role}' if role else ''}: {error.message}")
                continue
            notes = splice.notes + tuple(f"refused {r}" for r in refused)
            return Splice(splice.insert_at, splice.block_ids, splice.placement, splice.role, notes)
        raise TemplateError(
            f"trace {site.trace.id}, step {site.step}: this chat template has no place for a hint; "
            + "; ".join(refused),
            hint="inject.placements and inject.roles set the placements that are tried, in order",
        )

    def _bounded(self, tokens: int, context: int, hint: str, document: bool) -> None:
        """Refuse a hint that is too long in itself or relative to its context; a document has its own limit."""
        if document:
            if tokens > self.config.contexts.max_tokens:
                raise HintTooLongError(
                    f"the context {hint[:40]!r}… has {tokens} tokens, more than {self.config.contexts.max_tokens}",
                    hint="raise inject.contexts.max_tokens, or shorten the context",
                )
            return
        most, share = self.config.max_hint_tokens, self.config.max_hint_share
        if tokens > most:
            raise HintTooLongError(
                f"the hint {hint[:40]!r}… has {tokens} tokens, more than {most}",
                hint="raise inject.max_hint_tokens, or shorten the hint",
            )
        if tokens > max(SHORT_HINT, share * context):
            raise HintTooLongError(
                f"the hint {hint[:40]!r}… has {tokens} tokens, {tokens / context:.2g} of the {context} of the context above it",
                hint="raise inject.max_hint_share, or shorten the hint",
            )

    def _options(self) -> Sequence[tuple[Placement, HintRole | None]]:
        options: list[tuple[Placement, HintRole | None]] = []
        for placement in self.config.placements:
            has_role = PLACEMENTS.get(placement).has_role
            options += [(placement, r) for r in self.config.roles] if has_role else [(placement, None)]
        return options


def _of_another_distribution(message: Message) -> tuple[str, ...]:
    """Return a note if recorded log-probabilities are left out, because they belong to another distribution than the model's."""
    return ("filtered_logprobs",) if message.logprobs and message.own_logprobs is None else ()
