"""Find, lint and render the Jinja prompts.

Users may edit prompts: each file is searched for first in the user's folder and then in the shipped one, so a user's
folder may contain a single edited prompt. Prompts render in a sandbox with strict undefined and are linted when loaded
(with file and line). The hash of a prompt covers everything it includes, so that a changed prompt recomputes exactly
the results that depend on it.

Kinds, by folder:

* `critic/`   what an LLM critic reads; the instructions come last, so that a server's prefix cache also serves edited
  prompts
* `hints/`    one file per error class: the remedial hint, made from the finding's facts without an LLM
* `candidates/` alternative hints for the same finding: a principle, or only the right action
* `placebo/`  hints that should have no effect, for the gate and the control arm
* `attempts/` contexts made of other attempts at a task: one right and one wrong attempt (`bcq`), or only wrong ones
  (`ncq`)
* `contexts/` the text around other contexts: solutions, demonstrations, rollouts, observations
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from types import CodeType
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.bccache import Bucket
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hintdistill.core.errors import PromptError
from hintdistill.core.package_data import data_root

REVISE = "critic/revise.jinja"
"""The prompt that asks for a second hint."""
TWIN = "critic/twin.jinja"
"""The prompt that asks for the edit of a twin in the same question as the hint."""
_ASKED = frozenset(
    {"trace", "tools", "signatures", "legal_steps", "checks", "error_classes", "schema", "window", "windows"}
    | {"fields", "has_tools"}
)
_INSTRUCTS = _ASKED | {"twin"}
ROLES: dict[str, frozenset[str]] = {
    # nothing that differs between two questions about one trace, so that the bytes above every instruction are the same
    "record": frozenset({"trace", "tools", "signatures"}),
    "prompt": _INSTRUCTS,
    "step_prompt": _INSTRUCTS | {"step"},
    "half_prompt": _ASKED | {"first", "second"},
    "repair": frozenset({"answer", "problem", "schema"}),
    "revise": _ASKED | {"step", "hint", "reason", "error_class", "quote"},
    "twin": _ASKED,
}
"""The variables that a critic prompt may use, by its role: the keys of `critic.llm`, and four roles with a fixed
name."""
ROLE_OF = {
    "critic/record.jinja": "record",
    "critic/all_at_once.jinja": "prompt",
    "critic/step.jinja": "step_prompt",
    "critic/half.jinja": "half_prompt",
    "critic/repair.jinja": "repair",
    REVISE: "revise",
    TWIN: "twin",
}
"""The role of each shipped critic prompt, a key of `ROLES`."""
VARIABLES: dict[str, frozenset[str]] = {
    "critic": frozenset().union(*ROLES.values()),
    "hints": frozenset(
        {"wrong", "right", "tool", "tools", "argument", "arguments", "error", "quote", "step", "variant", "expected"}
    ),
    "candidates": frozenset({"error_class", "right", "tool", "argument", "error", "expected"}),
    "placebo": frozenset({"variant"}),
    "attempts": frozenset({"attempts"}),
    "contexts": frozenset({"text", "successes", "failures", "observation", "outcome", "hint", "tools", "error_class"}),
}
"""The variables that each kind of prompt may use. `docs/prompts.md` describes their values."""


class _Compiled(jinja2.BytecodeCache):
    """Cache the templates compiled in this process, each with the checksum of its source; a changed template is
    compiled again."""

    def __init__(self) -> None:
        self._code: dict[tuple[str, str], CodeType | None] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        """Load the compiled code of a template into the bucket that asks for it, if the source is unchanged."""
        bucket.code = self._code.get((bucket.key, bucket.checksum))

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep the code of a newly compiled template."""
        self._code[bucket.key, bucket.checksum] = bucket.code


_COMPILED = _Compiled()


def _environment(loader: jinja2.BaseLoader | None = None) -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        loader=loader,
        undefined=jinja2.StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        bytecode_cache=_COMPILED,
    )


@lru_cache(maxsize=256)
def _tree(source: str) -> nodes.Template:
    """Parse a template once per process. Callers must not change the tree."""
    return _environment().parse(source)


