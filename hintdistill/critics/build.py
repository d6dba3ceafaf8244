"""From the configuration to critics: which ones, with which backends, sharing one cache and one budget."""

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
        cache: where answers are kept unless the configuration names a file; None keeps them in memory.
        twins: whether LLM critics are asked for the edits of twins.

    Raises:
        ConfigError, PromptError, InputError, ModelError: a critic that cannot be put together.
    """
    making = Making(section, run, library, Budget(section.budget_tokens), section.cache or cache, twins)
    out: list[Critic] = [loaded(CRITICS.get(name).implementation)(making) for name in dict.fromkeys(section.use)]
    return sorted(out, key=lambda critic: critic.name == "strong")


@dataclass
class Making:
    """What a critic is made from, and what the critics of a run share."""

    section: CriticSection
    run: RunSection
    library: PromptLibrary
    budget: Budget
    """Tokens that all of them together may spend."""
    answers_path: str | Path | None = None
    """Where answers are kept."""
    twins: bool = False
    """Whether LLM critics are asked for the edits of twins."""

    @cached_property
    def answers(self) -> AnswerCache:
        """Answers already paid for."""
        return AnswerCache(self.answers_path)


def rules(making: Making) -> Critic:
    """Return the deterministic checks."""
    return RulesCritic(making.section.rules.checks)


def recorded(making: Making) -> Critic:
    """Findings from a file."""
    section = making.section.recorded
    assert section.path is not None
    return RecordedCritic(section.path, section.error_classes)


def followup(making: Making) -> Critic:
    """Return what users, people who approve calls, and the student itself did after a step."""
    from hintdistill.critics.followup import FollowupCritic

    return FollowupCritic(making.library)


def checker(making: Making) -> Critic:
    """Return a function of the user's own."""
    from hintdistill.critics.checker import CheckerCritic

    assert making.section.checker is not None
    return CheckerCritic(making.section.checker)


def llm(making: Making) -> Critic:
    """Return the LLM of `critic.llm`."""
    m = making
    return make_llm("llm", m.section.llm, m.section, m.run, m.library, m.answers, m.budget, twins=m.twins)


def strong(making: Making) -> Critic:
    """Return the LLM of `critic.strong`."""
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
    """Return one LLM critic. Raises what `make_critics` raises."""
    from hintdistill.critics.llm import LLMCritic

    backend = make_backend(name, config, section, run)
    sent_away = config.backend == "server" and any(map(is_outside, (config.base_url, *config.more_urls)))
    scan = section.secret_scan == "always" or (section.secret_scan == "outside" and sent_away)
    return LLMCritic(config, library, backend, name=name, cache=cache, budget=budget, scan=scan, twins=twins)


def make_backend(name: str, config: LLMSection, section: CriticSection, run: RunSection) -> Backend:
    """Return who answers. In this process the student itself does, if no model is named."""
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
