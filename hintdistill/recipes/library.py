"""Find recipe files, merge them with overrides, and validate them. Each `configs/recipes/NAME.yaml` holds one
recipe."""

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

_WORDS = "it had no effect on runs; describe it in words under `published:` (or `ours:`)"
REMOVED = {
    "data.locator": f"the critic locates a run's errors; {_WORDS}",
    **{
        f"data.rollout.{key}": _WORDS
        for key in ("n", "group", "top_p", "share", "coin", "length", "schedule", "live_traffic")
    },
    "data.hint.max_sentences": f"the critic's prompt limits its hints; {_WORDS}",
    "data.hint.no_answer": f"the gate's check `leak` refuses such hints; {_WORDS}",
    "diagnostics": f"`hintdistill.objectives.diagnostics` has the functions; {_WORDS}",
    "kind": "every recipe is an objective; docs/methods.md lists the methods that are not",
    "extra_needs": "the needs of a recipe follow from its other keys",
    "controllers": "teacher.update=cgtr is the only controller that training ever had; leave the key out",
}
"""Key that recipes once had → what to write instead."""
DEFAULT = "targeted"
"""The default recipe of a run."""


def recipe_folder() -> Path:
    """Return where the shipped recipes are."""
    return data_root() / "configs" / "recipes"


def recipe_names() -> list[str]:
    """Return the names of the shipped recipes."""
    return sorted(p.stem for p in recipe_folder().glob("*.yaml"))


def load_recipe(
    what: str | Mapping[str, Any] = DEFAULT,
    overrides: Mapping[str, Any] | None = None,
    beneath: Mapping[str, Any] | None = None,
) -> Recipe:
    """Return a recipe by name, from a file (`*.yaml`), or from a mapping whose `preset` names the recipe that it
    extends.

    Overrides are merged key by key. null removes a term or view. A new kind of divergence or signal drops the old one's
    parameters. A term that the preset does not have must give its `rows`, or its `target` and `divergence`.

    Args:
        beneath: terms by name; a preset that lacks one gets it if the mapping changes keys of it.

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
                f"recipe {name} has no term `{term}`{nearest(str(term), [t for t in terms if t != term])}",
                hint="a term of your own must name its divergence",
            )
    recipe = validate(merged, f"recipe {name}")
    shipped = _resolved(recipe.name)[0].get("views") or {} if recipe.name in recipe_names() else {}
    read = [name for rows in get_args(TargetKind) for name in recipe.used_names(rows)]
    for view in recipe.views:
        if view not in shipped and view not in read:
            raise ConfigError(f"recipe {name}: no term reads the view `{view}`{nearest(view, read)}")
    return recipe


def validate(data: Mapping[str, Any], where: str) -> Recipe:
    """Turn plain data into a Recipe. Raises ConfigError that names every offending key."""
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
        return (
            f"{where}: unknown word `{error['input']}`{nearest(str(error['input']), known)}; known are "
            f"{', '.join(known)}"
        )
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
                f"there is no recipe `{what}`: {why}",
                hint="docs/methods.md lists every method, with and without a recipe",
            )
        raise ConfigError(
            f"there is no recipe `{what}`{nearest(what, recipe_names())}",
            hint="`hintdistill recipes list` shows all recipes",
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
    """Give a recipe under a new name its own title instead of its preset's, unless it sets one itself."""
    if name != preset and "title" not in own:
        data["title"] = f"a user's own recipe, based on {preset}"
    return data


def _over(
    start: Mapping[str, Any], own: Mapping[str, Any], name: str, beneath: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return a recipe's data with the changes merged in. Raises ConfigError for keys of a term that the recipe does not
    have."""
    there, changed = start.get("terms") or {}, own.get("terms")
    for term, keys in changed.items() if isinstance(changed, Mapping) else ():
        if keys is None and term not in there and term not in HELD:
            # a default term that is not there may be taken away: it is what was wanted
            raise ConfigError(
                f"recipe {name} has no term `{term}` that could be removed{nearest(str(term), there)}",
                hint=f"its terms are {', '.join(there) or 'none'}",
            )
        if term in there or not isinstance(keys, Mapping) or "rows" in keys or {"target", "divergence"} <= keys.keys():
            continue
        if term not in (beneath or {}):
            raise ConfigError(
                f"recipe {name} has no term `{term}`{nearest(str(term), there)}; its terms are "
                f"{', '.join(there) or 'none'}",
                hint="a term of your own must name its rows (hint, anchor, hold or twin) and its divergence",
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
    """Parse a recipe file's text once, because validating one configuration reads the default recipe several times."""
    return yaml.safe_load(text)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Change keys of a recipe's plain data; null removes a key, and both arguments stay unchanged. See
    `load_recipe`."""
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
