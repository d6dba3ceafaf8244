"""Checks of `doctor CONFIG`: the student's template with its options, the servers and their keys, and the longest
trace.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hintdistill.cli.doctor import Check, template_checks
from hintdistill.config import RunConfig
from hintdistill.core.errors import HintdistillError, TemplateError

if TYPE_CHECKING:
    from hintdistill.injection.rendering import Renderer


def config_checks(config: RunConfig) -> list[Check]:
    """Return every check of a configuration, beginning with the parts of a trace that the student will not see."""
    from hintdistill.core.models import resolve_model
    from hintdistill.injection.rendering import Renderer

    template = config.run.template
    try:
        folder = resolve_model(config.run.model)
        renderer = Renderer.from_pretrained(folder, template.options, template.file)
    except HintdistillError as error:
        return [Check("model", "fail", error.message, error.hint), *_servers(config)]
    options = ", ".join(f"{k}={v}" for k, v in template.options.items()) or "none"
    checks = [*template_checks(renderer), Check("template options", "ok", options)]
    return [*checks, *_servers(config), *_lengths(config, folder, renderer)]


def _servers(config: RunConfig) -> Iterator[Check]:
    """Yield one check for each server that the run would use."""
    llm, engine, serve = config.critic.llm, config.rescore.engine, config.rollout.sample.server
    for url in (llm.base_url, *llm.more_urls) if "llm" in config.critic.use and llm.backend == "server" else ():
        yield _server(
            "critic server",
            "the critic",
            "critic.llm",
            url or "",
            llm.model,
            llm.api_key_env,
            config.critic.allow_hosts,
        )
    for url in (engine.base_url, *engine.more_urls) if engine.base_url else ():
        yield _server(
            "engine server",
            "the engine",
            "rescore.engine",
            url,
            engine.model,
            engine.api_key_env,
            engine.allow_hosts,
        )
    if config.rollout.sample.backend == "server" and serve.base_url:
        hosts: Sequence[str] = getattr(serve, "allow_hosts", ())
        key = getattr(serve, "api_key_env", "OPENAI_API_KEY")
        yield _server("rollout server", "the rollout server", "rollout.sample.server", serve.base_url, None, key, hosts)


def _server(
    name: str, what: str, section: str, url: str, model: str | None, key_env: str, hosts: Iterable[str]
) -> Check:
    """Check that a server answers and serves the model. No trace is sent."""
    import json

    from hintdistill.core.http import HttpClient, Server

    key = f"key from {key_env}" if os.environ.get(key_env) else f"no key: {key_env} is not set"
    try:
        client = HttpClient(
            Server(url, what, section, tuple(hosts), f"{section}.allow_hosts", key_env, timeout_s=10.0, retries=0)
        )
        answer = json.loads(client.get("/models").body)
        served = [str(m["id"]) for m in answer["data"]]
    except HintdistillError as error:
        return Check(name, "fail", f"{error.message}; {key}", error.hint or f"see {section}")
    except (ValueError, KeyError, TypeError) as error:
        return Check(
            name, "warn", f"{url} answers /models in an unknown format ({error!r}); {key}", "see docs/critics.md"
        )
    if model is not None and model not in served:
        return Check(name, "fail", f"{client.url} serves {', '.join(served)}, not {model}; {key}", f"{section}.model")
    return Check(name, "ok", f"{client.url} serves {model or ', '.join(served)}; {key}")


def _lengths(config: RunConfig, folder: Path, renderer: Renderer) -> Iterator[Check]:
    """Compare the longest trace with the context lengths of the student and the critic."""
    from transformers import AutoConfig

    from hintdistill.core.types import Trace
    from hintdistill.traces.reading import read_traces

    if not config.traces.path:
        return
    try:
        longest, whose, count = 0, "", 0
        for trace in read_traces([Path(p) for p in config.traces.path]):
            if not isinstance(trace, Trace) or not trace.step_indices:
                continue
            count += 1
            try:
                step = renderer.step(trace, len(trace.step_indices) - 1)
                tokens = len(step.context_ids) + len(step.step_ids)
            except TemplateError as error:
                yield Check("a trace", "warn", error.message, error.hint or "its findings are excluded")
                continue
            if tokens > longest:
                longest, whose = tokens, trace.id
            if config.traces.limit and count >= config.traces.limit:
                break
    except HintdistillError as error:
        yield Check("traces", "fail", error.message, error.hint)
        return
    shape = AutoConfig.from_pretrained(folder).get_text_config()
    bounds = {
        "run.model": getattr(shape, "max_position_embeddings", None),
        "critic.llm.context_tokens": config.critic.llm.context_tokens,
    }
    short = {k: v for k, v in bounds.items() if v is not None and v < longest}
    said = f"longest of {count} traces: {longest} tokens ({whose})"
    said += "".join(f"; {k} takes {v}" for k, v in bounds.items() if v is not None)
    fix = "steps that exceed the student's context fail; the critic reads longer traces in windows" if short else ""
    yield Check("context length", "warn" if short else "ok", said, fix)
