"""Handle paths in the configuration: which fields are paths, and relative to which folder.

A field that is a path has one of the types below. In a config file it is relative to the file, and in a `key=value`
override to the working directory; the configuration holds the absolute path. Other values do not change: the hub name
of a model, a server's name for a model, `package.module:Name`, the name of a shipped recipe.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hintdistill.core.errors import ConfigError
from hintdistill.core.models import is_hub_name, model_key


@dataclass(frozen=True)
class PathMark:
    """Mark a field as holding paths, with their kind and the exceptions."""

    kind: Literal["input", "output", "model", "object", "recipe", "section"]
    unless: tuple[str, str] | None = None
    """A key of the same section and the value for which this field is not a path."""
    of: type[BaseModel] | None = None
    """With `section`: the section that defines the keys of the field's mapping."""


ConfigPath = Annotated[str, PathMark("input")]
"""A file, a folder or a glob that is read."""
OutputPath = Annotated[str, PathMark("output")]
"""A file or a folder that is written."""
ModelPath = Annotated[str, PathMark("model")]
"""A model folder or a hub name."""
CriticModel = Annotated[str, PathMark("model", unless=("backend", "server"))]
"""A model folder or a hub name; with a server, the server's name for the model."""
ObjectPath = Annotated[str, PathMark("object")]
"""`path/to/file.py:Name` or `package.module:Name`."""
RecipeRef = Annotated[str | dict[str, Any], PathMark("recipe")]
"""The name of a recipe, a YAML file, or a mapping with `preset`."""

Change = Callable[[str, PathMark, str], Any]
"""Key, mark and value of a path → the value that replaces it."""


