"""Write the map of the code into docs/map.md: one clause per file, taken from its docstring.

python docs/make_map.py          # or `make docs`
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- map: made by docs/make_map.py -->", "<!-- end of map -->"
FOLDERS = ("hintdistill", "examples", "benchmarks", "docs")
BOUNDARY = re.compile(r"(;|:|\.|,(?= (?:which|where|who|whose|so|because|and|but|with|beside|for|in|on|if|as)\b)) ")
"""Where a clause of a docstring's first paragraph may end."""


def clause(text: str) -> str:
    """Return the first clause of a summary; a title of a few words, or a command alone, takes the next clause with it."""
    for found in BOUNDARY.finditer(text):
        head = text[: found.start()]
        if (
            head.isdigit()
            or head.count("`") % 2
            or head.count("(") > head.count(")")
            or head.count("[") > head.count("]")
        ):
            continue
        if found[1] != "." and (len(head.split()) < 4 or head.endswith("`")):
            continue
        return head
    return text


def summary(path: Path) -> str:
    """Return the first clause of a file's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return clause(" ".join(text.partition("\n\n")[0].split()).removesuffix("."))


def code_map() -> str:
    """Return the map as a block of text: folder by folder, packages after the files beside them."""
    paths = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py") if "__pycache__" not in p.parts]
    groups: dict[str, list[Path]] = {}
    for path in sorted(paths):
        groups.setdefault(str(path.parent.relative_to(ROOT)), []).append(path)
    lines = []
    for folder in sorted(groups, key=lambda f: (FOLDERS.index(f.split("/")[0]), f)):
        package = [p for p in groups[folder] if p.name == "__init__.py"]
        lines.append(f"{folder + '/':<28} {summary(package[0])}".rstrip() if package else f"{folder}/")
        lines += [f"  {p.name:<26} {summary(p)}" for p in groups[folder] if p.name != "__init__.py"]
    return "\n".join(lines)


def with_map(page: str) -> str:
    """Return `page` with its map made anew. Raises ValueError where the markers are missing."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"docs/map.md lacks {BEGIN} … {END}")
    return f"{head}{BEGIN}\n```\n{code_map()}\n```\n{END}{tail}"


def main() -> None:
    path = ROOT / "docs" / "map.md"
    path.write_text(with_map(path.read_text(encoding="utf-8")), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
