"""Write docs/recipes.md from the recipes themselves: `make docs`."""

from __future__ import annotations

from pathlib import Path

from hintdistill.config import TrainSection
from hintdistill.recipes import load_recipe, missing, needs, parts, recipe_names
from hintdistill.recipes.describe import CONFIDENCE, PROMISE, trains_on
from hintdistill.recipes.teachers import TEACHERS
from hintdistill.training.capabilities import available

HEAD = """# Recipes

Written by `make docs` from `configs/recipes/`; do not edit.

A recipe is a named objective with its teacher rule, written as data:
`L = Σ_terms coef · N⁻¹ Σ_t W_t · ℓ(S_t, q_t; support)`. S is the un-hinted student, q is a log-linear combination of
views (weights × context), and W is a product of shapes of scores.

```
hintdistill recipes list                      every recipe
hintdistill recipes show rlcsd                formula, source, what is published and what is ours, needs, every key
hintdistill run CONFIG train.recipe=hint_sd   train with it
hintdistill run CONFIG train.recipe=hint_sd train.recipe.terms.distill.support.k=50 train.recipe.teacher.rate=0.01
```

In YAML, `train.recipe` is a name, a file (`my-recipe.yaml`, which may start from another recipe with `preset: NAME`),
or a mapping with `preset` and the keys to change. `null` removes a term. Any scalar of a term (coefficients,
temperatures, clips, and the parameters of divergences, signals and shapes) may be a schedule:
`coef: {from: 0.5, to: 0.0, start: 10, steps: 30}`. Two scalars are fixed per row and cannot be schedules:
`quote_weight` and `min_probability`. Adding a view, as in `target.loglin.plain=-0.5`, leaves the teacher's coefficient
at 1. `train.anchor.weight` sets the coefficient of the anchor, adds the default recipe's anchor to a recipe without
one, and removes the anchor if it is 0. Every key of a recipe has an effect; further details of a publication are given
in words under `published:`. If a run lacks something that its recipe needs, an error names it before the run starts.

`hint_sd` and most others need the teacher in the training step; `train.targets` is then set to `in_step` automatically.
A run trains on recorded steps of this student. The recipe decides which steps these are, and what the teacher reads
above them (`data.steps`, `data.hint.kind`; `inject.steps` and `inject.hint` override them): [contexts.md](contexts.md).
[methods.md](methods.md) says which methods run as published, which in part, and which have no recipe, and why.

`hintdistill.objectives` (torch only) computes all of it:
`objective(load_recipe("hint_sd"), Batch(views, sampled, lengths))`; `examples/custom_loop.py` is a complete loop.
`objectives.chunked_support.linear_term` computes a term from hidden states, without a dense `[N, V]`. A recipe with
additive coupling adds the loss of your reward if `objective(…, reward_loss=…)` gets one. In a run,
`train.recipe.coupling={kind: additive, weight: .5}` trains any recipe together with a policy gradient on the outcome
([training.md](training.md#beside-an-outcome-reward)). Recipes that read a reward or an advantage need one on every
trace.

## All recipes, and what they need

*Class* is the best source that was read: {classes}. *Error token* says whether one step lowers a sampled error token
that the teacher lowers (tested on a tabular model). *Runs* is `yes` (if traces have the rewards that it reads), or
names what a run lacks today.

| recipe | method | source | class | verdict | error token | runs |
|---|---|---|---|---|---|---|
"""

PLAIN = """
## What each recipe trains on here

The table says in plain words what a run trains on, whatever the publication trains on. If overrides change what defines
a recipe (who the teacher is and what it reads, the targets, what is compared and how, the weights, the coupling), the
log, the report and the model card call it "NAME, changed: …".

| recipe | a run trains |
|---|---|
"""

OPTIONS: dict[str, dict[str, str]] = {
    "supports": {
        "intersection": "the entries that both top k share: the other variant of Many Faces (`topk_sg`), with rest `renorm`",
        "token_set": "a list of tokens, `token_ids`: verdicts, tool names, a vocabulary chosen elsewhere",
    },
    "divergences": {
        "skew": "forward KL to a mixture with the student, bounded by log 1/α (DistiLLM, arXiv 2402.03898)",
        "skew_rkl": "reverse KL to a mixture with the student, bounded by log 1/α (DistiLLM)",
        "ce_topk": "cross-entropy on the kept entries: `fkl` without the target's entropy",
        "hidden_mse": "hidden states (OPRD): for your own loop, which passes them to `objective`; a run refuses it",
    },
    "signals of `pg`": {
        "softlog": "the gap on a logarithmic scale: large gaps count less, and none is cut off",
        "scale_only": "GNDPO's scale (`gndpo`) without its change of signs",
        "tanh_contrast": "RLCSD's contrast (`rlcsd`) without a verifier",
    },
    "scores": {
        "teacher_max": "the teacher's largest probability: how sure it is (LGR's diagnostic)",
        "surprisal": "the student's surprise at its own token; with the shape `exp_decay` it is Pedagogical RL's gate",
        "disagree": "how far several teachers differ; their views are called `teacher_NAME`",
        "ppl_S": "the student's perplexity of the step",
        "ppl_T": "the teacher's perplexity of the step",
    },
    "facts": {"in_quote": "1 on the quoted words of the step, else 0"},
    "shapes": {
        "last_n": "the last n tokens of each step",
        "rank_softmax": "shares over the rows of an optimiser step, from a score that a row has once (`ppl_T`)",
        "exp_decay": "1 up to κ, then falling: spikes of `surprisal` fade",
        "frontier": "4p(1 − p) of `group_acc`: tasks that sometimes succeed (SSOPD)",
        "frontier_root": "√(p(1 − p)) of `group_acc` (SC-SDPO)",
    },
    "loss spans": {
        "quote": "only the quoted words",
        "quote_weighted": "the whole step, with weight `quote_weight` on the quoted words",
    },
    "teacher updates": {"round_start": "in a loop of rounds: the policy that the round started from"},
    "hint kinds": {
        "reminder": "the tools of the trace (Composer 2.5)",
        "own_attempt": "the trace's own successful attempt (SD-Zero's context)",
        "bcq": "a right and a wrong rollout, without saying which is which (ZPPO)",
        "ncq": "wrong rollouts (ZPPO)",
        "file": "text of the task from a file: `inject.contexts.file`",
    },
    "contexts of a view": {
        "placebo": "a generic hint; the gate reads placebos with every recipe",
        "reminder": "the same as the hint kind",
        "own_success": "the same as the hint kind `own_attempt`",
        "bcq": "the same as the hint kind",
        "ncq": "the same as the hint kind",
        "file": "the same as the hint kind",
    },
}
"""Parts that no shipped recipe uses: kind → name → what it is for. tests/recipes/test_parts_are_used.py holds that each acts."""

