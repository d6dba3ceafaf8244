"""Write docs/extending.md: one section per registry, with the plugin that tests/core/test_registries.py runs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Adding a part

Every kind of part below has a **registry**: a table of named entries. An entry contains everything that the rest of the
toolkit asks about its part (parameters, needs, prompts, capabilities), so adding a part changes no file of the package.
Write the entry in your own file, call `register` before the config is read, and name the part in the config. An unknown
name raises an error that gives the nearest known name.

| kind | registry | named in | entry-point group |
|---|---|---|---|
| trace format | `hintdistill.traces.registry.FORMATS` | `traces.format` (or recognised) | `hintdistill.trace_formats` |
| placement | `hintdistill.core.extensions.PLACEMENTS` | `inject.placements` | |
| hint source | `hintdistill.core.extensions.HINT_SOURCES` | `inject.hint` | |
| twin maker | `hintdistill.core.extensions.TWIN_MAKERS` | (by error class) | `hintdistill.twin_makers` |
| hint kind | `hintdistill.core.parts.HINTS` | a recipe's `data.hint.kind` | |
| divergence | `hintdistill.core.parts.DIVERGENCES` | a term's `divergence.kind` | |
| weight shape | `hintdistill.core.parts.SHAPES` | a weight's `shape` | |
| teacher rule | `hintdistill.recipes.teachers.TEACHERS` | a recipe's `teacher.update` (`train.recipe.teacher.update`) | |
| critic strategy | `hintdistill.core.extensions.STRATEGIES` | `critic.llm.strategy` | |
| critic | `hintdistill.core.extensions.CRITICS` | `critic.use` | `hintdistill.critics` |
| engine | `hintdistill.core.extensions.ENGINES` | `rescore.engine.backend` | `hintdistill.engines` |
| environment | `hintdistill.core.extensions.ENVIRONMENTS` | `rollout.environment` | `hintdistill.environments` |

An installed package can offer entries through an **entry point**. Such entries need no `register`, and the command line
knows them:

```toml
[project.entry-points."hintdistill.engines"]
uniform = "my_package.uniform:ENTRY"     # an EngineEntry; other groups take a TraceFormat, a CriticEntry or an EnvironmentEntry
```

The other kinds have no entry-point group. For them, call `register` in Python and then `hintdistill.run(config)`.

To ship a part with the toolkit, put its entry into the registry's table and its function next to similar ones. The
entry names it as `module:function`, so that reading a config imports nothing heavy. Tests check that entries and
functions agree.
"""

SECTIONS = {
    "trace_format": (
        "Trace format",
        "An object (a module is enough) with `NAME`, `SCOPE`, `fits` and `traces`. Your formats are tried before the"
        " shipped ones.",
    ),
    "placement": (
        "Placement",
        "A function from a rendered step and a text to a `Splice`: the index in the context at which one block of "
        "tokens goes in. It never changes the context otherwise. `form` is the text around the hint.",
    ),
    "hint_source": (
        "Hint source",
        "A function that returns a hint and `n` placebos for it. `meets` names the needs of recipes (`hintdistill "
        "recipes show`) that such hints meet. If training on them is a control, `control` describes the hints in "
        "words, for the model card.",
    ),
    "context_maker": (
        "Context maker",
        "A hint source with a `context`: a function from a case (trace, finding, the task's other rollouts, texts by"
        " task) to text. It can write the teacher's own context (`inject.hint`, a hint kind's `source`) or that of a"
        " recipe's view. If a case lacks something, raise a `NoContextError` with a reason; a count is kept for each "
        "reason ([contexts.md](contexts.md)).",
    ),
    "twin_maker": (
        "Twin maker",
        "A function from a `TwinCase` (a finding and its trace) to edits that would make the step right, each of a "
        "different kind. It serves the error classes that its entry names, in addition to the shipped makers. "
        "[twins.md](twins.md) explains what is done with an edit.",
    ),
    "hint_kind": ("Hint kind", "A name by which recipes say what their teacher reads, and what a run needs for it."),
    "divergence": (
        "Divergence",
        "A function that takes two log-probability tensors [..., K], and its parameters with their bounds. The entry must "
        "say what happens to the divergence on a truncated support, because a recipe that would lower the kept mass "
        "without saying so is refused. `objectives` differentiates the function.",
    ),
    "shape": (
        "Weight shape",
        "A function from a score [N] to a weight [N]. The entry must say whether the function reads the whole batch,"
        " because such weights are computed over all rows of an optimiser step; `recipes show` says so.",
    ),
    "teacher_rule": (
        "Teacher rule",
        "`weights` names the teacher's weights. A rule that follows the student is called with the `Follower` after "
        "each optimiser step. The follower has `average(rate)`, `copy()` and, if the entry asks for it, `read()`, "
        "which measures held-out findings.",
    ),
    "strategy": (
        "Critic strategy",
        "A generator that asks questions about a record and returns a `Judgement`. The entry names the prompts that "
        "it uses (keys of `critic.llm`, or names of your own prompts in `critic.prompts`) and lists all questions "
        "that it may ask, for estimates and budgets.",
    ),
    "critic": (
        "Critic",
        "A function that takes a `critics.build.Making` (settings, prompts, shared budget and answer cache) and "
        "returns a `Critic`. For your own rules on one machine, `critic.checker` is simpler ([critics.md](critics.md)).",
    ),
    "engine": (
        "Engine",
        "A function that takes an `engines.loading.EngineJob` and returns an `Engine`. Its `capabilities` decide what "
        "a recipe may ask of stored targets: without `gather`, a recipe that compares on the union of the views' top k is "
        "refused before anything is scored.",
    ),
    "environment": (
        "Environment",
        "A `TaskSuite`. `rollout.environment=path/to/file.py:Tasks` names a suite in a file without an entry "
        "([environments.md](environments.md)).",
    ),
}


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name, (title, words) in SECTIONS.items():
        source = (ROOT / "tests" / "plugins" / f"{name}.py").read_text(encoding="utf-8").strip()
        parts.append(f"## {title}\n\n{words}\n\n```python\n{source}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    (ROOT / "docs" / "extending.md").write_text(page(), encoding="utf-8")
