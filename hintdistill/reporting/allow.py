"""Rules for the parts of a document that may be shared; everything without a rule is left out.

A rule takes a value and the names given so far, and returns the shareable part of the value, or `LEFT_OUT`. Words are
shared only if they are on a list in the code; any other name is replaced by a number, which is the same throughout one
document.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

BLANK = "▯"
"""Replaces text."""
LEFT_OUT = object()


@dataclass
class Names:
    """Assign numbers to names of each kind, in the order in which they occur."""

    given: dict[str, dict[str, str]] = field(default_factory=dict)

    def of(self, kind: str, name: str) -> str:
        """Return `kind-1` for the first name of a kind, `kind-2` for the second, and the same result for the same
        name."""
        mine = self.given.setdefault(kind, {})
        return mine.setdefault(name, f"{kind}-{len(mine) + 1}")


Rule = Callable[[Any, Names], Any]


def number(value: Any, names: Names) -> Any:
    """Return a number, a truth value or None unchanged; anything else becomes None."""
    return value if isinstance(value, bool | int | float) else None


def text(value: Any, names: Names) -> Any:
    """Replace any text by the blank."""
    return BLANK


def text_or_none(value: Any, names: Names) -> Any:
    """Replace a text by the blank; None stays None."""
    return None if value is None else BLANK


def nothing(value: Any, names: Names) -> Any:
    """Replace a value by None; the page needs the key."""
    return None


def how_many(what: str) -> Rule:
    """Replace a list by one line with its length."""

    def rule(value: Any, names: Names) -> Any:
        return [f"{len(value)} {what}, left out here"] if isinstance(value, list) and value else []

    return rule


def numbered(kind: str) -> Rule:
    """Replace every name by a number."""

    def rule(value: Any, names: Names) -> Any:
        return None if value is None else names.of(kind, str(value))

    return rule


def word(kind: str, known: Collection[str] | Callable[[], Collection[str]]) -> Rule:
    """Return known words unchanged; any other word becomes a number of its kind. `known` may be a function, which is
    called when needed."""

    def rule(value: Any, names: Names) -> Any:
        words = known() if callable(known) else known
        return value if value is None or (isinstance(value, str) and value in words) else names.of(kind, str(value))

    return rule


def head(separator: str, rule: Rule) -> Rule:
    """Apply a rule to the text before the separator; the rest is left out."""

    def of_head(value: Any, names: Names) -> Any:
        return rule(str(value).partition(separator)[0], names)

    return of_head


def matching(pattern: str) -> Rule:
    """Return a text unchanged if all of it has this form, e.g. a hash; anything else becomes None."""

    def rule(value: Any, names: Names) -> Any:
        return value if isinstance(value, str) and re.fullmatch(pattern, value, re.ASCII) else None

    return rule


def record(**rules: Rule) -> Rule:
    """Keep the named keys of a mapping, each by its rule. None stays None; a value without any of the keys is left
    out."""

    def rule(value: Any, names: Names) -> Any:
        if not isinstance(value, dict):
            return None if value is None else LEFT_OUT
        out = {key: inner(value[key], names) for key, inner in rules.items() if key in value}
        kept = {key: shown for key, shown in out.items() if shown is not LEFT_OUT}
        return LEFT_OUT if value and not kept else kept

    return rule


def table(key: Rule, entry: Rule) -> Rule:
    """Keep a mapping with free keys, applying a rule to each key and each entry."""

    def rule(value: Any, names: Names) -> Any:
        if not isinstance(value, dict):
            return None if value is None else LEFT_OUT
        out = {key(k, names): entry(v, names) for k, v in value.items()}
        return {k: v for k, v in out.items() if v is not LEFT_OUT}

    return rule


def each(entry: Rule) -> Rule:
    """Keep a list, applying the rule to each item; anything but a list is left out."""

    def rule(value: Any, names: Names) -> Any:
        if not isinstance(value, list):
            return None if value is None else LEFT_OUT
        return [shown for shown in (entry(item, names) for item in value) if shown is not LEFT_OUT]

    return rule
