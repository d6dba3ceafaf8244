"""Every key of the configuration with its type, default and meaning, for docs/config.md, the JSON schema and the frozen
surface.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hintdistill.config import RunConfig
from hintdistill.config.file import section_of
from hintdistill.core.registry import NameIn


@dataclass(frozen=True)
class Leaf:
    """Describe one key that can be set."""

    key: str
    """The key with its sections, e.g. `train.lora.rank`."""
    type: str
    default: str
    meaning: str


def leaves(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Leaf]:
    """Yield every key below a section, in order. A key whose type is a section, or a section or null, is not a leaf;
    the section's keys are yielded instead."""
    texts = meanings(model)
    for name, info in model.model_fields.items():
        inner = section_of(info.annotation)
        if inner is not None:
            yield from leaves(inner, f"{prefix}{name}.")
        else:
            yield Leaf(
                f"{prefix}{name}", type_name(info.annotation, info.metadata), default_of(info), texts.get(name, "")
            )


def meanings(model: type[BaseModel]) -> dict[str, str]:
    """Return the description of each key: the string below it in the source of its section."""
    tree = ast.parse(inspect.getsource(sys.modules[model.__module__]))
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == model.__name__]
    texts = {}
    for field, after in zip(found.body, [*found.body[1:], None], strict=True):
        match (field, after):
            case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text)))):
                texts[name] = " ".join(text.split())
    return texts


def type_name(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """Return a type in readable form. For a registry name, list the known names, to which plugins may add."""
    if names := [m for m in metadata if isinstance(m, NameIn)]:
        return f"name: {names[0].choices}"
    text = (
        annotation.__name__ if isinstance(annotation, type) and not hasattr(annotation, "__args__") else str(annotation)
    )
    text = re.sub(r"(?:typing\.)?Annotated\[str, NameIn\((.*?)\)\]", r"name: \1", text)
    text = re.sub(r"typing\.Annotated\[(.*?), PathMark\((?:[^()]|\([^()]*\))*\)\]", r"\1", text)
    text = re.sub(r"typing\.Optional\[(.*)\]$", r"\1 or null", text)
    return text.replace("typing.", "").replace("NoneType", "null").replace("None", "null").replace("|", "or")


def default_of(info: Any) -> str:
    """Return a field's default in YAML notation."""
    if info.default_factory is not None:
        return "{}"
    if info.default is PydanticUndefined:
        return "required"
    value = info.default
    if isinstance(value, tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if value != "" else repr(value)


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of a config file, with the meaning of each key. `train.recipe` takes the name of a recipe
    or any of its keys, which `recipe_schema` describes."""
    schema = RunConfig.model_json_schema()
    described = {model.__name__: model for model in _sections(RunConfig)}
    for name, part in {**schema["$defs"], RunConfig.__name__: schema}.items():
        if name in described:
            for key, text in meanings(described[name]).items():
                part["properties"][key]["description"] = text
            part["properties"] = {key: _one_or_several(field) for key, field in part["properties"].items()}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _one_or_several(field: dict[str, Any]) -> dict[str, Any]:
    """Return a field's schema. A field that takes a list also accepts a single item, as in `load_config`."""
    if field.get("type") != "array" or "items" not in field:
        return field
    said = {key: field[key] for key in ("title", "description", "default") if key in field}
    array = {key: value for key, value in field.items() if key not in said}
    return said | {"anyOf": [field["items"], array]}


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe file."""
    from hintdistill.recipes import Recipe

    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Recipe.model_json_schema(by_alias=True)}


def _sections(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    yield model
    for info in model.model_fields.values():
        inner = section_of(info.annotation)
        if inner is not None:
            yield from _sections(inner)
