"""Write the map of the code into docs/map.md: a line per file, taken from its docstring.

python docs/make_map.py          # or `make docs`
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- map: made by docs/make_map.py -->", "<!-- end of map -->"
FOLDERS = ("hintdistill", "examples", "benchmarks", "docs")


def summary(path: Path) -> str:
    """The first paragraph of a file's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(text.partition("\n\n")[0].split()).removesuffix(".")


def code_map() -> str:
    """The map as a block of text: folder by folder, packages after the files beside them."""
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
    """`page` with its map made anew. Raises ValueError where the markers are missing."""
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
