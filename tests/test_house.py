"""The shape of the code: data flows down, files stay readable, imports stay light, documents stay true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import zipfile
from functools import cache
from pathlib import Path

import pytest
from conftest import LONGEST, ROOT

PACKAGE = ROOT / "hintdistill"
LAYERS = (
    "core",
    "prompts",
    "recipes",
    "config",
    "traces",
    "traces.formats",
    "recording",
    "injection",
    "engines",
    "rescoring",
    "objectives",
    "critics",
    "training",
    "rollouts",
    "reporting",
    "pipeline",
    "planning",
    "bridges",
    "agents",
    "api",
    "",
    "serving",
    "cli",
)
"""Packages and loose modules from the bottom to the top: none imports one above it. The empty name is `hintdistill` itself."""
LOOSE = {"api.py", "__init__.py", "prompts.py"}


ABLATION = ROOT / "benchmarks" / "ablation"


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


ALL = [*modules(), *sorted(ABLATION.glob("*.py"))]
"""The package, and the benchmark that is held to the same standard."""


def name_of(path: Path) -> str:
    """The full module path of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(p): p for p in modules()}


def imports(path: Path, names: dict[str, Path] = NAMES, root: str = "hintdistill") -> set[str]:
    """The modules among `names` that a file imports, anywhere in it, by their full paths."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and f"{node.module}.".startswith(f"{root}."):
            found |= {
                f"{node.module}.{a.name}" if f"{node.module}.{a.name}" in names else node.module for a in node.names
            }
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name in names}
    return found - {name_of(path)}


@cache
def graph() -> dict[str, set[str]]:
    """What each module imports; parsed by the process that asks."""
    return {name: imports(path) for name, path in NAMES.items()}


def package(module: str) -> str:
    """The package of a module, without `hintdistill.`; a loose module is its own."""
    inner = module.removeprefix("hintdistill").removeprefix(".")
    return inner if NAMES[module].name == "__init__.py" or "." not in inner else inner.rpartition(".")[0]


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of names that reach one another."""
    reach = {n: set(graph[n]) for n in graph}
    for middle in graph:
        for name in graph:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    return sorted({tuple(sorted(m for m in reach[n] if n in reach[m])) for n in graph if n in reach[n]})


def test_every_package_has_its_place():
    packages = {package(m) for m in NAMES}
    assert packages == set(LAYERS) and len(packages - {"", "api", "prompts"}) <= 20
    assert {p.name for p in PACKAGE.glob("*.py")} == LOOSE


@pytest.mark.parametrize("name", sorted(NAMES), ids=lambda n: n.removeprefix("hintdistill."))
def test_no_module_imports_one_above_it(name):
    above = {m for m in graph()[name] if LAYERS.index(package(m)) > LAYERS.index(package(name))}
    assert not above, f"{name} imports {above}, which are above it"


def test_no_circle_of_modules_or_packages():
    assert circles(graph()) == []
    between: dict[str, set[str]] = {p: set() for p in LAYERS}
    for name, found in graph().items():
        between[package(name)] |= {package(m) for m in found} - {package(name)}
    assert circles(between) == []


def test_no_circle_in_the_ablation_and_the_package_does_not_know_it():
    names = {name_of(p): p for p in ABLATION.glob("*.py")}
    found = {name: imports(path, names, "benchmarks.ablation") for name, path in names.items()}
    assert circles(found) == [] and "benchmarks.ablation.jobs" in found["benchmarks.ablation.bench"]
    assert not [p for p in modules() if re.search(r"^\s*(from|import) benchmarks", p.read_text(), re.MULTILINE)]


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path):
    """Signatures and docstrings do not count: they are there to be read, and packing them makes nothing shorter."""
    text = path.read_text()
    assert text.count("\n") <= 420
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < 60, f"{path.name}:{node.name}"


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether typer calls it: each parameter is an option of the command line."""
    decorated = any("command" in ast.unparse(d) or "callback" in ast.unparse(d) for d in node.decorator_list)
    return decorated or any("typer.Option" in ast.unparse(a) or is_shared(a) for a in node.args.args)


SHARED_OPTIONS = {
    t.id
    for node in ast.parse((PACKAGE / "cli" / "options.py").read_text()).body
    if isinstance(node, ast.Assign)
    for t in node.targets
    if isinstance(t, ast.Name)
}


def is_shared(argument: ast.arg) -> bool:
    """Whether it is an option of `cli/options.py`, which means the same in every command that has it."""
    return isinstance(argument.annotation, ast.Name) and argument.annotation.id in SHARED_OPTIONS


def too_many(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a function takes more parameters than one can hold in mind; `self` and its like do not count.

    Seven; ten of its own for a command of the command line, beside the options that commands share; ten for a public
    function whose further parameters are keyword-only.
    """
    positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls", "ctx")]
    named = len(node.args.kwonlyargs)
    if is_command(node):
        return len(positional) + named - sum(map(is_shared, node.args.args)) > 10
    public = node.name == "__init__" or not node.name.startswith("_")
    return len(positional) > 7 or len(positional) + named > (10 if public and named else 7)


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(ROOT)))
def test_functions_take_few_parameters(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert not too_many(node), f"{path.name}: {node.name} takes too many parameters"


def test_few_lines_are_kept_from_the_formatter():
    files = [
        p
        for folder in ("hintdistill", "tests", "benchmarks", "examples", "docs")
        for p in (ROOT / folder).rglob("*.py")
    ]
    assert sum(p.read_text().count("# fmt: " + "skip") for p in files) <= 40


def test_too_many_parameters_are_seen():
    def of(text: str) -> ast.FunctionDef:
        return ast.parse(f"def {text}: ...").body[0]

    fine = ("f(a, b, c, d, e, f, g)", "f(self, a, b, c, d, e, f, g)", "f(a, b, c, d, e, f, *, g, h, i, j)")
    wrong = ("f(a, b, c, d, e, f, g, h)", "_f(a, b, c, d, e, f, *, g, h)", "f(a, b, c, d, e, f, *, g, h, i, j, k)")
    assert not any(too_many(of(t)) for t in fine) and all(too_many(of(t)) for t in wrong)


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_things_are_documented(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), f"{path} has no docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            nested = any(
                isinstance(p, ast.FunctionDef) and node in ast.walk(p) and p is not node for p in ast.walk(tree)
            )
            assert nested or ast.get_docstring(node), f"{path.name}: {node.name} has no docstring"


