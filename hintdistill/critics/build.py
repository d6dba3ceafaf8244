"""From the configuration to critics: which ones, with which backends, sharing one cache and one budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from hintdistill.config import CriticSection, LLMSection, RunSection
from hintdistill.core.hosts import is_outside
from hintdistill.critics import Critic
from hintdistill.critics.backends import AnswerCache, Backend, Budget
from hintdistill.critics.recorded import RecordedCritic
from hintdistill.critics.rules import RulesCritic
from hintdistill.prompts import PromptLibrary

if TYPE_CHECKING:
    from hintdistill.critics.llm import LLMCritic


def make_critics(
    section: CriticSection, run: RunSection, library: PromptLibrary, cache: Path | None = None
) -> list[Critic]:
    """The critics in use, in order.

    Args:
        cache: where answers are kept unless the configuration names a file; None keeps them in memory.

    Raises:
        ConfigError, PromptError, InputError, ModelError: a critic that cannot be put together.
    """
    answers: AnswerCache | None = None
    budget = Budget(section.budget_tokens)
    out: list[Critic] = []
    for name in dict.fromkeys(section.use):
        if name == "rules":
            out.append(RulesCritic(section.rules.checks))
        elif name == "recorded":
            assert section.recorded.path is not None
            out.append(RecordedCritic(section.recorded.path, section.recorded.error_classes))
        elif name == "checker":
            from hintdistill.critics.checker import CheckerCritic

            assert section.checker is not None
            out.append(CheckerCritic(section.checker))
        else:
            answers = answers or AnswerCache(section.cache or cache)
            config = section.llm if name == "llm" else section.strong
            out.append(make_llm(name, config, section, run, library, answers, budget))
    return sorted(out, key=lambda critic: critic.name == "strong")


def make_llm(
    name: str,
    config: LLMSection,
    section: CriticSection,
    run: RunSection,
    library: PromptLibrary,
    cache: AnswerCache | None = None,
    budget: Budget | None = None,
) -> LLMCritic:
    """One LLM critic. Raises what `make_critics` raises."""
    from hintdistill.critics.llm import LLMCritic

    backend = make_backend(name, config, section, run)
    sent_away = config.backend == "server" and is_outside(config.base_url)
    scan = section.secret_scan == "always" or (section.secret_scan == "outside" and sent_away)
    return LLMCritic(config, library, backend, name=name, cache=cache, budget=budget, scan=scan)


def make_backend(name: str, config: LLMSection, section: CriticSection, run: RunSection) -> Backend:
    """Who answers. In this process the student itself does, where no model is named."""
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
