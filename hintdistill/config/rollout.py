"""The parts of the configuration that speak of environments: rollouts and the on-policy loop."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from hintdistill.config.base import Section
from hintdistill.core.paths import ObjectPath


class ServerSection(Section):
    """A vLLM server that samples the rollouts and gets the new weights in each round, if it has an address."""

    newer: ClassVar[tuple[str, ...]] = (
        "hand_over",
        "sleep",
    )

    base_url: str | None = None
    """If set, the server samples; else the weights in this process do. E.g. `http://localhost:8000/v1`. Start it with
    VLLM_SERVER_DEV_MODE=1, so that it can load new weights; see docs/environments.md."""
    model: str | None = None
    """The server's name of the model; default: the only one it serves."""
    allow_hosts: tuple[str, ...] = ()
    """Hosts outside this machine that may receive the episodes, as token ids."""
    api_key_env: str = "OPENAI_API_KEY"
    """Name of the environment variable that holds the key."""
    timeout_s: float = Field(default=300.0, gt=0)
    """For one whole answer."""
    retries: int = Field(default=3, ge=0)
    """Further attempts after a rate limit, a server error or a time-out."""
    concurrency: int = Field(default=64, ge=1)
    """Steps in flight."""
    hand_over: Literal["weights", "adapter"] = "weights"
    """What the server gets in each round. `weights`: whole weights, which replace its own; `adapter`: only the
    low-rank adapter, on the initial model that it serves: megabytes instead of gigabytes. Needs `train.lora` and a
    server started with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; see docs/environments.md."""
    sleep: bool = False
    """Let the server free its memory while this process trains, and wake it for the next round; for one accelerator
    that both share. Needs vLLM's --enable-sleep-mode, which a CPU does not have."""
    max_gap_nats: float = Field(default=0.02, gt=0)
    """Largest mean |log p server − log p here| per token after a hand-over, in nats. A larger gap means that the
    server has other weights."""


class SampleSection(Section):
    """The fresh episodes of each round of the loop."""

    split: str = "train"
    """Split of the environment whose tasks are played."""
    tasks: tuple[str, ...] = ("*",)
    """Only tasks whose name matches one of these patterns (shell style)."""
    episodes: int = Field(default=192, ge=1)
    """Episodes per round. Tasks are drawn without replacement, again in each round, and repeat if there are too
    few."""
    per_task: int = Field(default=1, ge=1)
    """Episodes of each task drawn: the group that an outcome reward's advantage compares (`training/reward.py`)."""
    temperature: float = Field(default=1.0, ge=0.0)
    """Sampling temperature of the fresh episodes."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Sample from the most likely tokens that together have this probability, after temperature and `top_k`; 1: from
    all."""
    top_k: int = Field(default=0, ge=0)
    """Sample from this many most likely tokens; 0: from all."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Sample from tokens with at least this share of the most likely token's probability."""
    server: ServerSection = ServerSection()

    @property
    def backend(self) -> Literal["transformers", "server"]:
        """Who samples: the server, if one has an address; else the weights in this process."""
        return "server" if self.server.base_url else "transformers"

    @model_validator(mode="after")
    def _whole_groups(self) -> SampleSection:
        if self.episodes % self.per_task:
            raise ValueError(f"{self.episodes} episodes cannot be divided into groups of {self.per_task} per task")
        return self


class StopSection(Section):
    """When the loop ends before its last round."""

    min_findings: int = Field(default=1, ge=1)
    """The loop ends if a round has fewer findings."""
    min_effect_nats: float = Field(default=0.5, ge=0.0)
    """The loop ends if the median drop of the decision token is smaller, in nats."""
    max_off_target_kl: float | None = Field(default=0.1, gt=0.0)
    """Tripwire: largest KL(initial ‖ student) off target, in nats per token. The student of the round before is
    kept."""
    max_changes_drop: float | None = Field(default=0.5, gt=0.0, lt=1.0)
    """Tripwire: successful calls of tools that change state, per episode, fell by more than this share of what the initial policy
    made. Read if the environment says which tools those are (`tool_effects`); without a loop the report warns."""
    max_failed_share: float = Field(default=0.5, gt=0.0, le=1.0)
    """Tripwire: largest share of a round's episodes that fail without a result (cut steps, endless episodes)."""


class RolloutSection(Section):
    """The environment in which fresh traces are sampled and success is measured; none by default."""

    newer: ClassVar[tuple[str, ...]] = ("overlap", "source")

    environment: ObjectPath | None = None
    """`path/to/file.py:Name` or `package.module:Name` of a TaskSuite."""
    splits: tuple[str, ...] = ("test",)
    """The first one gives `environment.before` and `environment.after`; all are in the report."""
    limit: int | None = Field(default=None, ge=1)
    """Tasks per split."""
    temperature: float = Field(default=0.0, ge=0.0)
    """Temperature at which success is measured; 0 is greedy."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """`sample.top_p` for measuring success."""
    top_k: int = Field(default=0, ge=0)
    """`sample.top_k` for measuring success."""
    min_p: float = Field(default=0.0, ge=0.0, lt=1.0)
    """`sample.min_p` for measuring success."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Largest number of tokens of one step."""
    max_steps: int = Field(default=16, ge=1)
    """Largest number of steps of an episode."""
    batch_size: int = Field(default=64, ge=1)
    """Episodes that are sampled together in this process."""
    timeout_s: float | None = Field(default=60.0, gt=0.0)
    """Seconds that the environment has for one answer. If it hangs, the episode is lost."""
    sample: SampleSection = SampleSection()
    overlap: bool = False
    """Let the server sample the next round's episodes while this round trains. They are one training old. Recipes
    with an importance ratio divide by their recorded log-probabilities."""
    stop: StopSection = StopSection()
    source: Literal["environment", "replay"] = "environment"
    """Where the traces of a round of the loop come from. `environment`: the student plays whole episodes; `replay`: no environment is
    needed, the student acts once at steps of recorded traces (`traces.path`), of which `sample.episodes` are drawn each round. What
    stood there in the recording, and what followed, is context for an LLM critic. After ReOPD (arXiv 2607.04763)."""

    @model_validator(mode="after")
    def _overlaps(self) -> RolloutSection:
        if self.overlap and self.sample.backend != "server":
            raise ValueError("overlap needs a server that samples: set sample.server.base_url")
        if self.overlap and self.sample.server.sleep:
            raise ValueError("with overlap the server samples while training runs, so it cannot sleep")
        if self.overlap and self.source == "replay":
            raise ValueError("overlap plays whole episodes while training runs; replay samples single steps")
        return self
