"""The common settings of all jobs of benchmarks/real.py, the announced arms, and what a result depends on.

The hash of a plan's content is part of every job's key. Results of 2026-11-28 must stay readable, so the content has the shape
that it had then (`as_of.json`): a setting that is newer counts only where it is not at its default, and what was forgotten then
(the content of a recipe, the words of the hints) counts only where it is no longer what it was.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hintdistill.config import RunConfig
from hintdistill.core.errors import ConfigError
from hintdistill.core.models import model_key, resolve_model
from hintdistill.core.storage import content_key

ROOT = Path(__file__).resolve().parents[2]
PREREG = ROOT / "benchmarks" / "prereg" / "real.yaml"
AS_OF = Path(__file__).with_name("as_of.json")
SECTIONS = ("rollout", "inject", "rescore", "train")


@dataclass(frozen=True)
class Plan:
    """The settings that are equal in all jobs."""

    config: RunConfig
    folder: Path
    episodes: int
    budget: Mapping[str, int]
    """`rows`, `anchors`, `twins`, `steps`."""
    tasks: Mapping[str, Sequence[str]]
    """By split: what is measured."""
    train: Mapping[str, Any] = field(default_factory=dict)

    def content(self) -> dict[str, Any]:
        """Return everything that a result depends on, as plain data."""
        own = {k: getattr(self, k) for k in ("episodes", "budget", "tasks", "train")}
        data = _known(self.config)
        data["rollout"]["environment"] = _tail(self.config.rollout.environment)
        return {**own, **data, "weights": model_key(resolve_model(str(self.config.run.model))).weights}

    def changed(self) -> dict[str, str]:
        """Hashes of what is no longer as it was on 2026-11-28 and stands in `content` by its name alone."""
        then = _as_of()
        recipe = self.config.train.recipe
        name = recipe if isinstance(recipe, str) else ""
        now = {
            f"recipe {name}": recipe_hash(self.config),
            "hints": hints_hash(self.config),
        }
        return {k: v for k, v in now.items() if then["hashes"].get(k) != v}


def _tail(environment: str | None) -> str | None:
    """`examples/smollm2/errands.py:Errands` of wherever that is: another checkout of the same file is the same environment."""
    return environment and "/".join(environment.rsplit("/", 3)[-3:])


# -- content -----------------------------------------------------------------------------------------------------------


def _as_of() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(AS_OF.read_text(encoding="utf-8"))
    return found


def _known(config: RunConfig) -> dict[str, Any]:
    """The sections that results depend on, without settings that came later and are at their defaults."""
    known = set(_as_of()["settings"])
    data = config.model_dump(mode="json", include=set(SECTIONS))
    # what the recipe says where the section is silent was said in the section then
    gate = config.rescoring.gate.enabled
    data["inject"] = config.injecting.model_dump(mode="json")
    data["rescore"]["gate"]["enabled"] = True if gate is None else gate
    plain = {name: type(getattr(config, name))().model_dump(mode="json") for name in SECTIONS}
    return {name: _older(data[name], plain[name], name, known) for name in SECTIONS}


def _older(data: Mapping[str, Any], plain: Any, at: str, known: set[str]) -> dict[str, Any]:
    out = {}
    for key, value in data.items():
        default = plain.get(key, _ABSENT) if isinstance(plain, Mapping) else _ABSENT
        path = f"{at}.{key}"
        if path not in known and value == default:
            continue
        out[key] = _older(value, default, path, known) if isinstance(value, Mapping) else value
    return out


_ABSENT = object()


def setting_names(data: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Dotted names of everything in nested settings, sections included."""
    for key, value in data.items():
        yield f"{at}{key}"
        if isinstance(value, Mapping):
            yield from setting_names(value, f"{at}{key}.")


def recipe_hash(config: RunConfig) -> str:
    """Hash of what the recipe says, whatever its name; fields at their defaults left out."""
    return content_key(config.train.effective_recipe.model_dump(mode="json", exclude_defaults=True))


