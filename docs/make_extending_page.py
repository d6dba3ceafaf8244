"""Write docs/extending.md: one section per registry, with the plugin that tests/core/test_registries.py runs."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HEAD = """# Adding a part

Every kind of part below has a **registry**: a table of named entries. An entry carries all that the rest of the toolkit asks
about its part (parameters, needs, prompts, capabilities), so adding one touches no file of the package. Write the entry in a
file of your own, call `register` before the config is read, and name it in the config. An unknown name is an error with the
nearest known one.

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

An installed package offers entries through an **entry point**, which then need no `register` and are known to the command line:

```toml
[project.entry-points."hintdistill.engines"]
uniform = "my_package.uniform:ENTRY"     # an EngineEntry; in the other groups a TraceFormat, a CriticEntry, an EnvironmentEntry
```

The other kinds have no group. Call `register` in Python and then `hintdistill.run(config)`.

To ship a part with the toolkit, put its entry into the registry's table and its function beside its kin; the entry names it as
`module:function`, so that reading a config loads nothing heavy. The tests hold the entries against the functions.
"""

SECTIONS = {
    "trace_format": (
        "Trace format",
        "An object (a module will do) with `NAME`, `SCOPE`, `fits` and `traces`. Formats from outside are asked before those that ship.",
    ),
    "placement": (
        "Placement",
        "A function from a rendered step and a text to a `Splice`: the index in the context at which one block of tokens goes in. "
        "It never changes the context otherwise. `form` is what stands around the hint.",
    ),
    "hint_source": (
        "Hint source",
        "A function that gives the hint and `n` placebos for it. `meets` names needs of recipes (`hintdistill recipes show`) that such "
        "hints meet; `control` says in words what they are where training on them is a control, for the model card.",
    ),
    "context_maker": (
        "Context maker",
        "A hint source with a `context`: a function from a case (trace, finding, the task's other rollouts, texts by task) to words. It "
        "may be the teacher's own context (`inject.hint`, a hint kind's `source`) and that of a recipe's view; what a case lacks is "
        "a `NoContextError` with a reason, which is counted ([contexts.md](contexts.md)).",
    ),
    "twin_maker": (
        "Twin maker",
        "A function from a `TwinCase` (a finding and its trace) to edits under which the step would be right, each of another kind. "
        "It serves the error classes that its entry names, beside the makers that ship; [twins.md](twins.md) says what becomes of an edit.",
    ),
    "hint_kind": ("Hint kind", "A recipe's word for what its teacher reads, and what a run needs for it."),
    "divergence": (
        "Divergence",
        "A function of two log-probability tensors [..., K], and its parameters with their bounds. The entry must say what becomes "
        "of it on a truncated support; a recipe that would lower the kept mass unawares is refused. `objectives` differentiates it.",
    ),
    "shape": (
        "Weight shape",
        "A function from a score [N] to a weight [N]. The entry must say whether it reads the whole batch, because "
        "a training then makes it over all rows of an optimiser step, which `recipes show` tells.",
    ),
    "teacher_rule": (
        "Teacher rule",
        "`weights` says whose weights the teacher has. A rule that follows the student gets the `Follower` after each optimiser step: "
        "`average(rate)`, `copy()`, and `read()` on held-out findings where the entry asks for it.",
    ),
    "strategy": (
        "Critic strategy",
        "A generator that asks questions about a record and returns a `Judgement`, the prompts it uses (keys of `critic.llm`, or "
        "names of your own prompts in `critic.prompts`), and every question it asks at most, for estimates and budgets.",
    ),
    "critic": (
        "Critic",
        "A function of `critics.build.Making` (settings, prompts, shared budget and answer cache) that gives a `Critic`. For rules of "
        "your own on one machine `critic.checker` is shorter: see docs/critics.md.",
    ),
    "engine": (
        "Engine",
        "A function of `engines.loading.EngineJob` that gives an `Engine`. Its `capabilities` decide what a recipe may ask of stored "
        "targets: without `gather` one that compares on the union of the views' top k is refused before anything is scored.",
    ),
    "environment": (
        "Environment",
        "A `TaskSuite`. Without an entry, `rollout.environment=path/to/file.py:Tasks` names one in a file: see docs/environments.md.",
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
