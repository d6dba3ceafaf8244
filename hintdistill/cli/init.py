"""`hintdistill init`: a config for one's own traces and the prompts to edit."""

from __future__ import annotations

import shutil
from pathlib import Path

from hintdistill.core.errors import ConfigError
from hintdistill.core.package_data import data_root


def write_scaffold(folder: Path) -> list[Path]:
    """Write hintdistill.yaml and prompts/ into `folder`; returns what was written.

    Raises:
        ConfigError: something of that name is there already.
    """
    config, prompts = folder / "hintdistill.yaml", folder / "prompts"
    for path in (config, prompts):
        if path.exists():
            raise ConfigError(f"{path} is there already", hint="choose another folder; nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    text = (data_root() / "configs" / "own-traces.yaml").read_text(encoding="utf-8")
    config.write_text(text.replace("prompts: null", f"prompts: {prompts.name}"), encoding="utf-8")
    shutil.copytree(data_root() / "prompts", prompts)
    return [config, *sorted(prompts.rglob("*.jinja"))]