def _model_of(annotation: Any) -> type[BaseModel] | None:
    """Return the model class of an annotation `X` or `X | None`, else None."""
    union = typing.get_origin(annotation) in (Union, types.UnionType)
    options = typing.get_args(annotation) if union else (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


def mark_of(field: FieldInfo) -> PathMark | None:
    """Return the mark of a field that holds paths, at any depth of its annotation; None for other fields."""
    return next((m for m in field.metadata if isinstance(m, PathMark)), None) or _inner_mark(field.annotation)


def _inner_mark(annotation: Any) -> PathMark | None:
    if typing.get_origin(annotation) is Annotated:
        return next((m for m in typing.get_args(annotation)[1:] if isinstance(m, PathMark)), None)
    return next((m for m in map(_inner_mark, typing.get_args(annotation)) if m is not None), None)


def map_paths(data: Mapping[str, Any], section: type[BaseModel], change: Change, prefix: str = "") -> dict[str, Any]:
    """Return a copy of a section's plain data with every path changed; invalid data is left for validation to
    report."""
    out = dict(data)
    for name, field in section.model_fields.items():
        value, key = data.get(name), f"{prefix}{name}"
        inner, mark = _model_of(field.annotation), mark_of(field)
        if inner is not None and isinstance(value, Mapping):
            out[name] = map_paths(value, inner, change, f"{key}.")
        elif mark is not None and mark.of is not None and isinstance(value, Mapping):
            out[name] = map_paths(value, mark.of, change, f"{key}.")
        elif mark is not None and value is not None and not _is_other(data, section, mark):
            out[name] = _map(value, key, mark, change)
    return out


def _is_other(data: Mapping[str, Any], section: type[BaseModel], mark: PathMark) -> bool:
    if mark.unless is None:
        return False
    name, value = mark.unless
    return bool(data.get(name, section.model_fields[name].default) == value)


def _map(value: Any, key: str, mark: PathMark, change: Change) -> Any:
    if isinstance(value, str):
        return change(key, mark, value)
    if isinstance(value, list | tuple):
        return [_map(item, key, mark, change) for item in value]
    if not isinstance(value, Mapping):
        return value
    if mark.kind == "recipe":
        return recipe_paths(value, key, change)
    return {name: _map(item, f"{key}.{name}", mark, change) for name, item in value.items()}


def recipe_paths(recipe: Mapping[str, Any], key: str, change: Change) -> dict[str, Any]:
    """Return a copy of a recipe's plain data with its paths changed: the recipe that it extends, and its teacher's
    model."""
    out, teacher = dict(recipe), recipe.get("teacher")
    if isinstance(recipe.get("preset"), str):
        out["preset"] = change(f"{key}.preset", PathMark("recipe"), recipe["preset"])
    if isinstance(teacher, Mapping) and isinstance(teacher.get("model"), str):
        model = change(f"{key}.teacher.model", PathMark("model"), teacher["model"])
        out["teacher"] = {**teacher, "model": model}
    return out


def resolve_paths(
    data: Mapping[str, Any], section: type[BaseModel], file: Path | None, overridden: Collection[str] = ()
) -> dict[str, Any]:
    """Return a copy of a config's plain data with absolute paths.

    Args:
        file: the file from which the data was read; None if all of it comes from the command line.
        overridden: keys that were set by overrides, whose paths are relative to the working directory.

    Raises:
        ConfigError: see `relative_to_file`.
    """

    def change(key: str, mark: PathMark, value: str) -> str:
        if file is None or any(key == o or key.startswith(f"{o}.") for o in overridden):
            return absolute(value, mark, Path.cwd())
        return relative_to_file(file, key, mark, value)

    return map_paths(data, section, change)


def relative_to_file(file: Path, key: str, mark: PathMark, value: str) -> str:
    """Return the absolute path for a value that a config file gives to a key.

    Raises:
        ConfigError: nothing exists there, but something does relative to the working directory, as in earlier releases;
            the message gives the new spelling.
    """
    base, shell = file.parent.resolve(), Path.cwd()
    path, before = absolute(value, mark, base), absolute(value, mark, shell)
    if before == path or _exists(path, mark) or not _exists(before, mark):
        return path
    new = os.path.relpath(_place(before, mark), base) + value[len(_place(value, mark)) :]
    raise ConfigError(
        f"{file}: {key}: {value} is relative to the working directory, not to the config file",
        hint=f"paths in a config file are relative to the file; write {new}",
    )


def absolute(value: str, mark: PathMark, base: Path) -> str:
    """Return the absolute path; return a value that is not a path as it is. A hub name that is also a folder below
    `base` means the folder."""
    place = _place(value, mark)
    if not place or (mark.kind == "model" and is_hub_name(value) and not (base / value).is_dir()):
        return value
    home = os.path.expanduser(place)  # noqa: PTH111
    # a pattern's own signs stay signs, those in the folder's name are letters
    root = glob.escape(str(base)) if mark.kind == "input" and glob.has_magic(home) else str(base)
    return os.path.normpath(os.path.join(root, home)) + value[len(place) :]  # noqa: PTH118


def _place(value: str, mark: PathMark) -> str:
    """Return the part of a value that is a path; empty if it has no such part."""
    if mark.kind == "object":
        file = value.rpartition(":")[0]
        return file if file.endswith(".py") else ""
    if mark.kind == "recipe":
        return value if value.endswith((".yaml", ".yml")) else ""
    # a data set of the hub is no path
    return "" if mark.kind == "input" and value.startswith("hf://") else value


def _exists(value: str, mark: PathMark) -> bool:
    place = _place(value, mark)
    if not place or not Path(place).is_absolute():
        return False
    return Path(place).exists() or (mark.kind == "input" and glob.has_magic(place) and bool(glob.glob(place)))  # noqa: PTH207


def contents(data: Mapping[str, Any], section: type[BaseModel]) -> dict[str, Any]:
    """Return a copy of a config's plain data in which the content of files and folders replaces their paths.

    Two configurations that read the same bytes are then equal, wherever their files are. A glob is replaced by its
    matches, named relative to the folder at which its wildcards begin. Output paths become None; paths to nothing stay
    as they are.
    """

    def change(key: str, mark: PathMark, value: str) -> Any:
        place = _place(value, mark)
        if mark.kind == "output":
            return None
        if not place or not Path(place).exists():
            return _content_of_glob(value) if mark.kind == "input" and glob.has_magic(place) else value
        return content_of(Path(place)) + value[len(place) :]

    return map_paths(data, section, change)


def content_of(path: Path) -> str:
    """Return a hash of a file's or folder's content, 16 hexadecimal digits; for a model folder, return its key."""
    if any((path / name).is_file() for name in ("config.json", "adapter_config.json")):
        return str(model_key(path))
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        name = "" if file == path else file.relative_to(path).as_posix()
        digest.update(f"{name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _content_of_glob(pattern: str) -> str:
    """Return a hash of the names and contents of a pattern's matches, or the pattern itself if nothing matches."""
    found = {p for p in map(Path, glob.glob(pattern, recursive=True)) if p.is_file() or p.is_dir()}  # noqa: PTH207
    if not found:
        return pattern
    parts = Path(pattern).parts
    fixed = next((i for i, part in enumerate(parts) if glob.escape(_unescape(part)) != part), len(parts) - 1)
    base, digest = Path(*map(_unescape, parts[:fixed])), hashlib.sha256()
    # a folder that is matched beside its own files holds them already
    for path in sorted(p for p in found if not any(q in found for q in p.parents)):
        digest.update(f"{path.relative_to(base).as_posix()}\0{content_of(path)}\0".encode())
    return digest.hexdigest()[:16]


def _unescape(part: str) -> str:
    """Return the inverse of `glob.escape`."""
    return re.sub(r"\[([*?[])\]", r"\1", part)


def object_content(spec: str) -> str:
    """Return `path/to/file.py:Name` with the file's content in place of the path, and `package.module:Name` as it
    is."""
    place = _place(spec, PathMark("object"))
    return content_of(Path(place)) + spec[len(place) :] if place and Path(place).is_file() else spec
