"""Let the site show pages from outside docs/, and follow links to them: the hooks of mkdocs.yml.

Links in the repository are relative, so that they work in an editor and on a forge. A link that leaves docs/ for a page
of `OUTSIDE` is turned into a link inside the site; a link to any other file of the repository becomes its path as code.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
OUTSIDE = {
    "README.md": "overview.md",  # a README.md at the root would take the place of index.md
    "CHANGELOG.md": "CHANGELOG.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "benchmarks/RESULTS.md": "benchmarks/RESULTS.md",
    "examples/toolworld/student/README.md": "examples/toolworld/student/README.md",
    "examples/toolworld/critic/README.md": "examples/toolworld/critic/README.md",
    "examples/smollm2/README.md": "examples/smollm2/README.md",
}
"""Pages of the repository that are pages of the site, too, with their places there."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def source_of(uri: str) -> str:
    """Return where a page of the site stands in the repository."""
    return next((path for path, place in OUTSIDE.items() if place == uri), f"docs/{uri}")


def page_of(path: str) -> str | None:
    """Return where a file of the repository stands in the site; None where it does not."""
    if path in OUTSIDE:
        return OUTSIDE[path]
    inside = path.removeprefix("docs/")
    return inside if inside != path and not inside.endswith(".py") else None


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside docs/."""
    for path, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn the links of a page from the repository's paths into the site's."""
    uri = page.file.src_uri
    start = posixpath.dirname(source_of(uri))

    def link(found: re.Match[str]) -> str:
        picture, text, target = found.groups()
        path, mark, anchor = target.partition("#")
        if not path or ":" in path:
            return found[0]
        there = posixpath.normpath(posixpath.join(start, path))
        inside = page_of(there)
        if inside is not None:
            return f"{picture}[{text}]({posixpath.relpath(inside, posixpath.dirname(uri) or '.')}{mark}{anchor})"
        if not (ROOT / there).exists():
            return found[0]
        return text if text.strip("`") == there else f"{text} (`{there}`)"

    return _outside_fences(markdown, lambda text: LINK.sub(link, text))


def _outside_fences(text: str, change: Any) -> str:
    """Apply `change` to everything but fenced code."""
    out, at = [], 0
    for fence in FENCE.finditer(text):
        out += [change(text[at : fence.start()]), fence[0]]
        at = fence.end()
    return "".join([*out, change(text[at:])])