class PromptLibrary:
    """Give access to the prompts of one run: the user's folder is searched first, then the shipped one."""

    def __init__(self, folder: str | Path | None = None) -> None:
        shipped = data_root() / "prompts"
        if folder is not None and not Path(folder).is_dir():
            raise PromptError(f"no prompt folder at {folder}", hint="create one with `hintdistill prompts eject DIR`")
        self.folders: tuple[Path, ...] = (*([Path(folder)] if folder is not None else []), shipped)
        self._env = _environment(jinja2.FileSystemLoader([str(f) for f in self.folders]))
        self._mentions: dict[tuple[str, str], bool] = {}

    def names(self) -> list[str]:
        """Return every prompt name, `kind/file.jinja`, once."""
        return sorted({p.relative_to(f).as_posix() for f in self.folders for p in f.rglob("*.jinja")})

    def path(self, name: str) -> Path:
        """Return the file that `name` resolves to; an absolute path resolves to itself. Raises PromptError naming the
        folders searched."""
        for folder in self.folders:
            if (folder / name).is_file():
                return folder / name
        searched = ", ".join(str(f) for f in self.folders)
        raise PromptError(f"no prompt {name!r} in {searched}", hint="`hintdistill prompts list` lists all prompts")

    def has(self, name: str) -> bool:
        """Return whether a prompt of this name exists."""
        return any((folder / name).is_file() for folder in self.folders)

    def hash(self, name: str) -> str:
        """Return the hash of the prompt's source and of everything it includes."""
        digest = hashlib.sha256()
        for current in self._parts(name):
            digest.update(f"{current}\0{self._source(current)}\0".encode())
        return digest.hexdigest()[:16]

    def _parts(self, name: str) -> list[str]:
        """Return a prompt and everything it includes, without repetitions. Raises PromptError if one is missing or does
        not parse."""
        todo, seen = [name], {}
        while todo:
            current = todo.pop()
            if current in seen:
                continue
            seen[current] = True
            tree = self._parse(current, self._source(current))
            todo += [t for t in meta.find_referenced_templates(tree) if t is not None]
        return list(seen)

    def mentions(self, name: str, variable: str) -> bool:
        """Return whether a prompt, or what it includes, uses a variable. Raises PromptError if it does not parse."""
        if (name, variable) not in self._mentions:
            used = (meta.find_undeclared_variables(self._parse(n, self._source(n))) for n in self._parts(name))
            self._mentions[name, variable] = any(variable in names for names in used)
        return self._mentions[name, variable]

    def lint(self, name: str, role: str | None = None) -> list[str]:
        """Return the problems of one prompt as `file:line: problem`; the list is empty if there are none.

        Args:
            role: the role of a critic prompt, a key of `ROLES`; by default it follows from the prompt's name.
        """
        path = self.path(name)
        try:
            tree = self._parse(name, self._source(name))
        except PromptError as error:
            return [error.message]
        # a file named by its path is a critic's
        kind = "critic" if Path(name).is_absolute() else name.split("/", 1)[0]
        if kind not in VARIABLES:
            return [f"{path}:1: unknown kind of prompt {kind!r}; the known kinds are {', '.join(VARIABLES)}"]
        role = role or ROLE_OF.get(name)
        known = VARIABLES[kind] if role is None else ROLES[role]
        unknown = meta.find_undeclared_variables(tree) - known - _asked_for(tree)
        return [
            f"{path}:{_line_of(tree, word)}: unknown variable {word!r}; allowed here: {', '.join(sorted(known))}"
            for word in sorted(unknown)
        ]

    def advice(self, name: str) -> list[str]:
        """Return warnings about parts of a hint template that may make the error more likely, as `file: warning`. Other
        kinds of prompt get no warnings.

        The template is rendered in each of its wordings with invented names.
        """
        if name.split("/", 1)[0] not in ("hints", "candidates"):
            return []
        found: dict[str, None] = {}
        for facts in _PROBES:
            for variant in range(8):
                try:
                    text = self.render(name, {**facts, "variant": variant})
                except PromptError:
                    continue
                if _WRONG in text and not 0 <= text.find(_RIGHT) < text.find(_WRONG):
                    found["it mentions the wrong word first"] = None
                if all(tool in text for tool in _TOOLS):
                    found["it lists the tools"] = None
        return [f"{self.path(name)}: {what}; real models then repeat the error more often" for what in found]

    def render(self, name: str, variables: Mapping[str, Any]) -> str:
        """Render a prompt and strip the surrounding white space.

        Raises:
            PromptError: the prompt does not exist, does not lint, uses a variable that has no value, or is empty.
        """
        if problems := self._lint_once(name):
            raise PromptError("; ".join(problems))
        path = self.path(name)
        try:
            text = self._template(name).render(**variables).strip()
        except jinja2.TemplateError as error:
            raise PromptError(f"{path}: {error.message}") from error
        except Exception as error:
            raise PromptError(f"{path}: {type(error).__name__}: {error}") from error
        if not text:
            raise PromptError(f"{path} renders to an empty text")
        return text

    def _lint_once(self, name: str) -> list[str]:
        if not hasattr(self, "_linted"):
            self._linted: dict[str, list[str]] = {}
        if name not in self._linted:
            self._linted[name] = self.lint(name)
        return self._linted[name]

    def _template(self, name: str) -> jinja2.Template:
        if Path(name).is_absolute():
            return self._env.from_string(self._source(name))
        return self._env.get_template(name)

    def _source(self, name: str) -> str:
        path = self.path(name)
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise PromptError(f"{path} is not UTF-8: {error}") from error

    def _parse(self, name: str, source: str) -> nodes.Template:
        try:
            return _tree(source)
        except jinja2.TemplateSyntaxError as error:
            raise PromptError(f"{self.path(name)}:{error.lineno}: {error.message}") from error


