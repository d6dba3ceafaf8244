"""Write docs/config.md from the configuration itself: `make docs`."""

from __future__ import annotations

import inspect
from pathlib import Path

from hintdistill.config import RunConfig, Section
from hintdistill.config.file import section_of
from hintdistill.config.surface import default_of, meanings, type_name

HEAD = """# Configuration

This page lists every key with its type, default and meaning. Written by `make docs` from `hintdistill/config/`; do not
edit. `hintdistill config schema` prints the same as a JSON schema, for editors that complete and check YAML.

A config is YAML; any key can be set on the command line as `section.key=value`, where the value is YAML too
(`traces.path=[a.jsonl, b.jsonl]`, `train.lora={rank: 8}`). A field that takes a list also takes a single value. An
unknown key raises an error that names the nearest known key; a key of an earlier version raises an error that names the
new key.

A path in a config file is relative to the file; a path in `section.key=value` is relative to the current folder.
`config.yaml` in a run folder contains absolute paths. A path that exists only relative to the current folder, as in
earlier releases, raises an error that gives the new path. A model is a folder or a hub name: `owner/name` is a hub name
unless such a folder exists. Names of prompts are looked up in `critic.prompts`, then among the shipped prompts.
"""


def section(model: type[Section], prefix: str, shown: dict[type[Section], str]) -> list[str]:
    """One table, then the tables of the sections inside; a section that is shown already is named."""
    shown[model] = prefix.rstrip(".")
    lines = [
        f"\n## `{prefix.rstrip('.')}`\n",
        f"{inspect.getdoc(model)}\n",
        "| key | type | default | meaning |",
        "|---|---|---|---|",
    ]
    inner: list[str] = []
    texts = meanings(model)
    for name, info in model.model_fields.items():
        part = section_of(info.annotation)
        text = texts.get(name, "").replace("|", "\\|").replace("\\\\|", "\\|")
        if part is not None and part in shown:
            lines.append(f"| `{prefix}{name}` | section | | The keys of `{shown[part]}`. {text} |")
        elif part is not None:
            inner += section(part, f"{prefix}{name}.", shown)
            if info.default is None:
                lines.append(f"| `{prefix}{name}` | section or null | `null` | {inspect.getdoc(part)} |")
        else:
            given = default_of(info)
            default = given if given == "required" else f"`{given}`"
            lines.append(f"| `{prefix}{name}` | {type_name(info.annotation, info.metadata)} | {default} | {text} |")
    return [*lines, *inner]


def page() -> str:
    """The whole page."""
    lines = [HEAD]
    shown: dict[type[Section], str] = {}
    for name, info in RunConfig.model_fields.items():
        part = section_of(info.annotation)
        assert part is not None
        lines += section(part, f"{name}.", shown)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "config.md").write_text(page(), encoding="utf-8")
