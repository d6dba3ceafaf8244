"""Tasks in BFCL's form that are made here."""

from __future__ import annotations

from typing import Any

from bfcl_data import Entry

NUMBERS = {
    "name": "area_of",
    "description": "Computes the area of a figure. Nothing else.",
    "parameters": {
        "type": "dict",
        "properties": {
            "figure": {"type": "string", "description": "Which figure.", "enum": ["circle", "square"]},
            "side": {"type": "float", "description": "Its side."},
            "digits": {"type": "integer", "description": "Digits of the result."},
            "tags": {"type": "array", "items": {"type": "string"}},
            "parts": {"type": "array", "items": {"type": "dict"}},
            "about": {"type": "dict", "properties": {"unit": {"type": "string"}}},
        },
        "required": ["figure", "side"],
    },
}
BANK = {
    "name": "find_bank",
    "description": "Finds a bank in a city.",
    "parameters": {
        "type": "dict",
        "properties": {"city": {"type": "string", "description": "The city."}},
        "required": ["city"],
    },
}


def entry(
    name: str, request: str, functions: list[dict[str, Any]], answer: Any, category: str = "simple_python"
) -> Entry:
    """A task of one turn."""
    said = ({"role": "user", "content": request},)
    return Entry(name, category, said, tuple(functions), None if answer is None else tuple(answer))
