"""Register the parts that a config names, apart from those of a recipe: placements of hints, hint sources, twin makers,
critic strategies, critics, engines and environments. The entries are torch-free; each implementation is imported when
it is used. `core.parts` has the registries of divergences, shapes and hint kinds, `recipes.teachers` has that of
teacher rules, and `traces.registry` has that of trace formats. docs/extending.md shows how to add to each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hintdistill.core.errors import ConfigError
from hintdistill.core.registry import Registry


@dataclass(frozen=True)
class PlacementEntry:
    """Describe a place for a hint, named in `inject.placements`."""

    name: str
    implementation: str | Callable[..., Any]
    """`(site: StepSite, text, role, offset) -> Splice`; raises TemplateError or SpliceError if there is no exact
    place."""
    form: str = "{hint}"
    """The format around the hint, used unless `inject.formats` names another."""
    has_role: bool = False
    """Whether the placement is tried with each of `inject.roles`; otherwise the role is None."""
    inside_step: bool = False
    """Whether the hint goes inside the step, above the quote. The step's tokens above it are then read, not scored."""


_SITE = "hintdistill.injection.splice:StepSite"
PLACEMENTS: Registry[PlacementEntry] = Registry(
    "placement",
    PlacementEntry,
    {
        e.name: e
        for e in (
            PlacementEntry("message", f"{_SITE}.as_message", has_role=True),
            PlacementEntry("observation", f"{_SITE}.in_observation", form="\n\n{hint}"),
            PlacementEntry("system_prompt", f"{_SITE}.in_system_prompt", form="\n\n{hint}"),
            PlacementEntry("assistant_turn", f"{_SITE}.in_turn", form="{hint}\n", inside_step=True),
        )
    },
)


@dataclass(frozen=True)
class HintSource:
    """Describe a context maker: it writes the words that a teacher view reads and the student does not. `inject.hint`
    or the context of a view names it."""

    name: str
    implementation: str | Callable[..., Any] | None = None
    """`(trace, finding, library, kinds) -> (hint, [(kind, text), …])`: the hint, and a placebo of each kind that
    differs from it; see `injection.hints.placebo_texts`. Set it on sources that have no `context`."""
    meets: frozenset[str] = frozenset()
    """Needs of recipes that such hints meet, as names of `recipes.needs.HOW`, e.g. `demonstrations` for a source of
    demonstrations."""
    control: str = ""
    """A description of such hints for the model card, if training on them is a control."""
    context: str | Callable[..., str] | None = None
    """`(case: injection.contexts.ContextCase) -> text`; raises NoContextError, with a counted reason, if the case has
    no such context. An empty text is a context too: the teacher then reads the same text as the student."""
    placements: tuple[str, ...] = ()
    """Default placements, used unless `inject.placements` is set. A document about a whole task goes into the system
    prompt."""
    document: bool = False
    """Whether it is a document, limited by `inject.contexts.max_tokens`, rather than a hint, limited by
    `inject.max_hint_tokens` and `max_hint_share`."""
    rollouts: bool = False
    """Whether it is made from other rollouts of the task, which are then loaded."""
    reads: str = ""
    """The material it is made from, in words, for docs/contexts.md."""

    def __post_init__(self) -> None:
        if (self.implementation is None) == (self.context is None):
            raise ConfigError(
                f"the hint source {self.name} must have either an implementation or a context, and not both"
            )


def _context(name: str, reads: str, *, document: bool = False, rollouts: bool = False) -> HintSource:
    where, document = f"hintdistill.injection.contexts:{name}", document or rollouts
    places = ("system_prompt",) if document else ()
    return HintSource(name, context=where, reads=reads, document=document, rollouts=rollouts, placements=places)


_HINTS = "hintdistill.injection.hints"
_CONTEXTS = (
    HintSource("critic", f"{_HINTS}:from_critic", reads="the critic's words, or the template of the error class"),
    HintSource(
        "placebo", f"{_HINTS}:from_placebo", control="hints that say nothing", reads="prompts/placebo/generic.jinja"
    ),
    _context("wrong", "the hint of another error class; if several, each of a different class"),
    _context("partial", "the first part of the teacher's own context"),
    _context(
        "rule",
        "prompts/candidates/principle.jinja: the rule that the error class breaks, without facts of the instance",
    ),
    _context("rules", "every rule of prompts/candidates/principle.jinja, the same above every step", document=True),
    _context("hints", "the hints of every finding of the trace", document=True),
    _context("reminder", "the tools of the trace, by name and arguments"),
    _context("type_label", "the error class alone"),
    _context("observation", "the observation after the step, and the outcome of the trace"),
    _context("hindsight", "the observation after the step, the outcome, and the critic's hint"),
    _context("empty", "nothing: the teacher reads what the student read"),
    _context("solution", "the field `solution` of the trace, or inject.contexts.solutions", document=True),
    _context(
        "demonstration", "the field `demonstration` of the trace, or inject.contexts.demonstrations", document=True
    ),
    _context("file", "inject.contexts.file: any text by task", document=True),
    _context("peer_success", "another rollout of the task that succeeded", rollouts=True),
    _context("peer_failure", "another rollout of the task that failed", rollouts=True),
    _context("peers", "successful and failed rollouts of the task, except the trace itself", rollouts=True),
    _context("attempt_success", "a rollout that succeeded, without its outcome", rollouts=True),
    _context("attempt_failure", "a rollout that failed, without its outcome", rollouts=True),
    _context("own_success", "the trace itself, if it succeeded", document=True),
    _context("verified", "the trace itself, if it succeeded, else another rollout that did", rollouts=True),
    _context("bcq", "a successful and a failed rollout of the task, not labelled as such", rollouts=True),
    _context("ncq", "failed rollouts of the task", rollouts=True),
)
HINT_SOURCES: Registry[HintSource] = Registry("hint source", HintSource, {c.name: c for c in _CONTEXTS})


