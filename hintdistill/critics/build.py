"""Build the configured critics with their backends, which share one cache and one budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from hintdistill.config import CriticSection, LLMSection, RunSection
from hintdistill.core.extensions import CRITICS
from hintdistill.core.hosts import is_outside
from hintdistill.core.registry import loaded
from hintdistill.critics import Critic
from hintdistill.critics.backends import AnswerCache, Backend, Budget
from hintdistill.critics.recorded import RecordedCritic
from hintdistill.critics.rules import RulesCritic
from hintdistill.prompts import PromptLibrary

if TYPE_CHECKING:
    from hintdistill.critics.llm import LLMCritic


def make_critics(
    section: CriticSection, run: RunSection, library: PromptLibrary, cache: Path | None = None, *, twins: bool = False
) -> list[Critic]:
    """Return the critics in use, in order.

    Args:
        cache: file for answers unless the configuration names one; None keeps them in memory.
        twins: whether LLM critics also write the edits of twins.

    Raises:
        ConfigError, PromptError, InputError, ModelError: a critic cannot be built.
    """
    making = Making(section, run, library, Budget(section.budget_tokens), section.cache or cache, twins)
    out: list[Critic] = [loaded(CRITICS.get(name).implementation)(making) for name in dict.fromkeys(section.use)]
    return sorted(out, key=lambda critic: critic.name == "strong")


@dataclass
class Making:
    """Hold the settings and parts from which the critics of a run are built, some of them shared."""

    section: CriticSection
    run: RunSection
    library: PromptLibrary
    budget: Budget
    """Tokens that all critics together may spend."""
    answers_path: str | Path | None = None
    """File in which answers are kept."""
    twins: bool = False
    """Whether LLM critics also write the edits of twins."""

    @cached_property
    def answers(self) -> AnswerCache:
        """Answers that were already paid for."""
        return AnswerCache(self.answers_path)


def rules(making: Making) -> Critic:
    """Build the critic that runs the deterministic checks."""
    return RulesCritic(making.section.rules.checks)


def recorded(making: Making) -> Critic:
    """Build the critic that reads findings from a file."""
    section = making.section.recorded
    assert section.path is not None
    return RecordedCritic(section.path, section.error_classes)


def followup(making: Making) -> Critic:
    """Build the critic that reads how users, people who approve calls, and the student itself reacted to a step."""
    from hintdistill.critics.followup import FollowupCritic

    return FollowupCritic(making.library)


def checker(making: Making) -> Critic:
    """Build the critic that calls the user's own function."""
    from hintdistill.critics.checker import CheckerCritic

    assert making.section.checker is not None
    return CheckerCritic(making.section.checker)


def llm(making: Making) -> Critic:
    """Build the critic of `critic.llm`."""
    m = making
    return make_llm("llm", m.section.llm, m.section, m.run, m.library, m.answers, m.budget, twins=m.twins)


def strong(making: Making) -> Critic:
    """Build the critic of `critic.strong`."""
    m = making
    return make_llm("strong", m.section.strong, m.section, m.run, m.library, m.answers, m.budget, twins=m.twins)


def make_llm(
    name: str,
    config: LLMSection,
    section: CriticSection,
    run: RunSection,
    library: PromptLibrary,
    cache: AnswerCache | None = None,
    budget: Budget | None = None,
    *,
    twins: bool = False,
) -> LLMCritic:
    """Return one LLM critic. Raises the errors of `make_critics`."""
    from hintdistill.critics.llm import LLMCritic

    backend = make_backend(name, config, section, run)
    sent_away = config.backend == "server" and any(map(is_outside, (config.base_url, *config.more_urls)))
    scan = section.secret_scan == "always" or (section.secret_scan == "outside" and sent_away)
    return LLMCritic(config, library, backend, name=name, cache=cache, budget=budget, scan=scan, twins=twins)


def make_backend(name: str, config: LLMSection, section: CriticSection, run: RunSection) -> Backend:
    """Return the backend. A backend in this process uses the student itself unless a model is named."""
    if config.backend == "server":
        from hintdistill.critics.server import ServerBackend

        return ServerBackend(config, section.allow_hosts, name)
    from hintdistill.core.models import resolve_model

    folder = resolve_model(config.model or run.model)
    if config.backend == "vllm":
        from hintdistill.critics.vllm import VLLMBackend

        return VLLMBackend(folder, max_tokens=config.max_tokens, context_tokens=config.context_tokens, dtype=run.dtype)
    from hintdistill.critics.local import LocalBackend

    return LocalBackend(
        folder, max_tokens=config.max_tokens, context_tokens=config.context_tokens, device=run.device, dtype=run.dtype
    )