_WRONG, _RIGHT, _TOOLS = "wrong_name_7", "right_name_7", ("first_tool_7", "second_tool_7", "third_tool_7")
_COMMON = {
    "tool": _TOOLS[0],
    "tools": list(_TOOLS),
    "arguments": ["one_7"],
    "argument": "one_7",
    "error": "busy",
    "quote": "q",
}
_EVERY = _COMMON | {"wrong": _WRONG, "right": _RIGHT, "step": 1, "expected": "of type string"}
_PROBES: tuple[dict[str, Any], ...] = tuple(
    {k: v for k, v in _EVERY.items() if k not in without} | {"error_class": error_class}
    for without in ((), ("right",), ("wrong",))
    for error_class in ("unknown_tool", "wrong_argument", "other")
)
"""Facts with which hint templates are rendered to find the order in which they mention names."""


def _asked_for(tree: nodes.Template) -> set[str]:
    """Return the variables of other prompts that this prompt may also use, because it checks for them first: `{% if
    step is defined %}`."""
    everything = frozenset().union(*VARIABLES.values())
    tests = (test for test in tree.find_all(nodes.Test) if test.name in ("defined", "undefined"))
    return {test.node.name for test in tests if isinstance(test.node, nodes.Name)} & everything


def _line_of(tree: nodes.Template, word: str) -> int:
    return next((name.lineno for name in tree.find_all(nodes.Name) if name.name == word), 1)


@lru_cache(maxsize=8)
def shipped_library() -> PromptLibrary:
    """Return the library of the shipped prompts, without a user's folder."""
    return PromptLibrary()


def eject(folder: Path, names: Sequence[str] = ()) -> list[Path]:
    """Copy shipped prompts into a folder and return the files written.

    Raises:
        PromptError: a prompt does not exist, or a file of its name already exists; in both cases nothing is written.
    """
    library = shipped_library()
    chosen = {name: library.path(name) for name in names or library.names()}
    for name in chosen:
        if (folder / name).exists():
            raise PromptError(f"{folder / name} already exists", hint="choose another folder; nothing was written")
    for name, path in chosen.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(path.read_bytes())
    return [folder / name for name in chosen]


def attempts_context(library: PromptLibrary, right: Sequence[str], wrong: Sequence[str], seed: int = 0) -> str:
    """Return the context that shows attempts at a hard task: a `bcq` of one right and one wrong attempt, or an `ncq` of
    wrong attempts only.

    ZPPO (arXiv 2606.18216). The order within a `bcq` depends on the texts and the seed, so that the position does not
    reveal the right attempt.

    Raises:
        PromptError: no failed attempt is given.
    """
    if not wrong:
        raise PromptError("a task without a failed attempt is not hard, so there is nothing to contrast")
    if not right:
        return library.render("attempts/ncq.jinja", {"attempts": list(wrong)})
    pair = [right[0], wrong[0]]
    digest = hashlib.sha256(f"{seed}\0{min(pair)}\0{max(pair)}".encode()).digest()
    pair.sort(reverse=bool(digest[0] % 2))
    return library.render("attempts/bcq.jinja", {"attempts": pair})


def hint_name(error_class: str) -> str:
    """Return the name of the hint template of an error class. A class that is not a plain name has no template (critics
    may write anything)."""
    plain = re.fullmatch(r"\w[\w-]*", error_class) is not None
    return f"hints/{error_class if plain else 'no template'}.jinja"


def hint_classes(library: PromptLibrary) -> Sequence[str]:
    """Return the error classes that have a hint template."""
    return [n.removeprefix("hints/").removesuffix(".jinja") for n in library.names() if n.startswith("hints/")]
