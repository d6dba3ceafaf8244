"""Write the tables of docs/methods.md between their marks, from the recipes and the methods without one: `make docs`."""

from __future__ import annotations

from pathlib import Path

from hintdistill.recipes import load_recipe, recipe_names
from hintdistill.recipes.removed import NOT_BUILT

BEGIN, END = "<!-- methods: made by docs/make_methods_page.py -->", "<!-- end of methods -->"
PAGE = Path(__file__).parent / "methods.md"


def tables() -> str:
    """The recipes with what the teacher reads, and the methods without a recipe with what they need."""
    lines = [
        f"{len(recipe_names())} recipes:",
        "",
        "| recipe | method | class | steps | the teacher reads | the teacher's weights | how it runs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in recipe_names():
        r = load_recipe(name)
        reads = ", ".join(
            [r.data.hint.kind, *(v.context for v in r.views.values() if v.context not in ("plain", "hint"))]
        )
        runs = "(b)" if r.changed else "(a)"
        how = r.changed or "as published"
        lines.append(f"| `{name}` | {r.title} | {runs} | {r.data.steps} | {reads} | {r.teacher.update} | {how} |")
    lines += [
        "",
        f"{len(NOT_BUILT)} methods without a recipe:",
        "",
        "| name | method | source | class | what it needs | why it was not built | available instead |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, m in sorted(NOT_BUILT.items()):
        runs = {"itself": "(a)", "mechanism": "(b)", "no": "(c)"}[m.runs]
        lines.append(f"| `{name}` | {m.title} | {m.source} | {runs} | {m.need} | {m.why} | {m.instead or 'nothing'} |")
    return "\n".join(lines)


def page() -> str:
    """The whole page: what stands between the marks is made, the rest is kept."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{tables()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
