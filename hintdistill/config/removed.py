"""Keys that the configuration once had: their replacements, and the translation of saved configurations that use them.

A config or an override with such a key causes an error that names the new spelling. The configuration saved in a run
folder is translated instead (`upgrade`), so that folders of the previous version stay readable.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from hintdistill.config.train import default_anchor
from hintdistill.core.errors import ConfigError, InputError
from hintdistill.recipes import DEFAULT, Recipe, load_recipe
from hintdistill.recipes.library import REMOVED as REMOVED_OF_RECIPES
from hintdistill.recipes.library import merge

_RECIPE = "train.recipe.terms"
_TERM = "; TERM is `distill`, unless the recipe has hint terms of other names (`hintdistill recipes show NAME`)"
_GATE = "list the checks in rescore.gate.checks; leave `{}` out of the list"
_PROMPT = "set critic.{}.prompt: one prompt, or two for binary_search ([critic/half.jinja, critic/step.jinja])"
_PRICE = "write critic.{}.price=[IN, OUT], both per million tokens"

REMOVED: dict[str, str] = {
    "train.divergence": f"write {_RECIPE}.TERM.divergence.kind{_TERM}",
    "train.jsd_alpha": f"write {_RECIPE}.TERM.divergence.alpha{_TERM}",
    "train.support": f"write {_RECIPE}.TERM.support.kind (`union` for union_topk, or `full`){_TERM}",
    "train.top_k": f"write {_RECIPE}.TERM.support.k{_TERM}",
    "train.teacher": "write train.recipe.teacher.update",
    "train.teacher_model": "write train.recipe.teacher.model",
    "train.loss_span": f"write {_RECIPE}.TERM.span{_TERM}",
    "train.quote_weight": f"write {_RECIPE}.TERM.quote_weight{_TERM}",
    "train.normalize": f"write {_RECIPE}.TERM.normalize for each TERM (`per_row` for row, `kept` for token)",
    "train.anchor.min_probability": f"write {_RECIPE}.anchor.min_probability",
    "train.outcome.clip_low": "write train.outcome.clip=[LOW, HIGH]",
    "train.outcome.clip_high": "write train.outcome.clip=[LOW, HIGH]",
    "train.warmup_steps": "write train.warmup_ratio, a share of the optimiser steps (default 0.03)",
    "train.push_private": "a repository created by train.push is private; "
    "`hintdistill push RUN REPO --public` creates a public one",
    "inject.message_format": "write inject.formats={message: …}",
    "inject.observation_format": "write inject.formats={observation: …}",
    "inject.system_format": "write inject.formats={system_prompt: …}",
    "inject.turn_format": "write inject.formats={assistant_turn: …}",
    "rescore.gate.require_legal_gain": _GATE.format("legal_gain"),
    "rescore.gate.require_specific": _GATE.format("specific"),
    "rescore.gate.check_leak": _GATE.format("leak"),
    "rescore.gate.check_dialect": _GATE.format("dialect"),
    "rescore.gate.check_words": _GATE.format("words"),
    "rescore.gate.max_null_pass_rate": "the warning now starts at .10; the rate itself is in every report "
    "(gate.null_pass_rate)",
    **{f"critic.{c}.{p}_prompt": _PROMPT.format(c) for c in ("llm", "strong") for p in ("step", "half")},
    **{f"critic.{c}.price_{way}": _PRICE.format(c) for c in ("llm", "strong") for way in ("in", "out")},
    "ablate": "the ablation has its own config, benchmarks/ablation/ablate.yaml; run `python -m benchmarks.ablation`",
    "rollout.parser": "leave it out: `hermes` is the only parser",
    "rollout.sample.backend": "set rollout.sample.server.base_url: if it is set, the server samples",
}
"""Key → what to write instead."""

_FORMATS = {
    "message_format": ("message", "{hint}"),
    "observation_format": ("observation", "\n\n{hint}"),
    "system_format": ("system_prompt", "\n\n{hint}"),
    "turn_format": ("assistant_turn", "{hint}\n"),
}
_CHECKS = {
    "require_legal_gain": "legal_gain",
    "require_specific": "specific",
    "check_leak": "leak",
    "check_dialect": "dialect",
    "check_words": "words",
}


def upgrade(saved: Mapping[str, Any], schema: int = 1) -> dict[str, Any]:
    """Translate the whole configuration saved by a run of an earlier schema into today's keys, with the same meaning.

    Raises:
        InputError: a part of it has no translation; the message names it.
    """
    try:
        data = copy.deepcopy(dict(saved))
        data["train"]["recipe"] = _default_then(data["train"]["recipe"])
        return _placebos(_upgraded(data) if schema == 1 else data)
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        why = error.message if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        raise InputError(
            f"the configuration was saved with configuration schema {schema} and cannot be translated: {why}",
            hint="read it with the release that wrote it",
        ) from error


def _default_then(recipe: Any) -> Any:
    """Return today's name of the recipe that was called `targeted` until schema 3, and was the default."""
    if isinstance(recipe, Mapping):
        return {**recipe, "preset": _default_then(recipe.get("preset") or DEFAULT)}
    return "targeted_jsd" if recipe == DEFAULT else recipe


