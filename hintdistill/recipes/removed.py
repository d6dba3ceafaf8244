"""Methods that have no recipe: what each needs that no run has, why it was not built, and which part of it is used elsewhere.

A recipe runs as the method it is named after, or there is none of that name. `docs/methods.md` lists these beside the recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NotBuilt:
    """A method without a recipe."""

    title: str
    source: str
    need: str
    """What it needs that no run has."""
    why: str
    """Why that was not built."""
    instead: str = ""
    """What there is in its place, or of it; empty if nothing is."""
    runs: Literal["itself", "mechanism", "no"] = "no"
    """Whether it runs as itself by other means than a recipe, a mechanism of it is at work in a run, or neither."""


NOT_BUILT: dict[str, NotBuilt] = {
    "adwin": NotBuilt(
        "ADWIN, an adaptive window of first tokens",
        "arXiv 2605.28396 (notes)",
        "gradients of prefix and whole rollout, compared every few steps, and a window that the comparison moves",
        "the notes give no thresholds, and on steps of 10 to 40 tokens a window saves nothing",
        "a fixed window: the recipe `esr`, or any recipe with a weight `{score: index, shape: first_n}`",
    ),
    "align_dpca": NotBuilt(
        "The tokenizer barrier (DPCA)",
        "arXiv 2606.09456",
        "a teacher with another tokenizer, its chunks aligned by decoded text",
        "self-distillation has one tokenizer, and an external teacher must share it",
    ),
    "bcq_ncq": NotBuilt(
        "ZPPO's replay of hard prompts",
        "arXiv 2606.18216 (notes)",
        "a buffer of tasks that come back until they are solved",
        "rounds draw tasks afresh; the teacher never enters ZPPO's gradient, so that it is no distillation",
        "its two contexts are context makers, `bcq` and `ncq`",
        "mechanism",
    ),
    "critic_distill": NotBuilt(
        "Z-Reward, scoring without reasoning",
        "arXiv 2606.09076 (abstract)",
        "a reward model's scores of images, and its reasoning traces",
        "it trains a reward model, not an agent; the abstract has no formula",
    ),
    "extrapolate_guarded": NotBuilt(
        "ExOPD with a cliff guard",
        "arXiv 2605.08737",
        "the teacher's modal probability on structural tokens, measured during training, and the bound λ*",
        "no run measures it, so there would be no guard",
        "the extrapolated target without a guard: the recipe `exopd`; the bound is `objectives.diagnostics.cliff_lambda`",
    ),
    "geometry": NotBuilt(
        "Geometry of on-policy distillation",
        "arXiv 2606.07082",
        "no training: it only measures the weights after one",
        "no report has this measurement; the paper finds that LoRA of rank 16 or more is enough, and 32 is the default",
    ),
    "guided_surprisal": NotBuilt(
        "Pedagogical RL's surprisal gate",
        "noahziems.com/pedagogical-rl (notes)",
        "a teacher that is itself trained by RL, and rollouts under its guidance",
        "training the teacher is a separate training",
        "a weight `{score: surprisal, shape: exp_decay}` in any recipe",
    ),
    "lgr": NotBuilt(
        "LGR, look-ahead rewards",
        "arXiv 2605.30833 (notes)",
        "K further questions to the teacher for each token",
        "it costs K prefills a token, and by its own figures gains nothing on short steps",
    ),
    "mad_opd": NotBuilt(
        "MAD-OPD, multi-agent debate",
        "arXiv 2605.01347",
        "two teachers that debate over two rounds, each with a confidence",
        "in a run the teacher never generates text",
        "a debate held elsewhere can be used as a context: `inject.hint=file` with `inject.contexts.file`",
    ),
    "noisy_expert": NotBuilt(
        "Noisy experts, why on-policy",
        "arXiv 2606.30923 (abstract)",
        "an algorithm: the paper is about a theorem",
        "the abstract has no algorithm",
        "every run trains on the student's own steps, for the reason that the theorem gives",
    ),
    "omni_chunk": NotBuilt(
        "OmniOPD, agreement of sampled chunks",
        "arXiv 2606.01476",
        "ten continuations of the teacher at each of ten places of a rollout",
        "the teacher would have to generate text during training",
        "its KL on tokens that are not audited is the term `anchor`; its choice by entropy is `{score: H_S, shape: top_frac}`",
        "mechanism",
    ),
    "opct": NotBuilt(
        "OPCT, consistency under perturbation",
        "arXiv 2605.21834, released code",
        "prompts that come in a clean and a perturbed form",
        "a context maker only adds text to a context; the sources have no such pairs",
    ),
    "ophsd": NotBuilt(
        "OPHSD, harness self-distillation",
        "github.com/zzy1127/OPHSD",
        "a harness (plan and solve, draft and verify) that the current weights run on every task",
        "a run has no such harness",
        "the output of a harness can be used as a context: `inject.hint=file` with `inject.contexts.file`",
    ),
    "oprd": NotBuilt(
        "OPRD, on-policy representation distillation",
        "arXiv 2606.06021",
        "hidden states of all layers of student and teacher at the step's tokens",
        "a training step keeps only those of the last layer, so that long steps fit into memory",
        "the divergence `hidden_mse`, for your own loop that passes hidden states to `objective`",
    ),
    "pbsd_seq": NotBuilt(
        "PBSD by sequence",
        "arXiv 2605.05040 (notes)",
        "a step decoded from the hinted teacher, in addition to the student's step",
        "the teacher would have to generate text",
        "its token form is the recipe `pbsd_token`, its tilted target `pbsd_tilt`",
    ),
    "pi_distill": NotBuilt(
        "π-Distill and its on-policy variant",
        "arXiv 2602.04942",
        "a teacher that is trained on its own hinted rollouts, together with the student",
        "a recipe is one objective on one policy's rollouts; this method alternates between two",
        "its penalty on the student's side is `tm_opd`'s signal under a hint: the recipe `openclaw_pg`",
    ),
    "preflight": NotBuilt(
        "Predictive law of self-distillation",
        "arXiv 2605.30070",
        "no training: it predicts a gain from success with and without the hint",
        "it is a prediction and not an objective",
        "it runs as published: `hintdistill preflight RUN`",
        "itself",
    ),
    "recoverable_hint": NotBuilt(
        "ViCuR's recoverable privilege",
        "arXiv 2606.05718",
        "a vision module",
        "agents' traces here are text",
        "its argument is a guard in every run: `leak` in `rescore.gate.checks`",
        "mechanism",
    ),
    "regime_route": NotBuilt(
        "RAPS-DA, one specialist per regime",
        "arXiv 2606.30518 (abstract)",
        "a specialist for each regime of errors, trained beforehand",
        "there are no such specialists, and the abstract has no formula for the selector",
    ),
    "resample_suffix": NotBuilt(
        "Near-future guidance, TOPD-OT",
        "arXiv 2606.00305",
        "short continuations by student and teacher at hundreds of places of a rollout",
        "both would have to generate text during training",
    ),
    "reward_decay": NotBuilt(
        "SocraticPO's decay of aided rewards",
        "arXiv 2606.09887, released code",
        "attempts at one task with growing aid",
        "no run plays a failed task again with aid",
    ),
    "rubric": NotBuilt(
        "ROPD's rubrics",
        "arXiv 2605.07396 (notes)",
        "a rubric per task and a verifier that scores by it",
        "the score would be a reward, and rewards come from the environment",
        "any reward on traces can be trained on: `train.recipe.coupling.kind=additive`",
    ),
    "safesteer": NotBuilt(
        "SafeSteer, a steered teacher on a sparse support",
        "arXiv 2606.02530",
        "a direction in the residual stream, and a vocabulary chosen by votes",
        "teachers here differ in what they read, not in what is added to their activations",
        "sparse supports: `support: {kind: token_set, token_ids: […]}`",
    ),
    "sd_zero": NotBuilt(
        "SD-Zero, self-revision then self-distillation",
        "arXiv 2604.12002",
        "a reviser that is trained first, by RL on its own revisions",
        "this needs a separate training first; an untrained reviser is not the method",
        "its context, the model's own successful attempt, is the context maker `own_success`",
    ),
    "trb": NotBuilt(
        "TRB, trust-region behaviour blending",
        "arXiv 2605.31159",
        "rollouts sampled token by token from a blend of student and teacher",
        "samplers here ask one policy, because traces must be the student's own",
        "the recipe `veto` uses the same bridge as a target, on recorded steps",
    ),
    "vpd": NotBuilt(
        "VPD, variational policy distillation from feedback",
        "arXiv 2605.15113",
        "a teacher that is trained between the student's steps (its E-step)",
        "a recipe is one objective, and this method alternates between two. Without the E-step it is SDPO",
        "its M-step is `sdpo_feedback`",
    ),
}
"""By the name that a recipe of it had, or would have."""


def why_removed(name: str) -> str | None:
    """Why there is no recipe of this name, and what there is; None for a name that never was one."""
    found = NOT_BUILT.get(name)
    if found is None:
        return None
    said = f"{found.title} has no recipe: it needs {found.need}; {found.why}"
    return f"{said}. Use instead: {found.instead}" if found.instead else said