@pytest.mark.parametrize(
    "code",
    [
        "import hintdistill",
        "import hintdistill.core.types, hintdistill.config, hintdistill.core.errors",
        "import hintdistill.cli.main",
        "import sys; sys.argv[1:] = ['--help']\nimport hintdistill.cli.main as c\ntry:\n    c.main()\nexcept SystemExit:\n    pass",
    ],
)
def test_import_and_help_load_no_torch(code):
    heavy = "{'torch', 'transformers', 'peft', 'accelerate', 'pyarrow', 'openai', 'vllm'}"
    check = f"{code}\nimport sys\nloaded = {heavy} & set(sys.modules)\nassert not loaded, loaded"
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)


def test_public_names_resolve():
    import hintdistill

    for name in hintdistill.__all__:
        assert getattr(hintdistill, name) is not None
    assert set(hintdistill.__all__) <= set(dir(hintdistill))
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        hintdistill.nope  # noqa: B018


def test_the_config_page_is_the_config():
    sys.path.insert(0, str(ROOT / "docs"))
    from make_config_page import page

    assert (ROOT / "docs" / "config.md").read_text() == page(), "run `make docs`"


def test_the_map_is_the_code():
    sys.path.insert(0, str(ROOT / "docs"))
    from make_map import with_map

    page = (ROOT / "docs" / "map.md").read_text()
    assert page == with_map(page), "run `make docs`"


def test_the_readme_counts_what_is_there():
    from hintdistill.recipes import load_recipe, recipe_names
    from hintdistill.traces.registry import formats

    readme = " ".join((ROOT / "README.md").read_text().split())
    assert f"[{len(formats())} trace formats](docs/traces.md)" in readme
    as_themselves = [n for n in recipe_names() if not load_recipe(n).changed]
    assert f"{len(as_themselves)} published methods, references and variants run as themselves" in readme
    traces = (ROOT / "examples" / "toolworld" / "traces.jsonl").read_text().count("\n")
    assert f"takes the {traces} traces" in readme


def test_readme_links_exist():
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_named_test_files_exist():
    """The paths of tests that the Makefile and the documents name."""
    named = [
        (page.name, path)
        for page in (ROOT / "Makefile", ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for path in re.findall(r"(?<![\w/.])tests/[\w/]+\.py", page.read_text())
    ]
    assert len(named) > 10 and [n for n in named if not (ROOT / n[1]).is_file()] == []


def test_the_longest_test_files_are_there():
    assert [n for n in LONGEST if not (ROOT / "tests" / n).is_file()] == []


def test_the_wheel_carries_prompts_configs_the_page_and_all_that_the_demo_reads(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    wheel = next(tmp_path.glob("*.whl"))
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in ("prompts", "configs"):
        for path in (ROOT / folder).rglob("*.*"):
            assert f"hintdistill/_data/{path.relative_to(ROOT)}" in names
    page = (ROOT / "hintdistill" / "reporting" / "page").iterdir()
    assert {f"hintdistill/reporting/page/{p.name}" for p in page} <= names and "hintdistill/py.typed" in names
    assert not any(n.startswith(("tests/", "examples/")) for n in names)
    read = re.findall(r"\.\./(examples/[^\s:,\]]+)", (ROOT / "configs" / "quickstart.yaml").read_text(encoding="utf-8"))
    assert {"examples/toolworld/student", "examples/toolworld/critic", "examples/toolworld/traces.jsonl"} <= set(read)
    for name in [*read, "examples/toolworld/splits.json"]:
        for path in [ROOT / name, *(ROOT / name).rglob("*.*")]:
            assert path.is_dir() or f"hintdistill/_data/{path.relative_to(ROOT)}" in names, path
    assert wheel.stat().st_size <= 12e6
    metadata = zipfile.ZipFile(wheel).read(next(n for n in names if n.endswith(".dist-info/METADATA"))).decode("utf-8")
    assert "Requires-Dist: llguidance>=1.0\n" in metadata, "without it the demo's critic cannot answer"
