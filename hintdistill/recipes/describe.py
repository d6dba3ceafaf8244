"""Describe a recipe in words: formula, source, confidence, needs, and its effect on the error token."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hintdistill.core.extensions import HINT_SOURCES
from hintdistill.recipes import parts
from hintdistill.recipes.changes import STEPS, rollouts
from hintdistill.recipes.needs import every_weight, needs
from hintdistill.recipes.schema import Recipe, Term, WeightSpec

CONFIDENCE = {
    "P": "the paper was read",
    "R": "the released code was read",
    "R*": "a third party's code was read",
    "W": "the web page was read",
    "S": "secondary notes were read; the formula is plausible, not checked",
    "A": "only the abstract was read; the formula is derived",
    "P+R": "the paper and the released code were read",
    "ours": "this toolkit's own",
}
PROMISE = {
    "yes": "yes",
    "conditional": "under a condition",
    "no": "not caused by the teacher",
}


WEIGHTS = {
    "initial": "the initial policy",
    "round_start": "the policy that the round started from",
    "live": "the student itself",
    "ema": "a slow average of the student",
    "periodic": "a copy of the student, renewed every few steps",
    "cgtr": "a copy of the student, renewed where that helped",
    "external": "another model",
}
DIVERGENCES = {
    "fkl": "forward KL",
    "rkl": "reverse KL",
    "jsd": "Jensen-Shannon divergence",
    "skew": "skew KL",
    "skew_rkl": "skew reverse KL",
    "mix": "both KL directions",
    "rkl_sg": "reverse KL with its kept mass held",
    "ce_topk": "cross-entropy",
    "nll": "likelihood of what was sampled",
    "hidden_mse": "distance of hidden states",
    "token_preference": "preference of the teacher's token over the sampled one",
}
SUPPORTS = {
    "student_topk": "the student's top {k}",
    "teacher_topk": "the teacher's top {k}",
    "union": "both top {k} and the sampled token",
    "intersection": "the common entries of both top {k}",
    "token_set": "a list of tokens",
    "full": "the whole vocabulary",
}
SPANS = {
    "step": "the whole step",
    "action": "the step without its reasoning",
    "quote": "the quoted words",
    "quote_weighted": "the whole step, its quote more",
    "suffix": "the quote and what follows",
}

SCORES = {
    "importance": "the student's probability of the token",
    "gap": "the gap between teacher and student",
    "ratio": "the teacher's probability over the student's",
    "evidence": "what the context changes for the teacher",
    "contrast": "the contrast of right and wrong contexts",
    "accept": "whether the token is among the teacher's top tokens",
    "H_S": "the student's entropy",
    "H_T": "the teacher's entropy",
    "div": "how far the two are apart",
    "div_union": "how far the two are apart",
    "div_tail64": "how far the two are apart, over windows",
    "div_forward": "how far the two are apart",
    "compat": "the teacher's mass on the student's top tokens",
    "overlap": "the overlap of their top tokens",
    "mean_logT": "how likely the teacher finds the step",
    "rollout_ppl_S": "the rollout's perplexity for the student, relative to rollouts with the same outcome",
    "rollout_ppl_T": "the rollout's perplexity for the teacher, relative to rollouts with the same outcome",
    "reward": "how the rollout ended",
    "advantage": "the advantage",
    "adv_sign": "the advantage's sign",
    "group_acc": "how often the task succeeds",
    "index": "the position in the step",
    "pos": "the position in the step",
    "since_error": "the distance from the error",
    "token_id": "which token it is",
    "surprisal": "the student's surprise",
    "key_span": "whether the step was right",
    "error_span": "whether it is quoted as the error",
}


def trains_on(recipe: Recipe) -> str:
    """Describe a run's training in plain words: the teacher, its context, the comparison, and the tokens."""
    who = WEIGHTS.get(recipe.teacher.update, recipe.teacher.update)
    context = HINT_SOURCES.get(parts.HINTS.get(recipe.data.hint.kind).source)
    reads = context.reads or f"what the hint source {context.name} writes"
    others = [
        f"the view `{n}` reads {_context(v.context)}"
        for n, v in recipe.views.items()
        if v.context not in parts.OWN_CONTEXTS
    ]
    terms = dict.fromkeys(_loss(t) for t in recipe.terms.values() if t.rows == "hint")
    held = [n for n, t in recipe.terms.items() if t.rows != "hint"]
    rewarded = recipe.coupling.kind in ("adv_mul", "adv_add") or any(
        t.divergence.signal == "advantage" for t in recipe.terms.values() if t.divergence.entry.has_signal
    )
    return "; ".join(
        [
            STEPS[recipe.data.steps],
            f"the teacher, {who}, reads {reads}",
            *others,
            *terms,
            *([f"in addition, {', '.join(held)}"] if held else []),
            *(["the sign is that of the reward minus the task's mean"] if rewarded else []),
        ]
    )


def _context(name: str) -> str:
    return HINT_SOURCES.get(name).reads or name


def _loss(term: Term) -> str:
    """Return one term in words."""
    span, how = SPANS.get(term.span, term.span), term.divergence
    read = dict.fromkeys(s for w in term.weights for s in sorted(w.scores()))
    said = [SCORES.get(s, s) for s in read] or ["the tokens that another term leaves out"]
    weighed = f", weighted by {', '.join(dict.fromkeys(said))}" if term.weights else ""
    if how.entry.has_signal:
        return f"policy gradient on the sampled tokens of {span} (signal {how.signal}){weighed}"
    on = (
        ""
        if term.support.kind == "sampled"
        else f" on {SUPPORTS.get(term.support.kind, term.support.kind)}".format(k=term.support.k)
    )
    return f"{DIVERGENCES.get(how.kind, how.kind)}{on} over {span}{weighed}"


