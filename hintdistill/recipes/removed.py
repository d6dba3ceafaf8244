"""List methods without a recipe: what each needs that no run has, why it was not built, and which part is used
elsewhere.

A recipe must run as the method after which it is named, or else it does not exist. `docs/methods.md` lists these
methods together with the recipes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NotBuilt:
    """Describe a method without a recipe."""

    title: str
    source: str
    need: str
    """Its need that no run meets."""
    why: str
    """The reason why it was not built."""
    instead: str = ""
    """An existing alternative, or a part of the method that exists; empty if there is neither."""
    runs: Literal["itself", "mechanism", "no"] = "no"
    """Whether the method runs by other means than a recipe, only a mechanism of it is used in a run, or neither."""


NOT_BUILT: dict[str, NotBuilt] = {
    "adwin": NotBuilt(
        "ADWIN, an adaptive window of first tokens",
        "arXiv 2605.28396 (notes)",
        "gradients of prefix and whole rollout, compared every few steps, and a window that the comparison moves",
        "the notes give no thresholds; ours would be a method of our own, and on steps of 10 to 40 tokens there is no window to save",
        "a fixed window: the recipe `esr`, or any recipe with a weight `{score: index, shape: first_n}`",
    ),
    "align_dpca": NotBuilt(
        "The tokenizer barrier (DPCA)",
        "arXiv 2606.09456",
        "a teacher with another tokenizer, whose chunks are aligned by decoded text",
        "self-distillation uses one tokenizer, and an external teacher must share it",
    ),
    "bcq_ncq": NotBuilt(
        "ZPPO's replay of hard prompts",
        "arXiv 2606.18216 (notes)",
        "a buffer of tasks that come back until they are solved",
        "rounds draw new tasks; the teacher does not enter ZPPO's gradient, so it is not distillation",
        "its two contexts are context makers, `bcq` and `ncq`",
        "mechanism",
    ),
    "critic_distill": NotBuilt(
        "Z-Reward, scoring without reasoning",
        "arXiv 2606.09076 (abstract)",
        "a reward model's scores and its reasoning traces about images",
        "it trains a reward model, not an agent; the abstract has no formula",
    ),
    "extrapolate_guarded": NotBuilt(
        "ExOPD with a cliff guard",
        "arXiv 2605.08737",
        "the teacher's modal probability on structural tokens, measured during training, and the bound λ*",
        "no run measured it, so there was no guard",
        "the extrapolated target without a guard: the recipe `exopd`; the bound is `objectives.diagnostics.cliff_lambda`",
    ),
    "geometry": NotBuilt(
        "Geometry of on-policy distillation",
        "arXiv 2606.07082",
        "nothing that trains: it measures the weights after training",
        "no report shows it; by its finding LoRA of rank 16 or more suffices, and 32 is the default",
    ),
    "guided_surprisal": NotBuilt(
        "Pedagogical RL's surprisal gate",
        "noahziems.com/pedagogical-rl (notes)",
        "a teacher that is itself trained by RL, and rollouts under its guidance",
        "the teacher would have to be trained separately",
        "a weight `{score: surprisal, shape: exp_decay}` in any recipe",
    ),
    "lgr": NotBuilt(
        "LGR, look-ahead rewards",
        "arXiv 2605.30833 (notes)",
        "K further queries to the teacher for each token",
        "it costs K prefills per token, and by its own figures gains nothing on short steps",
    ),
    "mad_opd": NotBuilt(
        "MAD-OPD, multi-agent debate",
        "arXiv 2605.01347",
        "two teachers that debate over two rounds, with a confidence each",
        "no teacher in a run generates text",
        "a debate from elsewhere can be used as a context: `inject.hint=file` with `inject.contexts.file`",
    ),
    "noisy_expert": NotBuilt(
        "Noisy experts, why on-policy",
        "arXiv 2606.30923 (abstract)",
        "it is a theorem, not an algorithm",
        "the abstract has no algorithm",
        "the reason why every run trains on the student's own steps",
    ),
    "omni_chunk": NotBuilt(
        "OmniOPD, agreement of sampled chunks",
        "arXiv 2606.01476",
        "ten continuations of the teacher at each of ten positions in a rollout",
        "the teacher would have to generate text during training",
        "its KL on unaudited tokens is the term `anchor`; its selection by entropy is `{score: H_S, shape: top_frac}`",
        "mechanism",
    ),
    "opct": NotBuilt(
        "OPCT, consistency under perturbation",
        "arXiv 2605.21834, released code",
        "prompts in a clean and a perturbed form",
        "a context maker adds to a context and removes nothing; the sources have no such pairs",
    ),
    "ophsd": NotBuilt(
        "OPHSD, harness self-distillation",
        "github.com/zzy1127/OPHSD",
        "a harness (plan and solve, draft and verify) that the current weights run on every task",
        "a run has no such harness",
        "a harness's output can be used as a context: `inject.hint=file` with `inject.contexts.file`",
    ),
    "oprd": NotBuilt(
        "OPRD, on-policy representation distillation",
        "arXiv 2606.06021",
        "hidden states of all layers of student and teacher at the step's tokens",
        "a training step keeps only those of the last layer, so that a long step fits into memory",
        "the divergence `hidden_mse`, for a loop of your own that hands hidden states to `objective`",
    ),
    "pbsd_seq": NotBuilt(
        "PBSD by sequence",
        "arXiv 2605.05040 (notes)",
        "a step decoded from the hinted teacher for each step of the student",
        "the teacher would have to generate text",
        "its token form is the recipe `pbsd_token`, its tilted target `pbsd_tilt`",
    ),
    "pi_distill": NotBuilt(
        "π-Distill and its on-policy variant",
        "arXiv 2602.04942",
        "a teacher that is trained on its own hinted rollouts together with the student",
        "a recipe is one objective on one policy's rollouts; this method alternates between two",
        "its penalty on the student's side is `tm_opd`'s signal under a hint: the recipe `openclaw_pg`",
    ),
    "preflight": NotBuilt(
        "Predictive law of self-distillation",
        "arXiv 2605.30070",
        "nothing that trains: it predicts a gain from success with the hint and without it",
        "it is not a training method",
        "it has its own command: `hintdistill preflight RUN`",
        "itself",
    ),
    "recoverable_hint": NotBuilt(
        "ViCuR's recoverable privilege",
        "arXiv 2606.05718",
        "a vision module",
        "agents' traces here are text",
        "its argument is used as a guard in every run: the check `leak` of `rescore.gate.checks`",
        "mechanism",
    ),
    "regime_route": NotBuilt(
        "RAPS-DA, one specialist per regime",
        "arXiv 2606.30518 (abstract)",
        "a specialist for each regime of errors, trained beforehand",
        "there are no specialists, and the abstract has no formula for the selector",
    ),
    "resample_suffix": NotBuilt(
        "Near-future guidance, TOPD-OT",
        "arXiv 2606.00305",
        "short continuations of student and teacher at hundreds of positions in a rollout",
        "both would have to generate text during training",
    ),
    "reward_decay": NotBuilt(
        "SocraticPO's decay of aided rewards",
        "arXiv 2606.09887, released code",
        "attempts at one task under growing aid",
        "no run plays a failed task again with aid",
    ),
    "rubric": NotBuilt(
        "ROPD's rubrics",
        "arXiv 2605.07396 (notes)",
        "a rubric per task and a verifier that scores by it",
        "the score would be a reward, and rewards are the task of the environment",
        "any reward on traces trains: `train.recipe.coupling.kind=additive`",
    ),
    "safesteer": NotBuilt(
        "SafeSteer, a steered teacher on a sparse support",
        "arXiv 2606.02530",
        "a direction in the residual stream, and a vocabulary chosen by votes",
        "teachers here differ by their context, not by changes to their activations",
        "sparse supports: `support: {kind: token_set, token_ids: […]}`",
    ),
    "sd_zero": NotBuilt(
        "SD-Zero, self-revision then self-distillation",
        "arXiv 2604.12002",
        "a reviser that is first trained by RL on its own revisions",
        "it needs a separate training beforehand; an untrained reviser is not the method",
        "its context, the model's own successful attempt, is the context maker `own_success`",
    ),
    "trb": NotBuilt(
        "TRB, trust-region behaviour blending",
        "arXiv 2605.31159",
        "rollouts sampled token by token from a blend of student and teacher",
        "samplers here use one policy, and traces are the student's own",
        "the same bridge as a target, on recorded steps: the recipe `veto`",
    ),
    "vpd": NotBuilt(
        "VPD, variational policy distillation from feedback",
        "arXiv 2605.15113",
        "a teacher that is trained between the student's steps (its E-step)",
        "a recipe is one objective; this method alternates between two. Without the E-step it is SDPO",
        "its M-step is `sdpo_feedback`",
    ),
}
"""Methods by the name that their recipe had, or would have."""


def why_removed(name: str) -> str | None:
    """Return the reason why there is no recipe of this name, and the alternative; None if the name was never one of a
    method."""
    found = NOT_BUILT.get(name)
    if found is None:
        return None
    said = f"{found.title} has no recipe: it needs {found.need}; {found.why}"
    return f"{said}. Available instead: {found.instead}" if found.instead else said
