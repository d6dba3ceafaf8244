"""Recipe files: find, merge with overrides, validate. `configs/recipes/NAME.yaml`, one recipe a file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from hintdistill.core.errors import ConfigError
from hintdistill.core.package_data import data_root
from hintdistill.core.paths import recipe_paths, relative_to_file
from hintdistill.core.registry import nearest
from hintdistill.core.types import HELD, TargetKind
from hintdistill.recipes import data as data_schema
from hintdistill.recipes import schema
from hintdistill.recipes.parts import SIGNALS
from hintdistill.recipes.removed import why_removed
from hintdistill.recipes.schema import Recipe

_WORDS = "no run used it; describe it in words under `published:` (or `ours:`)"
REMOVED = {
    "data.locator": f"the critic says where a run's errors are; {_WORDS}",
    **{
        f"data.rollout.{key}": _WORDS
        for key in ("n", "group", "top_p", "share", "coin", "length", "schedule", "live_traffic")
    },
    "data.hint.max_sentences": f"the critic's prompt bounds its hints; {_WORDS}",
    "data.hint.no_answer": f"the gate's check `leak` refuses such hints; {_WORDS}",
    "diagnostics": f"`hintdistill.objectives.diagnostics` has the functions; {_WORDS}",
    "kind": "every recipe is an objective; docs/methods.md lists the methods that are not",
    "extra_needs": "what a recipe needs follows from its other keys",
    "controllers": "teacher.update=cgtr is the one controller that a training had; leave the key out",
}
"""Key that recipes once had → what to write instead."""
DEFAULT = "targeted"
"""The recipe of a run that names none."""


def recipe_folder() -> Path:
    """Return where the shipped recipes are."""
    return data_root() / "configs" / "recipes"


def recipe_names() -> list[str]:
    """Return the shipped recipes."""
    return sorted(p.stem for p in recipe_folder().glob("*.yaml"))


def load_recipe(
    what: str | Mapping[str, Any] = DEFAULT,
    overrides: Mapping[str, Any] | None = None,
    beneath: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a recipe by name, by file (`*.yaml`), or as a mapping whose `preset` names what it starts from.

    Overrides are merged into it, key by key; null takes a term or view away, and a divergence of another kind, or another
    signal, leaves the old one's parameters behind. A term that the preset does not have must say its `rows`, or its `target`
    and `divergence`.

    Args:
        beneath: terms by name, which a preset without them gets where the mapping changes keys of them.

    Raises:
        ConfigError: no such recipe, an unknown part or key (with the nearest name), or a contradiction (with the reason).
    """
    data, name = _resolved(what, beneath)
    merged = _over(data, overrides or {}, name)
    merged.setdefault("name", name)
    terms = merged.get("terms")
    terms = terms if isinstance(terms, Mapping) else {}
    for term, keys in terms.items():
        if isinstance(keys, Mapping) and "divergence" not in keys:
            raise ConfigError(
                f"recipe {name}: no term `{term}`{nearest(str(term), [t for t in terms if t != term])}",
                hint="a term of your own must name its divergence",
            )
    recipe = validate(merged, f"recipe {name}")
    shipped = _resolved(recipe.name)[0].get("views") or {} if recipe.name in recipe_names() else {}
    read = [name for rows in get_args(TargetKind) for name in recipe.used_names(rows)]
    for view in recipe.views:
        if view not in shipped and view not in read:
            raise ConfigError(f"recipe {name}: nothing reads the view `{view}`{nearest(view, read)}")
    return recipe


def validate(data: Mapping[str, Any], where: str) -> Recipe:
    """Plain data → Recipe. Raises ConfigError naming every offending key."""
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        lines = [_line(e) for e in error.errors()]
        raise ConfigError(
            f"{where}: " + "; ".join(dict.fromkeys(lines)), hint="docs/recipes.md lists parts and keys"
        ) from None


def _line(error: Any) -> str:
    # the branches of a union (number or schedule) are of no interest to the reader
    place = [str(p) for p in error["loc"] if p not in ("float", "Schedule") and "[" not in str(p)]
    where = ".".join(place) or "recipe"
    if error["type"] == "extra_forbidden" and (why := _removed(where)):
        return f"`{where}` was removed: {why}"
    if error["type"] == "extra_forbidden":
        return f"unknown key `{where}`{nearest(place[-1], _all_keys())}"
    if error["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", error["ctx"]["expected"])
        return f"{where}: unknown word `{error['input']}`{nearest(str(error['input']), known)}; there are {', '.join(known)}"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}"


def _removed(key: str) -> str | None:
    """Return what to write in place of a key that recipes once had, or of a part of it; None for any other key."""
    return next((why for old, why in REMOVED.items() if key == old or key.startswith(f"{old}.")), None)


