"""Keep registries: named entries of one kind of part. An unknown name is answered with the nearest one.

Entries come from three sources: this package (imported on first use), a caller's `register`, and installed packages
through an entry-point group. An entry holds everything that the rest of the package needs to know about its part, so
adding one changes no other file. Its implementation may be a `module:name`, which keeps entries free of heavy imports.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hintdistill.core.errors import ConfigError

E = TypeVar("E")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean …?)`, or an empty string if no known word is spelled alike."""
    words = list(known)
    found = [k for k in words if k.lower() == word.lower()] or difflib.get_close_matches(word, words, 1, 0.5)
    return f" (did you mean `{found[0]}`?)" if found else ""


def require(word: str, known: Iterable[str], what: str) -> str:
    """Return the word itself. Raises ValueError with the nearest known word."""
    words = list(known)
    if word not in words:
        raise ValueError(f"unknown {what} `{word}`{nearest(word, words)}; known are {', '.join(words)}")
    return word


def loaded(implementation: Any) -> Any:
    """Return the object for `module:name`, or the module for a module's name; return other values than text as they
    are.

    Raises:
        ConfigError: it cannot be imported.
    """
    if not isinstance(implementation, str):
        return implementation
    module, _, name = implementation.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in filter(None, name.split(".")):
            found = getattr(found, part)
        return found
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{implementation} does not load: {error}") from error


class Registry(Generic[E]):
    """Hold the entries of one kind by name; see the module's docstring."""

    def __init__(self, what: str, entry: type, shipped: Mapping[str, E | str], *, group: str | None = None) -> None:
        """Make a registry.

        Args:
            what: the kind in words, for errors, e.g. `trace format`.
            entry: class or runtime protocol of an entry; the attribute `name` or `NAME` holds the entry's name.
            shipped: this package's own entries in order, or the `module:name` of each.
            group: entry-point group through which installed packages add entries.
        """
        self.what, self.group, self._entry = what, group, entry
        self._shipped: dict[str, E | str] = dict(shipped)
        self._registered: dict[str, E] = {}
        self._installed: dict[str, E] | None = None if group is not None else {}

    def register(self, entry: E) -> E:
        """Add an entry and return it. Raises ConfigError if it lacks an attribute, or its name is taken."""
        name = self._name(self._checked(entry, ""))
        if name in self._shipped or name in self._registered or name in (self._installed or {}):
            raise ConfigError(f"the {self.what} `{name}` is already registered")
        self._registered[name] = entry
        return entry

    def remove(self, name: str) -> None:
        """Remove a registered entry. Raises ConfigError for any other name."""
        if self._registered.pop(name, None) is None:
            raise ConfigError(f"the {self.what} `{name}` was not registered by a caller")

    def refresh(self) -> None:
        """Forget the entries of installed packages; the next access reads them again."""
        self._installed = None if self.group is not None else {}

    def get(self, name: str) -> E:
        """Return the entry of that name. Raises ConfigError with the nearest name."""
        if name in self._shipped:
            entry: E = loaded(self._shipped[name])
            self._shipped[name] = entry
            return entry
        try:
            self.require(name)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        return self._registered[name] if name in self._registered else self._offered()[name]

    def require(self, name: str) -> str:
        """Return the name itself. Raises ValueError with the nearest name, for validators."""
        if name in self._shipped or name in self._registered:
            return name
        return require(name, self.names(), self.what)

    def names(self) -> tuple[str, ...]:
        """Return every name: shipped, registered, installed."""
        return (*self._shipped, *self._registered, *self._offered())

    def entries(self) -> tuple[E, ...]:
        """Return every entry, in the order of `names`."""
        return tuple(self.get(n) for n in self.names())

    def outside(self) -> tuple[E, ...]:
        """Return the entries from outside this package: installed ones, then registered ones."""
        return (*self._offered().values(), *self._registered.values())

    def __contains__(self, name: object) -> bool:
        return name in self._shipped or name in self._registered or name in self._offered()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _offered(self) -> dict[str, E]:
        """Return the entries of installed packages by name; they are loaded once."""
        if self._installed is None:
            found: dict[str, E] = {}
            for point in sorted(importlib.metadata.entry_points(group=self.group or ""), key=lambda p: p.name):
                try:
                    entry = point.load()
                except Exception as error:
                    raise ConfigError(
                        f"the {self.what} {point.name} ({point.value}) does not load: {error}",
                        hint=f"it is an entry point of the group {self.group}; fix or uninstall its package",
                    ) from error
                name = self._name(self._checked(entry, f" {point.name} ({point.value})"))
                if name in self._shipped or name in found or name in self._registered:
                    raise ConfigError(
                        f"the {self.what} {point.name} ({point.value}) cannot be added: the name `{name}` is already taken"
                    )
                found[name] = entry
            self._installed = found
        return self._installed

    def _checked(self, entry: Any, where: str) -> Any:
        if not isinstance(entry, self._entry):
            article = "an" if self._entry.__name__[0] in "AEIOU" else "a"
            lacks = f"is not {article} {self._entry.__name__}"
            if getattr(self._entry, "_is_protocol", False):
                asked = {*self._entry.__annotations__, *vars(self._entry)}
                lacks = f"lacks {', '.join(sorted(n for n in asked if n[0] != '_' and not hasattr(entry, n)))}"
            raise ConfigError(f"the {self.what}{where} {lacks}: {entry!r}")
        return entry

    @staticmethod
    def _name(entry: Any) -> str:
        return str(entry.NAME if hasattr(entry, "NAME") else entry.name)


class Implementations(Mapping[str, Any]):
    """Map the names of a registry's entries to their implementations, each imported on access."""

    def __init__(self, registry: Registry[Any], which: Callable[[Any], bool] = lambda entry: True) -> None:
        """Map only the entries that `which` accepts."""
        self._registry, self._which = registry, which

    def __getitem__(self, name: str) -> Any:
        if name not in self._registry or not self._which(self._registry.get(name)):
            raise KeyError(name)
        return loaded(self._registry.get(name).implementation)

    def __iter__(self) -> Iterator[str]:
        return (e.name for e in self._registry.entries() if self._which(e))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class NameIn:
    """Mark a field of a pydantic model as the name of an entry: `Annotated[str, NameIn(ENGINES)]`."""

    registry: Registry[Any]

    @property
    def choices(self) -> str:
        """The names that are allowed."""
        return ", ".join(self.registry.names())

    def __repr__(self) -> str:
        return f"NameIn({self.choices})"

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        # here, because objectives look their functions up in registries and need no pydantic
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.registry.require, core_schema.str_schema())

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"type": "string", "enum": list(self.registry.names())}
