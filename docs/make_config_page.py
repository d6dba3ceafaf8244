"""Write docs/config.md from the configuration itself: `make docs`."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from hintdistill import config
from hintdistill.config import RunConfig, Section, critic, engine, rollout, train
from hintdistill.core.paths import PathMark, section_of

HEAD = """# Configuration

Every key, with its type, default and meaning. Written by `make docs` from `hintdistill/config.py`; do not edit.

A config is YAML; any key can be set on the command line as `section.key=value`, where the value is YAML too
(`traces.path=[a.jsonl, b.jsonl]`, `train.lora={rank: 8}`). A field that holds several things takes a single one as well.
An unknown key is an error that names the nearest known one.

A path in a config file is relative to the file; one in `section.key=value` is relative to the folder you are in. `config.yaml` in a
run folder holds absolute paths. A path that is found only in the folder you are in, as it was in releases before, is an error that
names the new spelling. `model` below is a folder or a hub name: `owner/name` is the hub's unless there is such a folder. An `object`
is `path/to/file.py:Name` or `package.module:Name`. Names of prompts are searched in `critic.prompts`, then among the shipped ones.
"""

WORDS = {
    "input": "path",
    "output": "path",
    "model": "model",
    "object": "object",
    "recipe": "recipe",
    "section": "mapping",
}
"""What the types of paths are called here."""


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


def type_of(info: Any) -> str:
    """A field's type as a reader wants it; paths by their kind."""
    mark = next((m for m in info.metadata if isinstance(m, PathMark)), None)
    if mark is not None:
        return WORDS[mark.kind] + (" or mapping" if mark.kind == "recipe" else "")
    marked = r"typing\.Annotated\[[^()]*?, PathMark\(kind='(\w+)'[^()]*(?:\([^()]*\))?[^()]*\)\]"
    text = re.sub(marked, lambda m: WORDS[m[1]], str(info.annotation))
    text = re.sub(r"typing\.Optional\[(\w+)\]", r"\1 or null", text)
    return type_name(text if "PathMark" in str(info.annotation) else info.annotation)


def type_name(annotation: Any) -> str:
    """A type as a reader wants it."""
    text = annotation.__name__ if isinstance(annotation, type) else str(annotation)
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
        lines.append(f"| `{prefix}{name}` | {type_of(info)} | {default_of(info)} | {text} |")
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
