"""The version of the report's schema, and its keys that `hintdistill report --share` may share.

`build.py` makes the document, `docs/report.md` describes it. A new key is not shared until a rule here allows it.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, get_args

from hintdistill.config import TripwireSection
from hintdistill.core import errors
from hintdistill.core.extensions import HINT_SOURCES, PLACEMENTS, TWIN_MAKERS
from hintdistill.core.scores import Choice
from hintdistill.core.types import HELD, Fidelity, HintRole, PlaceboKind, Verdict
from hintdistill.injection.candidates import NAMES as CANDIDATES
from hintdistill.prompts import hint_classes, shipped_library
from hintdistill.recipes import recipe_names
from hintdistill.reporting.allow import (
    Names,
    Rule,
    each,
    head,
    how_many,
    matching,
    nothing,
    number,
    numbered,
    record,
    table,
    text,
    text_or_none,
    word,
)
from hintdistill.reporting.controls import TITLES
from hintdistill.reporting.curves import DECISION, LOSS, MOVED
from hintdistill.reporting.intervals import MEASURES
from hintdistill.reporting.verdict import is_near_miss
from hintdistill.rescoring.twins import NOT_DONE_HERE

REPORT_SCHEMA = 1


def _classes() -> Collection[str]:
    return {"", *hint_classes(shipped_library())}


def _prompts() -> Collection[str]:
    return shipped_library().names()


def _reasons() -> Collection[str]:
    """Return the reasons for failures and skips: the reasons of declared errors, and the words that stages and readers
    use."""
    kinds = (k for k in vars(errors).values() if isinstance(k, type) and issubclass(k, errors.HintdistillError))
    return {
        *_WORDS,
        *errors.TWIN_REASONS,
        *errors.CONTEXT_REASONS,
        *(k("").reason for k in kinds if not issubclass(k, (errors.SharingError, errors.ReasonedError))),
    }


_WORDS = frozenset(
    [
        "also_trained",
        "answer",
        "bad_archive",
        "budget",
        "consequence",
        "duplicate_id",
        "empty_file",
        "empty_record",
        "cut_step",
        "failed_episode",
        "holdout",
        "lone_surrogate",
        "low_confidence",
        "no_label",
        "not_a_file",
        "not_a_label",
        "not_a_trace",
        "not_finite",
        "not_decisive",
        "not_json",
        "not_utf8",
        "number_too_large",
        "over_max_per_trace",
        "reader_error",
        "repeated_prefix",
        "secret",
        "symlink",
        "too_deep",
        "too_large",
        "unreadable",
    ]
)
_GATE = frozenset(
    [
        "leak",
        "dialect",
        "illegal",
        "vacuous",
        "no_effect",
        "not_below_placebo",
        "not_specific",
        "mass_to_illegal",
        "primed",
        "primes",
        "level",
        "outranked",
        "other_level",
        "not_above_placebo",
        "not_this_students_error",
        NOT_DONE_HERE,
    ]
)


def _twin_kinds() -> Collection[str]:
    return {"critic", *(kind for maker in TWIN_MAKERS.entries() for kind in maker.kinds)}


_NOTES = frozenset(
    {
        "rewritten_history",
        "boundary_retokenised",
        "boundary_shifted",
        "not_append_only",
        "spliced_block",
        "minimal_talk",
        "refused",
        "filtered_logprobs",
        "combined",
    }
)
_CORRECTIONS = frozenset({"asked", "no_place", "too_long", "cut", "unreadable", "objected", "kept"})
_FIDELITIES: tuple[str, ...] = get_args(Fidelity)


def _places() -> Collection[str]:
    names = PLACEMENTS.names()
    return {*names, *(f"{place}/{role}" for place in names for role in get_args(HintRole))}


_SPLITS = frozenset({"train", "validation", "holdout", "test"})
_WIRES = frozenset(TripwireSection.model_fields)
_PACKAGES = frozenset({"hintdistill", "torch", "transformers", "peft", "accelerate", "vllm"})

hashed = matching("[0-9a-f]{8,64}")
error_class = word("class", _classes)
critic = word("critic", ("rules", "recorded", "llm", "strong", "checker", "unknown"))
reason = word("reason", _reasons)
gate_reason = word("reason", _GATE)
level = word("level", ("0", "1", "2", "3"))
placebo = word("kind", get_args(PlaceboKind))


def split(value: Any, names: Names) -> Any:
    """Return the name of a split that this program defines; any other becomes a number, with a separate kind for
    near-misses."""
    kind = "near_miss" if isinstance(value, str) and is_near_miss(value) else "split"
    return word(kind, _SPLITS)(value, names)


placement = word("placement", _places)
fidelity = word("fidelity", _FIDELITIES)
twin_kind = word("kind", _twin_kinds)
note = head(" ", word("note", _NOTES))
maker = word("maker", lambda: TWIN_MAKERS.names())


def counts(key: Rule) -> Rule:
    """Apply the rule for numbers by name."""
    return table(key, number)


def numbers(*keys: str) -> dict[str, Rule]:
    """Return the rules for keys that hold numbers."""
    return dict.fromkeys(keys, number)


_usage = numbers("requests", "prompt_tokens", "completion_tokens")
_twins = record(
    **numbers("findings", "covered", "twins"),
    classes=table(
        error_class,
        record(
            **numbers("findings", "covered", "twins"),
            kinds=counts(twin_kind),
            dropped=table(twin_kind, counts(reason)),
            no_edit=counts(reason),
        ),
    ),
)
_funnel = record(
    read=record(**numbers("records", "traces", "steps", "cut"), failed=counts(reason), split=counts(split)),
    hold=record(**numbers("traces"), failed=counts(reason)),
    critique=record(
        **numbers("findings", "dropped", "in_windows", "not_judged", "owed"),
        verdicts=counts(word("verdict", get_args(Verdict))),
        failed=counts(reason),
        by_class=counts(error_class),
        usage=record(
            **_usage,
            **numbers("money", "tokens_per_accepted_finding", "money_per_accepted_finding"),
            by_critic=table(critic, record(**_usage)),
        ),
    ),
    inject=record(
        injections=number,
        skipped=counts(reason),
        failed=counts(reason),
        placements=counts(placement),
        fidelity=counts(fidelity),
        quotes=counts(word("quote", ("exact", "normalised", "fuzzy", "whole_step"))),
        notes=counts(note),
        twins=_twins,
        levels=counts(level),
    ),
    rescore=record(
        **numbers("scored", "accepted", "rejected", "anchors", "watched", "holds"),
        failed=counts(reason),
        reasons=counts(gate_reason),
        levels=counts(level),
        accepted_levels=counts(level),
        candidates=number,
        revised=record(**numbers("scored", "accepted")),
    ),
    train=record(
        **numbers("hints", "anchors", "holds", "twins"),
        left_out=counts(word("reason", ("holdout", *(f"fidelity_{f}" for f in _FIDELITIES)))),
    ),
)
_evaluation = record(
    **numbers("episodes", "success_rate", "error_rate"),
    errors=counts(error_class),
    failures=counts(numbered("failure")),
    tools=table(word("effect", ("reads", "changes")), record(**numbers("calls", "successful", "error_rate"))),
)
_measured = dict.fromkeys(("before", "after"), _evaluation)
_effects = record(
    **numbers("n", "with_decision", "accepted", "decision_effect_mean_nats", "decision_effect_median_nats"),
    **numbers("specificity_mean_nats", "legal_mass_gain_mean", "odds_mean_nats", "odds_over_placebos_mean_nats"),
    error_probability=record(**numbers("before", "hinted", "after")),
    moved=record(**numbers("n", "training_nats", "hint_nats")),
)
_twin_figures: dict[str, Rule] = {
    **numbers("findings", "covered", "twins", "kept", "trained"),
    "reasons": counts(gate_reason),
    "kinds": counts(twin_kind),
    "probability": record(**numbers("original", "here", "after")),
}
_twin_figure = record(**_twin_figures)
_finding = record(
    key=hashed,
    trace=numbered("trace"),
    split=split,
    error_class=error_class,
    critic=critic,
    placement=placement,
    fidelity=fidelity,
    **numbers("step", "accepted", "trained", "specificity_nats", "legal_mass_gain", "level"),
    candidate=word("candidate", ("", *HINT_SOURCES.names(), *CANDIDATES)),
    choice=word("choice", get_args(Choice)),
    **dict.fromkeys(("hint", "hint_block", "context_above", "context_below"), text),
    **dict.fromkeys(("quote", "evidence"), nothing),
    notes=each(note),
    reasons=each(gate_reason),
    guards=each(head(":", gate_reason)),
    decision=record(
        **numbers("position", "before", "hinted", "after", "effect_nats", "odds_nats", "flips"),
        token=text,
        instead=text,
        top=record(**dict.fromkeys(("before", "hinted", "after"), each(record(text=text, p=number)))),
    ),
    placebos=each(record(kind=placebo, text=text, **numbers("passes", "effect_nats", "odds_nats"))),
    tokens=each(record(text=text, instead=text, **numbers("quoted", "before", "hinted", "after"))),
    # the edit is text of a trace and of a critic
    twins=each(
        record(
            key=hashed,
            kind=twin_kind,
            maker=maker,
            split=split,
            error_class=error_class,
            **numbers("accepted", "trained", "original", "here", "after"),
            notes=each(note),
            reasons=each(gate_reason),
        )
    ),
)
_off_target = table(
    word("set", ("heldout_other_steps", "heldout_clean")),
    record(**numbers("steps", "tokens", "kl_per_token", "kl_per_step", "kl_p99", "top1_flip_rate")),
)
_interval = record(**numbers("mean", "low", "high"))
_controls = record(
    recipe=word("recipe", recipe_names),
    equal=record(**numbers("rows", "anchors", "twins", "holds", "steps")),
    heldout=record(**numbers("findings", "accepted", "probability_before", "probability_hinted")),
    clean=counts(word("set", ("heldout_other_steps", "heldout_clean"))),
    corrections=record(critics=each(critic), counts=counts(word("correction", _CORRECTIONS))),
    arms=each(
        record(
            arm=word("arm", TITLES),
            distinct=record(**numbers("hint", *HELD)),
            not_read=text_or_none,
            fall_nats=_interval,
            share_of_hint=_interval,
            off_target=_off_target,
            **numbers(
                "rows",
                "anchors",
                "twins",
                "holds",
                "steps",
                "fall_nats_accepted",
                "probability_after",
                "kl_per_token",
                "seconds",
            ),
        )
    ),
    **numbers("schema", "learning_rate"),
)
_episode = record(success=number, errors=each(error_class), failure=text_or_none, text=text, cut=number)
_against = record(n=number, traces=number, **dict.fromkeys(MEASURES, each(number)))
SHARED: Rule = record(
    schema=number,
    run=record(
        model=text,
        config_hash=hashed,
        critics=each(critic),
        hint=word("hint", tuple(HINT_SOURCES.names())),
        recipe=record(name=word("recipe", recipe_names)),
        model_key=record(weights=hashed, tokenizer=hashed, template=hashed),
        prompts=table(word("prompt", _prompts), hashed),
        precision=record(
            **numbers("steps", "tokens", "kl_per_token", "kl_per_step", "kl_p99", "top1_flip_rate"),
            dtype=word("dtype", ("bfloat16",)),
        ),
        versions=table(word("package", _PACKAGES), head("+", matching(r"\d+(\.\d+)*((a|b|rc|\.dev|\.post)\d+)*"))),
    ),
    funnel=_funnel,
    twins=record(
        **dict.fromkeys(("all", "kept", "dropped"), _twin_figure),
        by_class=table(error_class, _twin_figure),
        by_split=table(split, _twin_figure),
    ),
    environment=record(**_measured, splits=table(split, record(**_measured))),
    off_target_kl_nats=number,
    off_target=_off_target,
    effects=record(
        **dict.fromkeys(("all", "accepted", "rejected"), _effects),
        by_class=table(error_class, _effects),
        by_level=table(level, _effects),
        by_split=table(split, _effects),
    ),
    gate=record(
        **numbers("null_pass_rate", "bound", "enabled", "min_drop_nats", "max_raise_nats", "min_student_probability"),
        **numbers("require_legal_gain", "require_specific", "check_leak", "check_dialect", "check_words"),
        **numbers("max_null_pass_rate", "min_odds_nats", "min_odds_margin_nats", "min_legal_gain"),
        null_pass_rate_by_kind=table(placebo, number),
        null_pass_rate_by_level=table(level, number),
        checks=each(word("check", ("legal_gain", "specific", "leak", "dialect", "words"))),
    ),
    weights=record(**numbers("recorded_gap_nats", "recorded_steps", "engine_floor_nats")),
    train=record(
        key=hashed,
        **numbers(
            "hint_rows",
            "anchor_rows",
            "outcome_rows",
            "hold_rows",
            "twin_rows",
            "rows",
            "steps",
            "trainable_parameters",
            "parameters",
        ),
        **numbers("engine_floor_nats", "grad_window_cosine"),
        tripwires=each(record(tripwire=word("tripwire", _WIRES), **numbers("step", "value", "bound"))),
        way=word("way", ("shared_prefix", "snapshots", "snapshots_by_token", "separate")),
        arrived=record(handling=word("handling", ("merged", "beside"))),
    ),
    warnings=how_many("warnings"),
    controls=_controls,
    findings=each(_finding),
    against_placebos=record(
        **dict.fromkeys(("all", "accepted", "holdout"), _against), by_class=table(error_class, _against)
    ),
    curves=record(
        steps=each(number),
        series=record(**dict.fromkeys((*LOSS, *MOVED, DECISION), each(number))),
        decision_probability_by_class=table(error_class, each(number)),
    ),
    failed_after=record(
        splits=table(split, record(**numbers("episodes", "failed", "lost", "failed_before"))),
        shown=each(record(split=split, task=numbered("task"), before=_episode, after=_episode)),
    ),
    found_nothing=record(
        traces=number, sample=each(record(trace=numbered("trace"), text=text, **numbers("steps", "reward", "cut")))
    ),
    unscored=each(
        record(
            trace=numbered("trace"), step=number, error_class=error_class, reason=reason, quote=nothing, message=nothing
        )
    ),
)
"""The shareable parts of a report document: numbers, hashes, and words of this program. See docs/report.md."""
