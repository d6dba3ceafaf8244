"""bfcl-eval's own checkers, which the tests compare with."""

from __future__ import annotations

import importlib
import sys
import types
from functools import cache
from typing import Any

NAME = "reference"


@cache
def modules() -> tuple[Any, Any]:
    """The checker of one turn and the language it wants.

    It imports a table of a hundred vendors' clients, of which it asks one thing, whether a model writes dots in names as
    underscores: a table of one model that does not stands in for it.
    """
    table = types.ModuleType("bfcl_eval.constants.model_config")
    table.MODEL_CONFIG_MAPPING = {NAME: types.SimpleNamespace(underscore_to_dot=False)}  # type: ignore[attr-defined]
    sys.modules.setdefault(table.__name__, table)
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    return checker, importlib.import_module("bfcl_eval.constants.enums").Language.PYTHON


def accepts(entry: Any, calls: list[Any]) -> bool | None:
    """Whether the package takes the calls of a task; None where its checker breaks on them."""
    checker, language = modules()
    told = [{c.name: c.arguments} for c in calls]
    try:
        found = checker.ast_checker(list(entry.functions), told, list(entry.answer), language, entry.category, NAME)
    except Exception:
        return None
    return bool(found["valid"])


def accepts_turns(talk: Any, turns: list[list[list[str]]], run: str) -> bool:
    """Whether the package takes the calls of a task of several turns, given as Python source by turn and step."""
    checker = importlib.import_module("bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker")
    entry = {"id": talk.id, "initial_config": talk.state, "involved_classes": list(talk.classes)}
    return bool(checker.multi_turn_checker(turns, [list(t) for t in talk.answer], entry, talk.category, run)["valid"])
