"""The sections about environments: rollouts and the on-policy loop."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from hintdistill.config.base import Section
from hintdistill.core.paths import ObjectPath


class ServerSection(Section):
    """Configure a vLLM server that samples the rollouts and receives the new weights in each round. It is used if it
    has an address."""

    newer: ClassVar[tuple[str, ...]] = (
        "hand_over",
        "sleep",
    )

    base_url: str | None = None
    """Address of the server, e.g. `http://localhost:8000/v1`. If unset, this process samples. Start the server with
    VLLM_SERVER_DEV_MODE=1, so that it can load new weights; see docs/environments.md."""
    model: str | None = None
    """The model's name on the server; default: the only model it serves."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts outside this machine that may receive the episodes, as token ids."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    timeout_s: float = Field(default=300.0, gt=0)
    """Seconds for one whole answer."""
    retries: int = Field(default=3, ge=0)
    """Number of retries after a rate limit, a server error or a time-out."""
    concurrency: int = Field(default=64, ge=1)
    """Number of steps sampled at the same time."""
    hand_over: Literal["weights", "adapter"] = "weights"
    """What the server receives in each round. `weights`: whole weights, which replace its own; `adapter`: only the
    low-rank adapter, applied to the initial model that it serves; this sends megabytes instead of gigabytes. `adapter`
    needs `train.lora` and a server started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; see
    docs/environments.md."""
    sleep: bool = False
    """Let the server free its memory while this process trains, and wake it for the next round. For one accelerator
    that both share. Needs vLLM's --enable-sleep-mode, which does not exist on CPUs."""
    max_gap_nats: float = Field(default=0.02, gt=0)
    """Largest mean |log p on the server − log p here| per token after the weights are handed over, in nats. A larger
    gap means that the server has other weights."""


class SampleSection(Section):
    """Configure the fresh episodes of each round of the loop."""

    split: str = "train"
    """Split of the environment whose tasks are played."""
    tasks: tuple[str, ...] = ("*",)
    """Play only tasks whose name matches one of these patterns (shell style)."""
    episodes: int = Field(default=192, ge=1)
    """Episodes per round. Each round draws tasks without replacement; tasks repeat if there are too few."""
    per_task: int = Field(default=1, ge=1)
    """Episodes of each task drawn. They form the group within which an outcome reward's advantage is computed
    (`training/reward.py`)."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Sampling temperature of the fresh episodes."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample from the most likely tokens that together have this probability, after temperature and `top_k`; 1 keeps
    all tokens."""
    top_k: int = Field(default=0, ge=0)
    """Sample from this many most likely tokens; 0 keeps all tokens."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Sample from tokens with at least this share of the most likely token's probability."""
    server: ServerSection = ServerSection()

    @property
    def backend(self) -> Literal["transformers", "server"]:
        """Return who samples: the server if one has an address, else the weights in this process."""
        return "server" if self.server.base_url else "transformers"

    @model_validator(mode="after")
    def _whole_groups(self) -> SampleSection:
        if self.episodes % self.per_task:
            raise ValueError(f"{self.episodes} episodes cannot be divided into groups of {self.per_task} per task")
        return self


class StopSection(Section):
    """Set the conditions under which the loop ends before its last round."""

    min_findings: int = Field(default=1, ge=1)
    """The loop ends if a round has fewer findings."""
    min_effect_nats: float = Field(default=0.5, ge=0.0)
    """The loop ends if the median drop of the decision token is smaller, in nats."""
    max_off_target_kl: float | None = Field(default=0.1, gt=0.0)
    """Tripwire: largest KL(initial ‖ student) off target, in nats per token. If it is exceeded, the student of the
    previous round is kept."""
    max_changes_drop: float | None = Field(default=0.5, gt=0.0, lt=1.0)
    """Tripwire: largest fall of the successful calls per episode of tools that change state, as a share of the
    initial policy's. Applies if the environment says which tools those are (`tool_effects`); without a loop the
    report warns."""
    max_failed_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Tripwire: largest share of a round's episodes that fail without a result (cut steps, endless episodes)."""


class RolloutSection(Section):
    """Configure the environment in which fresh traces are sampled and success is measured; there is none by default."""

    newer: ClassVar[tuple[str, ...]] = ("overlap", "source")

    environment: ObjectPath | None = None
    """`path/to/file.py:Name` or `package.module:Name` of a TaskSuite."""
    splits: tuple[str, ...] = ("test",)
    """Splits to measure. The first one gives `environment.before` and `environment.after`; the report shows all of
    them."""
    limit: int | None = Field(default=None, ge=1)
    """Maximum number of tasks per split."""
    temperature: float = Field(default=0.0, ge=0.0)
    """Sampling temperature for measuring success; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Like `sample.top_p`, for measuring success."""
    top_k: int = Field(default=0, ge=0)
    """Like `sample.top_k`, for measuring success."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Like `sample.min_p`, for measuring success."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Maximum number of tokens in one step."""
    max_steps: int = Field(default=16, ge=1)
    """Maximum number of steps in an episode."""
    batch_size: int = Field(default=64, ge=1)
    """Number of episodes sampled together in this process."""
    timeout_s: float | None = Field(default=60.0, gt=0.0)
    """Seconds that the environment may take for one answer. If it takes longer, the episode is lost."""
    sample: SampleSection = SampleSection()
    overlap: bool = False
    """Let the server sample the next round's episodes while this round trains. The policy that samples them is then
    one round old. Recipes with an importance ratio use the log-probabilities recorded with these episodes."""
    stop: StopSection = StopSection()
    source: Literal["environment", "replay"] = "environment"
    """Source of the traces in each round of the loop. `environment`: the student plays whole episodes. `replay`:
    without an environment, the student acts once at each of `sample.episodes` steps, which are drawn each round from
    recorded traces (`traces.path`). An LLM critic sees the recorded step and what followed it as context. This follows
    ReOPD (arXiv 2607.04763)."""

    @model_validator(mode="after")
    def _overlaps(self) -> RolloutSection:
        if self.overlap and self.sample.backend != "server":
            raise ValueError("overlap needs a server that samples: set sample.server.base_url")
        if self.overlap and self.sample.server.sleep:
            raise ValueError("with overlap the server samples during training, so it cannot sleep")
        if self.overlap and self.source == "replay":
            raise ValueError("overlap plays whole episodes during training, but replay samples single steps")
        return self