CHOICES = """
## Parts that no shipped recipe uses

Any recipe can use them, and each has an effect. Shipped recipes use all other parts in the list below.
`hintdistill.objectives.diagnostics` (`preflight_gap`, `locality`, `rock_tokens`, `cliff_lambda`, …) has functions for your own loop.

| part | purpose |
|---|---|
"""

TAIL = """
## Parts of methods that are left out

| method | why | available instead |
|---|---|---|
| SG-OPD, reading (b) | the notes do not say from which base the method extrapolates | reading (a), and `exopd` |
| Rock tokens' context window | it is not in the code that was read | `freeze` by token id |
| SC-GRPO's diversity pseudo-advantage | it needs a random reference rollout | the weight |
| TrOPD's term on the teacher's prefix (weight .001) | recorded traces have no such prefix | the two other terms |
| KAT's buffer, Prune-OPD's budget, Decoupling's curriculum | each changes how long the next rollouts are, or a level over many steps; recorded steps have a fixed length | KAT's level within one optimiser step, Prune-OPD's weight, and Decoupling's two directions |
| RG-OPD's gate by rows, MAD-OPD's shares of teachers, SocraticPO's decay, PBSD's and VPD's preferences of sequences | a run has no sampled teacher, no second teacher and no aided attempts | see [methods.md](methods.md) |
| AntiSD's bounded inverse, SDPG's positive-advantage gate, UniSD's agreement over auxiliary contexts | a survey has one line on each; no formula was read | `threshold` of `advantage` is SDPG's gate; `disagree` is close to UniSD's agreement; UniSD's clip is `token_clip` |

## Parts

| part | kinds |
|---|---|
"""  # noqa: E501


def runs(name: str) -> str:
    """`yes`, or what is missing."""
    recipe = load_recipe(name)
    lacking = missing(recipe, available(TrainSection(recipe=name)))
    return "needs " + ", ".join(f"`{n.name}`" for n in lacking) if lacking else "yes"


def plain(name: str) -> str:
    """The row of a recipe that says in plain words what a run trains with it."""
    return f"| `{name}` | {trains_on(load_recipe(name))} |"


def page() -> str:
    """The whole page."""
    lines = []
    for name in recipe_names():
        r = load_recipe(name)
        promise = PROMISE[r.lowers_error]
        lines.append(f"| `{name}` | {r.title} | {r.source} | {r.confidence} | {r.verdict} | {promise} | {runs(name)} |")
    classes = "; ".join(f"{k} {v}" for k, v in CONFIDENCE.items())
    tables = {
        "supports": parts.SUPPORTS,
        "remainders": parts.RESTS,
        "divergences": {e.name: [p.name for p in e.parameters] for e in parts.DIVERGENCES.entries()},
        "signals of `pg`": {name: [p.name for p in taken] for name, taken in parts.SIGNALS.items()},
        "scores": parts.SCORES,
        "facts a caller supplies": parts.FACTS,
        "shapes": {e.name: [p.name for p in e.parameters] for e in parts.SHAPES.entries()},
        "normalisers": parts.NORMALISERS,
        "loss spans": parts.SPANS,
        "contexts of a view": parts.context_names(),
        "couplings": parts.COUPLINGS,
        "teacher updates": TEACHERS.names(),
        "hint kinds": parts.HINTS.names(),
    }
    takes = ("divergences", "signals of `pg`", "shapes")
    rows = []
    for part, kinds in tables.items():
        words = [
            f"`{k}`" + (f" ({', '.join(kinds[k])})" if part in takes and isinstance(kinds, dict) and kinds[k] else "")
            for k in kinds
        ]
        rows.append(f"| {part} | {', '.join(words)} |")
    known = sorted({n.name for name in recipe_names() for n in needs(load_recipe(name))})
    foot = "\n\nNeeds that appear above: " + ", ".join(f"`{n}`" for n in known) + ".\n"
    options = [f"| {kind}: `{name}` | {what} |" for kind, named in OPTIONS.items() for name, what in named.items()]
    words = PLAIN + "\n".join(plain(name) for name in recipe_names()) + "\n"
    before = HEAD.replace("{classes}", classes) + "\n".join(lines) + "\n" + words
    return before + CHOICES + "\n".join(options) + "\n" + TAIL + "\n".join(rows) + foot


if __name__ == "__main__":
    (Path(__file__).parent / "recipes.md").write_text(page(), encoding="utf-8")
