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

A recipe is a named objective with its teacher rule, as data: `L = Σ_terms coef · N⁻¹ Σ_t W_t · ℓ(S_t, q_t; support)`, where S is the
un-hinted student, q a log-linear combination of views (weights × context), W a product of shapes of scores.

```
hintdistill recipes list                      every recipe
hintdistill recipes show rlcsd                formula, source, what is published and what is ours, needs, every key
hintdistill run CONFIG train.recipe=hint_sd   train with it
hintdistill run CONFIG train.recipe=hint_sd train.recipe.terms.distill.support.k=50 train.recipe.teacher.rate=0.01
```

In YAML, `train.recipe` is a name, a file (`my-recipe.yaml`, which may start from another by `preset: NAME`), or a mapping with `preset`
and the keys to change. `null` takes a term away. Any scalar of a term (coefficients, temperatures, clips, and the parameters of
divergences, signals and shapes) may be a schedule: `coef: {from: 0.5, to: 0.0, start: 10, steps: 30}`. Static per row, and so no schedules:
`quote_weight`, `min_probability`. A view beside the teacher, `target.loglin.plain=-0.5`, leaves the teacher's coefficient 1 where it is.
`train.anchor.weight` sets the coefficient of the anchor, adds the default recipe's anchor to a recipe without one, and takes it away at 0.
Every key of a recipe acts; what a publication says beside them stands in words under `published:`.
What a recipe needs and the run lacks stops the run before it starts, with the missing piece named.

`hint_sd` and most others need the teacher in the training step; `train.targets` then is `in_step` by itself. A run trains on recorded
steps of this student. The recipe decides which steps, and what the teacher reads above them (`data.steps`, `data.hint.kind`; `inject.steps`
and `inject.hint` say it in its place): [contexts.md](contexts.md). [methods.md](methods.md) says which methods run as themselves, which in
part, and which have no recipe and why.

`hintdistill.objectives` (torch only) computes all of it: `objective(load_recipe("hint_sd"), Batch(views, sampled, lengths))`;
`examples/custom_loop.py` is a whole loop. `objectives.chunked_support.linear_term` is a term from hidden states, without a dense `[N, V]`.
A recipe whose coupling is additive adds the loss of your reward where `objective(…, reward_loss=…)` gets one; in a run,
`train.recipe.coupling={kind: additive, weight: .5}` trains any of them beside a policy gradient on the outcome
([training.md](training.md#beside-an-outcome-reward)). Recipes that read a reward or an advantage need one on every trace.

## What each is, and what it needs

*Class*: the best source read: {classes}. *Error token*: whether one step lowers a sampled error token which the
teacher lowers (tested on a tabular model). *Runs*: `yes` (where traces have the rewards it reads), or what a run lacks today.

| recipe | what | source | class | verdict | error token | runs |
|---|---|---|---|---|---|---|
"""

PLAIN = """
## What each trains on here

In plain words, whatever a publication trains on. A recipe whose overrides change what defines it (who the teacher is and what it reads,
the targets, what is compared and how, the weights, the coupling) is called "NAME, changed: …" in the log, the report and the model card.

| recipe | a run trains |
|---|---|
"""

OPTIONS: dict[str, dict[str, str]] = {
    "supports": {
        "intersection": "what both top k share: the other variant of Many Faces (`topk_sg`), with rest `renorm`",
        "token_set": "a list of tokens, `token_ids`: verdicts, tool names, a vocabulary that was chosen elsewhere",
    },
    "divergences": {
        "skew": "forward KL to a mixture with the student, bounded by log 1/α (DistiLLM, arXiv 2402.03898)",
        "skew_rkl": "reverse KL to a mixture with the student, bounded by log 1/α (DistiLLM)",
        "ce_topk": "cross-entropy on the kept entries: `fkl` without the target's entropy",
        "hidden_mse": "hidden states (OPRD): for a loop of your own, which hands them to `objective`; a run refuses it",
    },
    "signals of `pg`": {
        "softlog": "the gap, growing with its logarithm: large gaps count less, none is cut off",
        "scale_only": "GNDPO's scale (`gndpo`) without its change of signs",
        "tanh_contrast": "RLCSD's contrast (`rlcsd`) without a verifier",
    },
    "scores": {
        "teacher_max": "the teacher's largest probability: how sure it is (LGR's diagnostic)",
        "surprisal": "the student's surprise at its own token; with the shape `exp_decay` Pedagogical RL's gate",
        "disagree": "how far several teachers differ: views called `teacher_NAME`",
        "ppl_S": "the student's perplexity of the step",
        "ppl_T": "the teacher's perplexity of the step",
    },
    "facts": {"in_quote": "1 on the quoted words of the step"},
    "shapes": {
        "last_n": "the last n tokens of each step",
        "rank_softmax": "shares over the rows of an optimiser step, from a score that a row has once (`ppl_T`)",
        "exp_decay": "1 up to κ, then falling: spikes of `surprisal` fade",
        "frontier": "4p(1 − p) of `group_acc`: tasks that sometimes succeed (SSOPD)",
        "frontier_root": "√(p(1 − p)) of `group_acc` (SC-SDPO)",
    },
    "loss spans": {
        "quote": "the quoted words alone",
        "quote_weighted": "the whole step, its quoted words `quote_weight` times",
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
        "placebo": "a generic hint; every gate reads placebos, whatever the recipe",
        "reminder": "as the hint kind",
        "own_success": "as the hint kind `own_attempt`",
        "bcq": "as the hint kind",
        "ncq": "as the hint kind",
        "file": "as the hint kind",
    },
}
"""Parts that no shipped recipe uses: kind → name → what it is for. tests/recipes/test_parts_are_used.py holds that each acts."""

CHOICES = """
## Parts that no shipped recipe uses

Any recipe can take them, and each acts; every other part of the list below is used by a recipe.
`hintdistill.objectives.diagnostics` (`preflight_gap`, `locality`, `rock_tokens`, `cliff_lambda`, …) has functions for a loop of your own.

| part | what for |
|---|---|
"""

TAIL = """
## Left out of methods that are here

| method | why | what is |
|---|---|---|
| SG-OPD, reading (b) | the notes do not say on which base the extrapolation stands | reading (a), and `exopd` |
| Rock tokens' context window | not in the code that was read | `freeze` by token id |
| SC-GRPO's diversity pseudo-advantage | needs a random reference rollout | the weight |
| TrOPD's term on the teacher's prefix (weight .001) | recorded traces have no such prefix | its two other terms |
| KAT's buffer, Prune-OPD's budget, Decoupling's curriculum | each moves how long the next rollouts are, or a level over many steps; recorded steps have the length they have | KAT's level over an optimiser step, Prune-OPD's weight, Decoupling's two directions |
| RG-OPD's gate by rows, MAD-OPD's shares of teachers, SocraticPO's decay, PBSD's and VPD's preferences of sequences | a run has no sampled teacher, no second teacher and no aided attempts | [methods.md](methods.md) says what there is in their place |
| AntiSD's bounded inverse, SDPG's positive-advantage gate, UniSD's agreement over auxiliary contexts | one line each in a survey, no formula read | `threshold` of `advantage` is SDPG's gate; `disagree` is near UniSD's agreement; UniSD's clip is `token_clip` |

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
