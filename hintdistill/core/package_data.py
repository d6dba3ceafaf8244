"""Find the shipped prompts, configs and recipes."""

from __future__ import annotations

from pathlib import Path

from hintdistill.core.errors import ConfigError


def data_root() -> Path:
    """Return the folder of the shipped data: inside the wheel, or the repository root of an editable install."""
    package = Path(__file__).resolve().parent.parent
    packed = package / "_data"
    return packed if packed.is_dir() else package.parent


def demo_config() -> Path:
    """Return the path of the configuration of the installed example.

    Raises:
        ConfigError: the installation lacks the example.
    """
    root = data_root()
    if not (root / "examples" / "toolworld" / "student").is_dir():
        raise ConfigError(
            f"this installation lacks the example: there is no examples/toolworld in {root}",
            hint="install the wheel again, or run configs/quickstart.yaml from a checkout",
        )
    return root / "configs" / "quickstart.yaml"