def hints_hash(config: RunConfig) -> str:
    """Hash of the hint templates that the critic's prompts have of their own."""
    folder = config.critic.prompts
    files = sorted(Path(folder).rglob("*.jinja")) if folder is not None else []
    return content_key({str(p.relative_to(Path(str(folder)))): p.read_text(encoding="utf-8") for p in files})


# -- what was announced --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Announced:
    """What benchmarks/prereg/real.yaml says, its deviations applied in their order."""

    arms: tuple[str, ...]
    """As announced first, in the order of their worth."""
    added: tuple[str, ...]
    """Arms that a deviation adds."""
    untrained: tuple[str, ...]
    """The arms that are measured without training, added as a deviation."""
    second_round: tuple[str, ...]
    """Arms that go on for a second round, by deviation."""
    secondary: tuple[tuple[str, str, str], ...]
    """Secondary endpoints: (arm, other arm, measure), by deviation."""
    claims: tuple[tuple[str, str], ...]
    """Further pairs of arm and rival that the claim is read of, by deviation."""
    train: Mapping[str, Mapping[str, Any]]
    """By deviation, the `train` settings of an added arm; the key `arm` names the arm where the added name is another."""
    seeds: tuple[int, ...]
    deviations: tuple[Mapping[str, Any], ...]


def announced(path: Path = PREREG) -> tuple[Announced, Mapping[str, Any]]:
    """What the file says, and the file as it is.

    Raises:
        ConfigError: a deviation lacks its date, reason or change, or changes something that is not known.
    """
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    gathered: dict[str, Any] = {
        "added": [],
        "untrained": [],
        "second_round": [],
        "secondary": [],
        "claims": [],
        "train": {},
    }
    for one in said["deviations"]:
        if set(one) != {"date", "why", "change"}:
            raise ConfigError(f"{path.name}: a deviation has date, why and change, not {', '.join(sorted(one))}")
        for key, value in one["change"].items():
            if key not in gathered:
                raise ConfigError(f"{path.name}: a deviation cannot change {key!r}; known: {', '.join(gathered)}")
            gathered[key] = {**gathered[key], **value} if key == "train" else [*gathered[key], *value]
    if own := set(gathered["train"]) - set(gathered["added"]):
        raise ConfigError(f"{path.name}: settings for {', '.join(sorted(own))}, which no deviation adds")
    return Announced(
        arms=tuple(said["arms"]),
        added=tuple(gathered["added"]),
        untrained=tuple(gathered["untrained"]),
        second_round=tuple(gathered["second_round"]),
        secondary=tuple((a, b, measure) for a, b, measure in gathered["secondary"]),
        claims=tuple((arm, rival) for arm, rival in gathered["claims"]),
        train=gathered["train"],
        seeds=tuple(said["seeds"]),
        deviations=tuple(said["deviations"]),
    ), said


def registered(config: RunConfig, folder: Path) -> tuple[Plan, Announced]:
    """The plan of benchmarks/prereg/real.yaml, and what is announced. Raises ConfigError as `announced` and `commit_of` do."""
    what, said = announced()
    draw = commit_of(PREREG)
    tasks = {split: [f"{split}.{draw[:12]}.{i}" for i in range(n)] for split, n in said["tasks"].items()}
    budget = {k: said[k] for k in ("rows", "anchors", "twins", "steps")}
    return Plan(config, folder, said["episodes"], budget, tasks, said["train"]), what


def commit_of(path: Path) -> str:
    """The hash of the commit that added a file. Raises ConfigError where none did: test tasks may not exist before."""
    said = ["git", "log", "--diff-filter=A", "--format=%H", "--", str(path)]
    found = subprocess.run(said, cwd=path.parent, capture_output=True, text=True, check=False).stdout.split()
    if not found:
        raise ConfigError(f"{path.name} is in no commit, so its test tasks have no names yet", hint="commit it first")
    return found[-1]
