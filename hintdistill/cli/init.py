"""`hintdistill init`: write a config for your own traces, and prompts to edit."""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import typer

from hintdistill.cli.look import say
from hintdistill.core.errors import ConfigError
from hintdistill.core.hosts import is_outside
from hintdistill.core.package_data import data_root


@dataclass(frozen=True)
class Own:
    """Hold the values for a new config; a value of None is left for the user to fill in."""

    model: str | None = None
    """A folder saved by save_pretrained, or a hub name."""
    traces: str | None = None
    """A file, folder or glob, or hf://owner/name."""
    tools: Path | None = None
    critic: str = "rules"
    """`rules`, the URL of a server, or the folder of a model that runs in this process."""
    critic_model: str | None = None
    """The model name that the critic's server uses."""
    send: bool = False
    """Whether traces may be sent to a server on another machine."""


def write_scaffold(folder: Path, own: Own | None = None) -> list[Path]:
    """Write hintdistill.yaml and prompts/ into `folder`; return the files written.

    Raises:
        ConfigError: a file of that name already exists, the model's folder is not a model, or a critic's server lacks a
            model name or is on another machine although sending traces was not allowed.
        InputError: there are no traces at the path.
    """
    config, prompts = folder / "hintdistill.yaml", folder / "prompts"
    for path in (config, prompts):
        if path.exists():
            raise ConfigError(f"{path} already exists", hint="choose another folder; nothing was written")
    text = (data_root() / "configs" / "own-traces.yaml").read_text(encoding="utf-8")
    text = _filled(text.replace("prompts: null", f"prompts: {prompts.name}"), own or Own())
    folder.mkdir(parents=True, exist_ok=True)
    config.write_text(text, encoding="utf-8")
    shutil.copytree(data_root() / "prompts", prompts)
    return [config, *sorted(prompts.rglob("*.jinja"))]


def _filled(text: str, own: Own) -> str:
    """Return the template with the user's model, traces and critic filled in, after checking each of them."""
    from hintdistill.core.models import is_hub_name
    from hintdistill.traces.files import trace_files

    if own.model is not None:
        local = Path(own.model).expanduser()
        if not local.is_dir() and not is_hub_name(own.model):
            raise ConfigError(
                f"{own.model} is not a model folder", hint="give a folder saved by save_pretrained, or a hub name"
            )
        text = _put(text, "path/to/your/student", str(local.resolve()) if local.is_dir() else own.model)
    if own.traces is not None:
        if not own.traces.startswith("hf://"):
            trace_files([own.traces], "--traces")
        text = _put(text, "path/to/traces.jsonl", _absolute(own.traces))
    if own.tools is not None:
        if not own.tools.is_file():
            raise ConfigError(f"{own.tools} is not a file of tool schemas", hint="see docs/traces.md")
        text = _put(text.replace("  # tools: ", "  tools: "), "path/to/tools.json", str(own.tools.resolve()))
    critic = _critic(own)
    if critic is None:
        return text
    return "".join(
        "  use: [llm]\n" + critic if line.startswith("  use: [rules]") else line
        for line in text.splitlines(keepends=True)
    )


def _put(text: str, place: str, value: str) -> str:
    """Return the text with a value filled in. The value is quoted as JSON, which is valid YAML."""
    assert place in text, place
    return text.replace(place, json.dumps(value, ensure_ascii=False))


def _absolute(path: str) -> str:
    return path if path.startswith("hf://") else str(Path.cwd() / Path(path).expanduser())


def _critic(own: Own) -> str | None:
    """Return the lines of the `critic` section for an LLM critic; None for the rules."""
    if own.critic == "rules":
        return None
    parts = urlsplit(own.critic)
    if parts.scheme in ("http", "https"):
        if own.critic_model is None:
            raise ConfigError(
                f"the server {own.critic} needs a model name",
                hint="pass --critic-model NAME, as listed by the server under /models",
            )
        allowed = ""
        if is_outside(own.critic):
            if not own.send:
                raise ConfigError(
                    f"the critic at {parts.hostname} is outside this machine",
                    hint="traces may contain private data; --send-traces allows sending them to that server",
                )
            allowed = f"  allow_hosts: [{json.dumps(parts.hostname)}]\n"
        settings = {"base_url": own.critic, "model": own.critic_model}
    elif Path(own.critic).is_dir():
        allowed, settings = "", {"backend": "local", "model": str(Path(own.critic).resolve())}
    else:
        raise ConfigError(
            f"{own.critic!r} is not a critic", hint="give `rules`, the URL of a server, or the folder of a model"
        )
    lines = [f"    {key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in settings.items()]
    return f"{allowed}  llm:\n{''.join(lines)}"


def next_commands(config: Path) -> list[str]:
    """Return the three commands to run after `init`, in order."""
    name = shlex.quote(str(config))
    return [
        f"hintdistill doctor {name}              # finds problems and says how to fix them",
        f"hintdistill run {name} --dry-run       # shows what would be read and asked; writes nothing",
        f"hintdistill run {name} --until rescore # measures what the hints would do; trains nothing",
    ]


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="[DIR]", help="Folder to write into; default: the working directory.", show_default=False
        ),
    ] = Path(),
    model: Annotated[str | None, typer.Option("--model", help="The student, a model folder or a hub name.")] = None,
    traces: Annotated[
        str | None, typer.Option("--traces", help="Its traces, a file, folder, glob or hf://owner/name.")
    ] = None,
    tools: Annotated[Path | None, typer.Option("--tools", help="Tool schemas for traces that contain none.")] = None,
    critic: Annotated[str, typer.Option("--critic", help="rules, the URL of a server, or a model folder.")] = "rules",
    critic_model: Annotated[str | None, typer.Option("--critic-model", help="The model's name on that server.")] = None,
    send_traces: Annotated[
        bool, typer.Option("--send-traces", help="Allow sending traces to a critic on another machine.")
    ] = False,
) -> None:
    """Write a config for your own traces, and the prompts to edit."""
    written = write_scaffold(folder, Own(model, traces, tools, critic, critic_model, send_traces))
    for path in written:
        print(path)
    if model is None or traces is None:
        left = [k for k, v in (("run.model", model), ("traces.path", traces)) if v is None]
        say(f"\nset {' and '.join(left)} in {written[0]}, then:")
    else:
        say("\nnext:")
    say("\n".join(next_commands(written[0])))
