"""Build a RunConfig from a YAML file and `key=value` overrides.

An unknown key is an error that names the nearest known one; no key is guessed or ignored.
"""

from __future__ import annotations

import copy
import difflib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union

import yaml
from pydantic import BaseModel, ValidationError

from hintdistill.config import RunConfig, Section
from hintdistill.config.removed import REMOVED
from hintdistill.core.errors import ConfigError
from hintdistill.core.paths import resolve_paths
from hintdistill.core.trust import written_elsewhere

C = TypeVar("C", bound=Section)


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file (or none), apply `key=value` overrides, and validate the result. Paths in the result are
    absolute.

    Paths in the file are relative to the file; paths in overrides are relative to the working directory. See
    `core/paths.py`.

    Raises:
        ConfigError: the file is missing, the YAML is invalid, a key is unknown (the error names the nearest known one),
            or a value is out of range.
    """
    config = load_as(RunConfig, path, overrides)
    if path is None or not (Path(path).parent / "manifest.json").exists():
        return config
    # a run folder's own configuration is not the caller's
    written = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return config.of_folder(written_elsewhere(Path(path).parent, written))


def load_as(model: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read settings that are not a run's but are written in the same way. Raises ConfigError like `load_config`."""
    data: dict[str, Any] = {}
    where = "the overrides"
    if path is not None:
        where = str(path)
        try:
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"no config file at {path}", hint="`hintdistill init DIR` writes one to start from"
            ) from None
        except IsADirectoryError:
            inside = Path(path) / "config.yaml"
            hint = f"its settings are in {inside}" if inside.is_file() else "name the YAML file in it"
            raise ConfigError(
                f"{path} is a folder but not a run folder: {hint}",
                hint="give a YAML file, or a run folder with --resume",
            ) from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
        except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
            raise ConfigError(f"{path} is not valid YAML: {error}") from error
        except RecursionError:
            raise ConfigError(f"{path} is nested too deeply to be a config") from None
        if not isinstance(loaded, dict):
            raise ConfigError(f"{path} must contain a mapping with the sections {', '.join(model.model_fields)}")
        data = loaded
    overridden = [_apply(data, override) for override in overrides]
    file = None if path is None else Path(path)
    return validate_as(model, resolve_paths(coerce_sequences(data, model), model, file, overridden), where)


def validate(data: Mapping[str, Any], where: str = "config") -> RunConfig:
    """Convert plain data into a RunConfig. Raises ConfigError naming every offending key."""
    return validate_as(RunConfig, data, where)


def validate_as(model: type[C], data: Mapping[str, Any], where: str = "config") -> C:
    """Convert plain data into settings of any class. Raises ConfigError naming every offending key."""
    problems = [
        f"`{key}` was removed: {REMOVED[key]}" if key in REMOVED else f"unknown key `{key}`{_nearest(key, known)}"
        for key, known in _unknown_keys(data, model)
    ]
    if problems:
        raise ConfigError(f"{where}: " + "; ".join(problems), hint=f"{model.documented} lists all keys")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        # where an item is wrong, the ones that are left may be too few; that says nothing new
        items = {e["loc"][:-1] for e in found if e["loc"] and isinstance(e["loc"][-1], int)}
        said = [e for e in found if e["type"] != "too_short" or e["loc"] not in items]
        lines = [f"{'.'.join(str(p) for p in e['loc']) or 'config'}: {_clean(e['msg'])}" for e in said]
        raise ConfigError(f"{where}: " + "; ".join(lines), hint=f"{model.documented} lists all keys") from None


def _clean(message: str) -> str:
    return message.removeprefix("Value error, ")


def _apply(data: dict[str, Any], override: str) -> str:
    """Set a key in `data` and return the key."""
    key, sep, text = override.partition("=")
    if not sep or not key:
        raise ConfigError(f"override {override!r} is not of the form key=value")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {key!r} is not valid YAML: {error}") from error
    *parents, last = key.split(".")
    node = data
    for i, part in enumerate(parents):
        child = node.get(part)
        if isinstance(child, str) and [*parents[:i], part] == ["train", "recipe"]:
            # a recipe's name, of which a key is now changed
            child = node[part] = {"preset": child}
        if child is None:
            child = node[part] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"`{'.'.join(parents[: i + 1])}` is a value, not a section, so `{key}` cannot be set")
        node = child
    node[last] = value
    return key


def _sequence_keys(model: type[Section]) -> set[str]:
    return {path for path, annotation in _leaves(model) if typing.get_origin(annotation) is tuple}


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, info in model.model_fields.items():
        inner = section_of(info.annotation)
        if inner is not None:
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", info.annotation


def section_of(annotation: Any) -> type[Section] | None:
    """Return the Section class of an annotation `X` or `X | None`, else None."""
    options = (
        typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    )
    for option in options:
        if isinstance(option, type) and issubclass(option, Section):
            return option
    return None


def _unknown_keys(
    data: Any, model: type[BaseModel], prefix: str = "", root: type[BaseModel] | None = None
) -> Iterable[tuple[str, list[str]]]:
    root = root or model
    if not isinstance(data, Mapping):
        return
    for key, value in data.items():
        path = f"{prefix}{key}"
        if key not in model.model_fields:
            yield path, [name for name, _ in _leaves(root)] + [f"{prefix}{n}" for n in model.model_fields]
            continue
        inner = section_of(model.model_fields[key].annotation)
        if inner is not None:
            yield from _unknown_keys(value, inner, f"{path}.", root)


def known_keys(data: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return a copy of a config's plain data without the keys that this release does not know, and a list of those
    keys."""
    unknown = [key for key, _ in _unknown_keys(data, RunConfig)]
    known = copy.deepcopy(dict(data))
    for key in unknown:
        *parents, last = key.split(".")
        node = known
        for part in parents:
            node = node[part]
        del node[last]
    return known, unknown


def _nearest(key: str, known: list[str]) -> str:
    """Return the key that was probably meant: a similar key of the same section, else the same name in another section,
    else any similar key."""
    section, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    near = [siblings[n] for n in difflib.get_close_matches(name, siblings, 1, 0.6)]
    near = near or [k for k in known if k.rpartition(".")[2] == name] or difflib.get_close_matches(key, known, 1, 0.6)
    return f" (did you mean `{near[0]}`?)" if near else ""


def coerce_sequences(data: dict[str, Any], model: type[Section] = RunConfig) -> dict[str, Any]:
    """Turn one YAML item into a list where a field takes several: `path: a.jsonl` becomes `path: [a.jsonl]`."""
    for key in _sequence_keys(model):
        *parents, last = key.split(".")
        node: Any = data
        for part in parents:
            node = node.get(part) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node and not isinstance(node[last], list | tuple | types.NoneType):
            node[last] = [node[last]]
    return data