def summary(recipe: Recipe) -> dict[str, Any]:
    """Return a summary of a recipe in one line."""
    return {
        "name": recipe.name,
        "verdict": recipe.verdict,
        "confidence": recipe.confidence,
        "title": recipe.title,
        "needs": [n.name for n in needs(recipe)],
    }


def document(recipe: Recipe) -> dict[str, Any]:
    """Return everything about a recipe as plain data."""
    return {
        **summary(recipe),
        "trains_on": trains_on(recipe),
        "rollouts": rollouts(recipe),
        "formula": recipe.formula,
        "source": recipe.source,
        "confidence_means": CONFIDENCE[recipe.confidence],
        "published": recipe.published,
        "ours": recipe.ours,
        "lowers_error": recipe.lowers_error,
        "lowers_error_why": recipe.lowers_error_why,
        "note": recipe.note,
        "changed": recipe.changed,
        "mechanism": [f"hintdistill.{m}" for m in recipe.mechanism],
        "needs": [{"name": n.name, "why": n.why, "how": n.how} for n in needs(recipe)],
        "over_step": over_step(recipe),
        "over_step_costs": over_step_costs(recipe),
        "recipe": settings(recipe),
    }


def settings(recipe: Recipe) -> dict[str, Any]:
    """Return the keys that can be set under `train.recipe`, with the recipe's values."""
    keys = {"data", "views", "teacher", "terms", "coupling"}
    return recipe.model_dump(mode="json", by_alias=True, include=keys, exclude_defaults=True)


FORMER: dict[str, Any] = {"kind": "objective", "extra_needs": [], "controllers": []}
"""Keys that recipes had until version 0.2, with the value that every run had, so that results keyed with them are still
found."""


def content(recipe: Recipe) -> dict[str, Any]:
    """Return the content of a recipe by which a result is keyed. An external model is keyed by its weights, which are
    not included here."""
    return FORMER | recipe.model_dump(mode="json", exclude={"teacher": {"model"}})


def over_step(recipe: Recipe) -> list[str]:
    """Return the quantities that the recipe computes over all rows of an optimiser step; empty if there are none.

    Static weights (loss span and normaliser) are not included, because they are computed over the whole data set.
    """
    out: dict[str, None] = {}

    def add(where: str, weights: Iterable[WeightSpec]) -> None:
        for weight in every_weight(weights):
            shape = parts.SHAPES.get(weight.shape)
            if shape.reads_batch and (shape.unless is None or shape.unless not in weight.parameters):
                out[f"{where}: weights of the shape {weight.shape}"] = None

    for name, term in recipe.terms.items():
        add(f"terms.{name}", term.weights)
        if term.weights and term.normalize in ("kept", "mean1"):
            out[f"terms.{name}: normalize {term.normalize} of its weights"] = None
        if term.divergence.entry.has_signal and term.divergence.signal in parts.BATCH_SIGNALS:
            out[f"terms.{name}: the signal {term.divergence.signal}"] = None
    if recipe.coupling.kind in ("adv_mul", "adv_add"):
        add("coupling.credit", recipe.coupling.credit)
    return list(out)


def over_step_costs(recipe: Recipe) -> str | None:
    """Return the cost of computing weights over an optimiser step, in words; None if the recipe has no such weights."""
    if not over_step(recipe):
        return None
    views = [n for n in recipe.used_views("hint") if n != "student"]
    # a view with the student's own weights and context is the student's pass itself
    own = {n for n, v in recipe.used_views("hint").items() if (v.weights, v.context) == ("live", "plain")}
    read = ["the student", *(n for n in views if n not in own)]
    return (
        "if a step has several micro-batches or processes, one more forward pass without gradient of "
        f"{', '.join(read)} (of the student only, if targets are stored); nothing if train.micro_batch_size is not "
        "set"
    )


def text(recipe: Recipe) -> str:
    """Return a recipe as a page of text."""
    import yaml

    lines = [f"{recipe.name}: {recipe.title}", ""]
    promise = PROMISE[recipe.lowers_error] + (f": {recipe.lowers_error_why}" if recipe.lowers_error_why else "")
    rows = [
        ("trains on", trains_on(recipe)),
        ("rollouts", rollouts(recipe)),
        ("formula", recipe.formula),
        ("source", recipe.source),
        ("confidence", f"{recipe.confidence}: {CONFIDENCE[recipe.confidence]}"),
        ("verdict", recipe.verdict),
        ("published", recipe.published),
        ("ours", recipe.ours),
        ("lowers a sampled error token", promise),
        ("note", recipe.note),
        ("not done", recipe.changed),
        ("where", ", ".join(f"hintdistill.{m}" for m in recipe.mechanism)),
    ]
    lines += [f"{name}: {value}" for name, value in rows if value]
    wanted = needs(recipe)
    lines += ["", "needs:" if wanted else "needs: a hint and a student, nothing else"]
    lines += [f"  {n.name}: {n.why}\n    → {n.how}" for n in wanted]
    if statistics := over_step(recipe):
        lines += ["", "computed over all rows of an optimiser step:", *(f"  {s}" for s in statistics)]
        lines += [f"  cost: {over_step_costs(recipe)}"]
    data = settings(recipe)
    if data:
        lines += ["", f"train.recipe={recipe.name}, any key below can be set as train.recipe.KEY=VALUE:"]
        lines += [
            "  " + line for line in yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110).splitlines()
        ]
    return "\n".join(lines)