@lru_cache(maxsize=1)
def _all_keys() -> tuple[str, ...]:
    found = [*vars(schema).values(), *vars(data_schema).values()]
    classes = [c for c in found if isinstance(c, type) and issubclass(c, BaseModel)]
    return tuple(sorted({f.alias or n for c in classes for n, f in c.model_fields.items()}))


def _resolved(what: str | Mapping[str, Any], beneath: Mapping[str, Any] | None = None) -> tuple[dict[str, Any], str]:
    if isinstance(what, Mapping):
        start, name = _resolved(what.get("preset") or DEFAULT, beneath)
        own = {k: v for k, v in what.items() if k != "preset"}
        named = str(own.get("name", name))
        return _titled(_over(start, own, name, beneath), own, name, named), named
    path = Path(what) if what.endswith((".yaml", ".yml")) else recipe_folder() / f"{what}.yaml"
    if not path.is_file():
        if path == Path(what):
            raise ConfigError(f"no recipe file at {path}")
        if why := why_removed(what):
            raise ConfigError(
                f"no recipe `{what}`: {why}", hint="docs/methods.md lists every method, with and without a recipe"
            )
        raise ConfigError(
            f"no recipe `{what}`{nearest(what, recipe_names())}", hint="`hintdistill recipes list` shows what there is"
        )
    data = recipe_paths(_read(path), "", partial(relative_to_file, path))
    if data.get("preset"):
        start, name = _resolved(str(data["preset"]), beneath)
        own = {k: v for k, v in data.items() if k != "preset"}
        data = _titled(_over(start, own | {"name": path.stem}, name, beneath), own, name, path.stem)
    for term in (data.get("terms") or {}).values():
        # said, so that an override of one coefficient leaves the teacher's where it was
        if isinstance(term, dict) and term.get("divergence"):
            term["target"] = {"loglin": {"teacher": 1.0}} | dict(term.get("target") or {})
    return data, path.stem


def _titled(data: dict[str, Any], own: Mapping[str, Any], preset: str, name: str) -> dict[str, Any]:
    """Return a recipe of another name than what it starts from does not bear the title of that, unless it says so
    itself."""
    if name != preset and "title" not in own:
        data["title"] = f"a recipe of one's own, begun from {preset}"
    return data


def _over(
    start: Mapping[str, Any], own: Mapping[str, Any], name: str, beneath: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return what changes a recipe, merged into it. Raises ConfigError for keys of a term that the recipe does not
    have."""
    there, changed = start.get("terms") or {}, own.get("terms")
    for term, keys in changed.items() if isinstance(changed, Mapping) else ():
        if keys is None and term not in there and term not in HELD:
            # a default term that is not there may be taken away: it is what was wanted
            raise ConfigError(
                f"recipe {name}: no term `{term}` to take away{nearest(str(term), there)}",
                hint=f"its terms are {', '.join(there) or 'none'}",
            )
        if term in there or not isinstance(keys, Mapping) or "rows" in keys or {"target", "divergence"} <= keys.keys():
            continue
        if term not in (beneath or {}):
            raise ConfigError(
                f"recipe {name}: no term `{term}`{nearest(str(term), there)}; its terms are {', '.join(there) or 'none'}",
                hint="a term of your own must say which rows it is of (rows: hint, anchor, hold or twin) and its divergence",
            )
        start = merge(start, {"terms": {term: (beneath or {})[term]}})
    return merge(start, own)


def _read(path: Path) -> dict[str, Any]:
    try:
        data = deepcopy(_parsed(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping")
    return data


@lru_cache(maxsize=128)
def _parsed(text: str) -> Any:
    """Parse a recipe file's text once: validating one configuration asks for the default recipe several times."""
    return yaml.safe_load(text)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Change keys of a recipe's plain data; null takes a key away, and neither argument is changed. See `load_recipe`."""
    out = dict(base)
    for key, value in over.items():
        old = out.get(key)
        if value is None:
            out.pop(key, None)
        elif (
            key == "divergence" and isinstance(old, Mapping) and isinstance(value, Mapping) and _other_kind(old, value)
        ):
            out[key] = dict(value)
        elif key == "divergence" and isinstance(old, Mapping) and isinstance(value, Mapping) and "signal" in value:
            # another signal, or the same: what the old one took is left behind, what is new is checked
            before = str(old.get("signal", "log"))
            mine = {p.name for p in SIGNALS.get(before, ())} if value["signal"] != before else set()
            out[key] = merge({k: v for k, v in old.items() if k not in mine}, value)
        elif isinstance(value, Mapping):
            out[key] = merge(old if isinstance(old, Mapping) else {}, value)
        else:
            out[key] = value
    return out


def _other_kind(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    return "kind" in new and new["kind"] != old.get("kind", "rkl")