@dataclass(frozen=True)
class TwinMaker:
    """Describe a maker of twins, i.e. of the smallest changes of a step's context that make the step right; see
    docs/twins.md."""

    name: str
    implementation: str | Callable[..., Any]
    """`(case: injection.twin_makers.TwinCase) -> iterable of TwinEdit`; raises TwinError if the step allows no twin."""
    classes: tuple[str, ...]
    """Error classes that it serves. Several makers may serve the same class."""
    kinds: tuple[str, ...]
    """Kinds of edits that it makes, at most one of each for a finding."""


def _maker(name: str, kinds: str, *others: str, module: str = "twin_makers") -> TwinMaker:
    return TwinMaker(name, f"hintdistill.injection.{module}:{name}", (name, *others), tuple(kinds.split()))


_STOPS = "unasked waived had observation nested done earlier"
TWIN_MAKERS: Registry[TwinMaker] = Registry(
    "twin maker",
    TwinMaker,
    {
        m.name: m
        for m in (
            _maker("unknown_tool", "rename add describe request"),
            _maker("wrong_argument", "rename add describe request optional removed default"),
            _maker("wrong_argument_type", "type union open enum_replaced enum_added relaxed"),
            _maker("skipped_lookup", "named request system observation schema", "invented_value"),
            _maker("ignored_error", "field plain nested warning shaped"),
            _maker("repeated_failing_call", "removed transient retry", "repeated_step"),
            _maker("wrong_tool", "request system describe", "unneeded_call"),
            _maker("stopped_early", _STOPS, "premature_finish", module="twin_stops"),
        )
    },
    group="hintdistill.twin_makers",
)


@dataclass(frozen=True)
class Strategy:
    """Describe how an LLM critic is led to a verdict; `critic.llm.strategy` names it."""

    name: str
    implementation: str | Callable[..., Any]
    """`(asker, record, vote)`, a generator that asks questions and returns a `Judgement`; see `critics.strategies`."""
    prompts: Mapping[str, str]
    """Place (`prompt`, `step_prompt`, `half_prompt`) → default prompt. `critic.llm.prompt` replaces them in this order.
    The last one asks for the step and its hint."""
    asked: str | Callable[..., Any]
    """`(asker, record) -> list of texts`: all questions that it may ask about one record, for estimates and budgets."""


def _strategy(name: str, **prompts: str) -> Strategy:
    where = "hintdistill.critics.strategies"
    return Strategy(name, f"{where}:{name}", prompts, f"{where}:asked_{name}")


STRATEGIES: Registry[Strategy] = Registry(
    "critic strategy",
    Strategy,
    {
        s.name: s
        for s in (
            _strategy("all_at_once", prompt="critic/all_at_once.jinja"),
            _strategy("step_by_step", step_prompt="critic/step.jinja"),
            _strategy("binary_search", half_prompt="critic/half.jinja", step_prompt="critic/step.jinja"),
        )
    },
)


@dataclass(frozen=True)
class CriticEntry:
    """Describe a critic, named in `critic.use`."""

    name: str
    implementation: str | Callable[..., Any]
    """`(making: critics.build.Making) -> Critic`."""


CRITICS: Registry[CriticEntry] = Registry(
    "critic",
    CriticEntry,
    {
        n: CriticEntry(n, f"hintdistill.critics.build:{n}")
        for n in ("rules", "recorded", "followup", "llm", "strong", "checker")
    },
    group="hintdistill.critics",
)


@dataclass(frozen=True)
class EngineEntry:
    """Describe an engine, named in `rescore.engine.backend`."""

    name: str
    capabilities: frozenset[str]
    """Names of `engines.CAPABILITIES`, which decide what a recipe may require of stored targets. The loaded engine must
    report the same."""
    implementation: str | Callable[..., Any]
    """`(job: engines.loading.EngineJob) -> Engine`; the engine's `close`, if defined, is called at the end."""
    shared: bool = False
    """Whether training and measuring use the same engine, which is then loaded once a run and kept."""
    remote: bool = False
    """Whether it is a server at `base_url` that serves fixed weights under the name `model`."""


ENGINES: Registry[EngineEntry] = Registry(
    "engine",
    EngineEntry,
    {
        e.name: e
        for e in (
            EngineEntry(
                "transformers", frozenset({"gather", "full"}), "hintdistill.engines.loading:transformers", shared=True
            ),
            EngineEntry("vllm", frozenset(), "hintdistill.engines.loading:vllm"),
            EngineEntry("server", frozenset(), "hintdistill.engines.loading:server", remote=True),
        )
    },
    group="hintdistill.engines",
)


@dataclass(frozen=True)
class EnvironmentEntry:
    """Describe a set of tasks and their environments. `rollout.environment` takes its name instead of a file."""

    name: str
    implementation: str | Callable[..., Any]
    """A `rollouts.environment.TaskSuite`, or a subclass that takes no arguments."""


ENVIRONMENTS: Registry[EnvironmentEntry] = Registry(
    "environment", EnvironmentEntry, {}, group="hintdistill.environments"
)
