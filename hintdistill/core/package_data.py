"""Where the shipped prompts, configs and recipes are."""

from __future__ import annotations

from pathlib import Path


def data_root() -> Path:
    """Inside the wheel, or the repository root of an editable install."""
    package = Path(__file__).resolve().parent.parent
    packed = package / "_data"
    return packed if packed.is_dir() else package.parent
