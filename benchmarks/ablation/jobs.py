"""The jobs of an ablation: the part that all arms of a seed share, and one arm on one seed; their settings and keys.

`shared` (`shared_baseline.py`): the first round's episodes of the initial policy, the initial and the hinted student's
success, and what the hints do before any training. An arm (`arm_run.py`): all of its rounds, then what is measured of its
student. `pipeline/arms.py` runs them and keeps their results.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.ablation.settings import AblateSection, AblationConfig
from hintdistill.config import RunConfig, TrainSection
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.paths import contents
from hintdistill.core.storage import content_key
from hintdistill.pipeline.arms import changed, cross_entropy, training_content

LIKE_HINT = ("twins", "stale", "foreign", "replay", "llm_critic", "hint_outcome", "step", "alarm", "hint")
"""Arms that are the method on other data, under another critic or beside a reward, and train as it does unless told otherwise."""


CROSS_ENTROPY = ("sft_success", "sft_corrected", "sft_gold", "gold_steps")
"""Arms whose rows are steps that the student learns to say unchanged."""


TWINS = {"per_finding": 1, "weight": 0.5}
"""The twins of the arm `twins` if the configuration has none: half of a hint's weight, as on the toy world's grid (docs/decisions.md)."""


@dataclass(frozen=True)
class Job:
    """One arm on one seed in one regime; the arm `shared` comes before the others."""

    regime: str
    arm: str
    seed: int
    setting: int | None = None
    """In a sweep, the number of the arm's setting."""

    @property
    def name(self) -> str:
        """Also the name of its folder."""
        tried = "" if self.setting is None else f"/setting-{self.setting}"
        return f"{self.regime}/{self.arm.replace(':', '-')}{tried}/seed-{self.seed}"


def family(arm: str) -> str:
    """Whose settings an arm takes where it has none of its own: the method's for what is the method on other data."""
    kind, _, noise = arm.partition(":")
    return "hint" if noise or kind in LIKE_HINT else arm


def job_config(config: AblationConfig, job: Job, folder: Path) -> RunConfig:
    """The run configuration of a job: its seed, folder and tasks, and the arm's own training settings."""
    data = config.model_dump(mode="json", exclude={"ablate"})
    data["run"] |= {"seed": job.seed, "dir": str(folder)}
    data["rollout"]["sample"]["tasks"] = list(config.ablate.regimes[job.regime])
    data["rollout"]["splits"] = [config.ablate.test_split]
    data["rollout"]["limit"] = config.ablate.limit
    own = config.ablate.train
    change = own.get(job.arm, own.get(job.arm.partition(":")[0], own.get(family(job.arm), {})))
    data["train"] = changed(data["train"], change)
    if job.setting is not None:
        data["train"] = changed(data["train"], settings_of(config, job.arm)[job.setting])
    if job.arm in CROSS_ENTROPY:
        data["train"] = changed(data["train"], cross_entropy(TrainSection.model_validate(data["train"])))
    if job.arm == "twins" and not config.train.twins.per_finding:
        data["train"] = changed(data["train"], {"twins": TWINS})
    if job.arm == "hint_outcome":
        data["train"] = changed(data["train"], {"recipe": {"coupling": {"kind": "additive", "weight": 0.5}}})
        # a round plays each task once
        data["train"].setdefault("outcome", {"baseline": "round"})
    return RunConfig.model_validate(data)


def settings_of(config: AblationConfig, arm: str) -> tuple[dict[str, Any], ...]:
    """The settings that an arm tries in the sweep."""
    return config.ablate.sweep.own.get(arm, config.ablate.sweep.settings)


MEASURED = (
    "rows",
    "fill",
    "steps",
    "hold",
    "test_split",
    "clean_split",
    "near_splits",
    "transfer_split",
    "temperatures",
    "limit",
    "limits",
)
"""Keys of `ablate` that every job's result depends on."""


def job_key(config: AblationConfig, job: Job) -> str:
    """Key of everything a job's result depends on; a result with another key is owed again."""
    own = job_config(config, job, Path())
    plain = own.model_dump(mode="json", exclude={"report": {"html"}, "run": {"dir", "threads"}, "train": True})
    data = contents(plain, RunConfig)
    train = None if job.arm == "shared" else training_content(own.train)
    ablate = contents(config.ablate.model_dump(mode="json"), AblateSection)
    wanted = {"llm_critic": ["llm_critic"], "foreign": ["foreign_traces"], "replay": ["foreign_traces"]}.get(
        job.arm, []
    )
    weights = model_key(resolve_model(config.run.model)).weights
    return content_key("job", asdict(job), data, train, {k: ablate[k] for k in (*MEASURED, *wanted)}, weights)


class OneUnit:
    """The interface of a job for the runner of arms, whose progress bar counts it as one."""

    job: Job

    @property
    def name(self) -> str:
        """Folder of the job."""
        return self.job.name

    @property
    def units(self) -> int:
        """One: the bar counts jobs."""
        return 1
