"""Write docs/config.md from the configuration itself: `make docs`."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from hintdistill import config
from hintdistill.config import RunConfig, Section, critic, engine, rollout, train
from hintdistill.config.file import section_of
from hintdistill.core.registry import NameIn

HEAD = """# Configuration

Every key, with its type, default and meaning. Written by `make docs` from `hintdistill/config.py`; do not edit.

A config is YAML; any key can be set on the command line as `section.key=value`, where the value is YAML too
(`traces.path=[a.jsonl, b.jsonl]`, `train.lora={rank: 8}`). A field that holds several things takes a single one as well.
An unknown key is an error that names the nearest known one.
"""


def descriptions() -> dict[str, dict[str, str]]:
    """The string under each field, by class and field."""
    out: dict[str, dict[str, str]] = {}
    for node in [
        n for module in (config, critic, engine, rollout, train) for n in ast.parse(inspect.getsource(module)).body
    ]:
        if isinstance(node, ast.ClassDef):
            fields: dict[str, str] = {}
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                text = (
                    isinstance(after, ast.Expr)
                    and isinstance(after.value, ast.Constant)
                    and isinstance(after.value.value, str)
                )
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    fields[field.target.id] = " ".join(after.value.value.split()) if text else ""  # type: ignore[union-attr]
            out[node.name] = fields
    return out


def type_name(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type as a reader wants it; a name of a registry is shown as the names there are, to which plugins may add."""
    marks = [m for m in metadata if isinstance(m, NameIn)]
    if marks:
        return f"name: {marks[0].choices}"
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    text = re.sub(r"(?:typing\.)?Annotated\[str, NameIn\((.*?)\)\]", r"name: \1", text)
    return text.replace("typing.", "").replace("NoneType", "null").replace("None", "null").replace("|", "or")


def default_of(info: Any) -> str:
    """A field's default."""
    if info.default_factory is not None:
        return "`{}`"
    if info.default is PydanticUndefined:
        return "required"
    value = info.default
    if isinstance(value, tuple):
        return "`[" + ", ".join(map(str, value)) + "]`"
    return f"`{'null' if value is None else str(value).lower() if isinstance(value, bool) else value if value != '' else repr(value)}`"


def section(model: type[Section], prefix: str, texts: dict[str, dict[str, str]]) -> list[str]:
    """One table, then the tables of the sections inside."""
    lines = [
        f"\n## `{prefix.rstrip('.')}`\n",
        f"{inspect.getdoc(model)}\n",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    inner: list[str] = []
    for name, info in model.model_fields.items():
        part = section_of(info.annotation)
        if part is not None:
            inner += section(part, f"{prefix}{name}.", texts)
            if info.default is None:
                lines.append(f"| `{prefix}{name}` | section or null | `null` | {inspect.getdoc(part)} |")
            continue
        text = (texts[model.__name__].get(name, "")).replace("|", "\\|").replace("\\\\|", "\\|")
        lines.append(
            f"| `{prefix}{name}` | {type_name(info.annotation, info.metadata)} | {default_of(info)} | {text} |"
        )
    return [*lines, *inner]


def page() -> str:
    """The whole page."""
    texts = descriptions()
    lines = [HEAD]
    for name, info in RunConfig.model_fields.items():
        part = section_of(info.annotation)
        assert part is not None
        lines += section(part, f"{name}.", texts)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "config.md").write_text(page(), encoding="utf-8")
