"""Handle options of a chat template, which a run or a trace sets in addition to messages and tools.

They affect what the student read, so they are checked against the template, and every content key that depends on a
render includes them. A template that prints today's date gets one date for the life of a renderer.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hintdistill.core.errors import ConfigError

DATE = "strftime_now"
"""Name of the function from which templates get today's date; as an option it sets a fixed date (`2026-05-01`)."""
RESERVED = ("messages", "tools", "add_generation_prompt", "continue_final_message", "tokenize", "chat_template")
_TODAY_READ = re.compile(rf"\b{DATE}\s*\(")
_TODAY_FORMAT = re.compile(rf"""\b{DATE}\s*\(\s*(['"])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class TemplateOptions:
    """Hold options by name, and the date for the template if no option sets one."""

    values: Mapping[str, Any] = field(default_factory=dict)
    today: datetime.date = field(default_factory=datetime.date.today)
    origin: str = "run.template.options"
    """Origin of the options, for messages."""

    def updated(self, values: Mapping[str, Any], origin: str) -> TemplateOptions:
        """Return the options, overridden by others."""
        return TemplateOptions({**self.values, **values}, self.today, origin)

    @staticmethod
    def reads(template: str, name: str) -> bool:
        """Return whether a template reads an option."""
        return name not in RESERVED and re.search(rf"\b{re.escape(name)}\b", template) is not None

    def require_read(self, template: str) -> None:
        """Refuse options that the template does not read.

        Raises:
            ConfigError: the template does not read an option; the message names it and its origin.
        """
        for name in self.values:
            if name in RESERVED:
                raise ConfigError(
                    f"{self.origin}: {name} cannot be set as an option of the chat template, because the toolkit sets "
                    "it"
                )
            if not self.reads(template, name):
                raise ConfigError(
                    f"{self.origin}: the chat template does not read the option {name!r}",
                    hint="look in the template's text for the options that it reads; any other option would have no "
                    "effect",
                )
        if DATE in self.values:
            self._date()
            if _TODAY_READ.search(self.dated(template)):
                raise ConfigError(
                    f"{self.origin}: {DATE} cannot be set, because the template computes the format of its date"
                )

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for a render."""
        return {k: v for k, v in self.values.items() if k != DATE}

    def dated(self, template: str) -> str:
        """Return the template with the date filled in, if it asks for today's date."""
        day = self._date()
        return _TODAY_FORMAT.sub(lambda found: json.dumps(day.strftime(found[2])), template)

    def key(self, template: str) -> str:
        """Return the options as text for a content key, including today's date if this template may print it."""
        plain = json.dumps(dict(self.values), sort_keys=True, default=str)
        undated = DATE not in self.values and not any("date" in name for name in self.values)
        return plain + (self.today.isoformat() if undated and _TODAY_READ.search(template) else "")

    def _date(self) -> datetime.date:
        said = self.values.get(DATE)
        try:
            # YAML reads a bare date as one
            return self.today if said is None else datetime.date.fromisoformat(str(said))
        except ValueError:
            raise ConfigError(f"{self.origin}: {DATE} must be a date like 2026-05-01, not {said!r}") from None
