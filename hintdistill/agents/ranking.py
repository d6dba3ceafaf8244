"""Splice hints for one step in, score them in one call of the engine, and rank them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hintdistill.agents.loaded import LoadedModel
from hintdistill.agents.session import Session
from hintdistill.config import EngineSection, RescoreSection
from hintdistill.core.errors import ConfigError
from hintdistill.core.plain import plain
from hintdistill.core.scores import Target
from hintdistill.core.storage import content_key
from hintdistill.core.types import Finding, Injection, Trace, Twin
from hintdistill.injection.splice import Injector
from hintdistill.rescoring.gate import harmful
from hintdistill.rescoring.scorer import HintItem, Scorer
from hintdistill.rescoring.twins import Original, TwinItem


@dataclass(frozen=True)
class RankedHint:
    """Describe one of several hints and the effect that it would have had."""

    hint: str
    target: Target

    @property
    def effect(self) -> float:
        """Hint effect at its decision token, nats; 0.0 if the hint changes nothing."""
        return self.target.decision.effect if self.target.decision is not None else 0.0

    @property
    def odds(self) -> float:
        """Rise of the log-odds of the hinted view's alternative, nats; 0.0 if the hint changes nothing."""
        return (self.target.decision.odds or 0.0) if self.target.decision is not None else 0.0

    @property
    def harmful(self) -> bool:
        """Whether the hint makes the error more likely."""
        return harmful(self.target)

    @property
    def instead(self) -> str | None:
        """The hinted view's token at the decision token; None if the hint changes nothing."""
        return self.target.decision.instead if self.target.decision is not None else None

    def to_dict(self, distributions: bool = False) -> dict[str, Any]:
        """Return the hint as JSON; `distributions` is as in `Target.to_dict`."""
        return {
            "hint": self.hint,
            "level": self.target.level,
            "accepted": self.target.accepted,
            "reasons": list(self.target.reasons),
            "effect": plain(self.effect),
            "odds": plain(self.odds),
            "harmful": self.harmful,
            "instead": self.instead,
            "target": self.target.to_dict(distributions),
        }


def order(ranked: Sequence[RankedHint]) -> list[RankedHint]:
    """Order hints, best first: accepted ones, then rejected ones, then those that make the error more likely; within
    each group by odds."""
    return sorted(ranked, key=lambda r: (r.harmful, not r.target.accepted, -r.odds))


def given_finding(step: int, quote: str | None, hint: str | None = None) -> Finding:
    """Return a finding made from the caller's arguments."""
    return Finding(step=step, error_class="given", quote=quote, hint=hint, critic="caller")


def inject_all(loaded: LoadedModel, injector: Injector, trace: Trace, findings: Sequence[Finding]) -> list[Injection]:
    """Splice in the hint of each finding. Raises the errors of `Injector.inject`."""
    with loaded.lock:
        return [injector.inject(trace, finding) for finding in findings]


def targets_of(
    loaded: LoadedModel, injections: Sequence[Injection], config: RescoreSection, twins: Sequence[tuple[int, Twin]] = ()
) -> tuple[list[Target], list[Target]]:
    """Return the targets of injections and of twins, scored in one call; each twin has the number of its injection.

    Raises:
        ContextLengthError, ScoreError: see `Engine.score`.
    """
    keys = [content_key("call", i.model_dump(mode="json"), loaded.engine.key) for i in injections]
    items = [HintItem(key, i, "train") for key, i in zip(keys, injections, strict=True)]
    pairs = [
        TwinItem(content_key("call", t.model_dump(mode="json"), loaded.engine.key), t, "train", keys[n])
        for n, t in twins
    ]
    scorer = Scorer(loaded.engine, loaded.renderer, config)
    if not isinstance(loaded, Session):
        made = scorer.score(items, pairs)
        return made[: len(items)], made[len(items) :]
    settings = content_key(config.model_dump(mode="json"))
    known = {k: t for k in (*keys, *(p.key for p in pairs)) if (t := loaded.known(f"{k}-{settings}")) is not None}
    owed = list({i.key: i for i in items if i.key not in known}.values())
    twins_owed = [p for p in pairs if p.key not in known]
    if owed or twins_owed:
        originals = {k: Original.of(t) for k, t in known.items() if t.kind == "hint"}
        for target in scorer.score(owed, twins_owed, originals):
            known[target.key] = target
            loaded.keep(f"{target.key}-{settings}", target)
    return [known[k] for k in keys], [known[p.key] for p in pairs]


def require_heard(loaded: LoadedModel, config: RescoreSection, hinted: bool = True) -> None:
    """Refuse settings that would have no effect in a call.

    Raises:
        ConfigError: `config.engine` or `config.batch_tokens` differs from the given engine, `config.part_rows` is set
            (although a call stores nothing), or `config.placebos` or `config.gate` is set if there is no hint.
    """
    default = RescoreSection()
    unheard = [k for k in ("part_rows",) if getattr(config, k) != getattr(default, k)]
    if config.batch_tokens is not None and config.batch_tokens != getattr(loaded.engine, "batch_tokens", None):
        unheard.append("batch_tokens")
    if not hinted:
        unheard += [k for k in ("placebos", "gate") if getattr(config, k) != getattr(default, k)]
    if unheard:
        raise ConfigError(
            f"these settings have no effect in this call: config.{', config.'.join(unheard)}",
            hint="set the engine's batch with hd.load_engine(name, batch_tokens=…), and leave the others out",
        )
    _require_engine(loaded, config.engine)


def _require_engine(loaded: LoadedModel, asked: EngineSection) -> None:
    given, default = loaded.backend or type(loaded.engine).__name__, EngineSection()
    if asked == default:
        return
    differs = [f"backend={asked.backend}"] if asked.backend != loaded.backend else []
    for key in EngineSection.model_fields:
        wanted = getattr(asked, key)
        if key != "backend" and wanted != getattr(default, key) and wanted != getattr(loaded.engine, key, None):
            differs.append(f"{key}={wanted}")
    if differs:
        raise ConfigError(
            f"config.engine asks for {', '.join(differs)}, but the given engine is {given}",
            hint="make the engine with hd.load_engine(name, backend=...) or hd.connect_engine(name, base_url), and "
            "leave config.engine out",
        )