def _placebos(data: dict[str, Any]) -> dict[str, Any]:
    """Return the placebos as kinds and numbers. Until schema 2 they were one number, spread over three kinds in turn,
    and the gate had no odds condition."""
    rescore = data["rescore"]
    for key in ("min_odds_nats", "min_odds_margin_nats", "min_legal_gain"):
        rescore["gate"].setdefault(key, 0.0)
    if isinstance(rescore["placebos"], int):
        n = rescore["placebos"]
        kinds = ("generic", "shuffled", "other_class")
        rescore["placebos"] = {kind: len(range(i, n, 3)) for i, kind in enumerate(kinds)}
    return data


def _upgraded(saved: Mapping[str, Any]) -> dict[str, Any]:
    data = dict(saved)
    data.pop("ablate", None)
    for name in ("llm", "strong"):
        _critic(data["critic"][name])
    inject, gate, rollout = data["inject"], data["rescore"]["gate"], data["rollout"]
    old = {key: inject.pop(key) for key in _FORMATS}
    inject["formats"] = {_FORMATS[key][0]: text for key, text in old.items() if text != _FORMATS[key][1]}
    on = {check: gate.pop(key) for key, check in _CHECKS.items()}
    gate["checks"] = [check for check, made in on.items() if made]
    gate.pop("max_null_pass_rate")
    rollout.pop("parser")
    if rollout["sample"].pop("backend") != "server":
        rollout["sample"]["server"]["base_url"] = None
    _train(data["train"])
    return data


def _critic(llm: dict[str, Any]) -> None:
    prices = [llm.pop("price_in"), llm.pop("price_out")]
    llm["price"] = prices if None not in prices else None
    step, half = llm.pop("step_prompt"), llm.pop("half_prompt")
    llm["prompt"] = {"all_at_once": [llm["prompt"]], "step_by_step": [step], "binary_search": [half, step]}[
        llm["strategy"]
    ]


def _train(train: dict[str, Any]) -> None:
    train.pop("push_private")
    # a number of steps is no share of them, and nothing is trained from such a folder: it reads as the default, or as none
    if train.pop("warmup_steps") == 0:
        train["warmup_ratio"] = 0.0
    if "outcome" in train:
        low, high = train["outcome"].pop("clip_low"), train["outcome"].pop("clip_high")
        train["outcome"]["clip"] = [low, high]
    old = _recipe(train["recipe"])
    teacher = _given(update=train.pop("teacher"), model=train.pop("teacher_model"))
    changed = _given(terms=_terms(train, load_recipe(old)) or None, teacher=teacher or None)
    if changed:
        old = merge(old if isinstance(old, Mapping) else {"preset": old}, changed)
    train["recipe"] = old
    load_recipe(old)


def _recipe(recipe: Any) -> Any:
    """Return a saved recipe without removed keys; a term that its preset lacks gets `rows: hint`."""
    if not isinstance(recipe, Mapping):
        return recipe
    recipe = copy.deepcopy(dict(recipe))
    for key in REMOVED_OF_RECIPES:
        *parents, last = key.split(".")
        node: Any = recipe
        for part in parents:
            node = node.get(part) if isinstance(node, Mapping) else None
        if isinstance(node, dict):
            node.pop(last, None)
    known = load_recipe(recipe.get("preset") or DEFAULT).terms
    for name, term in (recipe.get("terms") or {}).items():
        if name not in known and isinstance(term, dict):
            term.setdefault("rows", "hint")
    return recipe


def _terms(train: dict[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Move the settings of terms out of a saved section and return them as changes of the recipe's terms.

    Raises:
        ConfigError: the divergence or the support is set, but the recipe has no term `distill`, the only one that
            schema 1 knew.
    """
    support = {"union_topk": "union", None: None}.get(train["support"], train["support"])
    distill = {
        "divergence": _given(kind=train.pop("divergence"), alpha=train.pop("jsd_alpha")),
        "support": _given(kind=support, k=train.pop("top_k")),
    }
    train.pop("support")
    distill = {k: v for k, v in distill.items() if v}
    if distill and "distill" not in recipe.terms:
        raise ConfigError(f"the recipe {recipe.name} has no term `distill`; its terms are {', '.join(recipe.terms)}")
    terms: dict[str, Any] = {"distill": distill}
    span = _given(span=train.pop("loss_span"), quote_weight=train.pop("quote_weight"))
    normalize = {"row": "per_row", "token": "kept", None: None}[train.pop("normalize")]
    for name, term in recipe.terms.items():
        own = (span if term.rows == "hint" else {}) | _given(normalize=normalize)
        terms[name] = terms.get(name, {}) | own
    bound = _given(min_probability=train["anchor"].pop("min_probability"))
    if bound and train["anchor"]["weight"] != 0:
        # a bound alone asked for the default anchor, too
        default = {} if "anchor" in recipe.terms else default_anchor()
        terms["anchor"] = default | terms.get("anchor", {}) | bound
    return {k: v for k, v in terms.items() if v}


def _given(**values: Any) -> dict[str, Any]:
    return {k: v for k, v in values.items() if v is not None}
