"""Whether text may leave this machine: keys and tokens by detect-secrets, e-mail addresses by their shape.

A trace is read as it is sent and with its JSON escapes undone, one level after the other: a password in the arguments of a
call stands in quotation marks that the record escapes, and behind the backslashes no detector sees it. Nothing found is
ever repeated: a refusal says which message holds what kind of secret.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from hintdistill.core.errors import ConfigError, InputError

EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
DETECTORS = (
    "ArtifactoryDetector",
    "AWSKeyDetector",
    "AzureStorageKeyDetector",
    "BasicAuthDetector",
    "CloudantDetector",
    "DiscordBotTokenDetector",
    "GitHubTokenDetector",
    "GitLabTokenDetector",
    "IbmCloudIamDetector",
    "JwtTokenDetector",
    "KeywordDetector",
    "MailchimpDetector",
    "NpmDetector",
    "OpenAIDetector",
    "PrivateKeyDetector",
    "PypiTokenDetector",
    "SendGridDetector",
    "SlackDetector",
    "SoftlayerDetector",
    "SquareOAuthDetector",
    "StripeDetector",
    "TelegramBotTokenDetector",
    "TwilioKeyDetector",
)
"""Every detector of the library that looks for the shape of a key; not the two that measure entropy, to which every
order number of a trace is a secret."""

MODEL_KEYS = re.compile(
    r"(?<![A-Za-z0-9])(?:sk-(?:proj|svcacct|admin|ant|or)-[\w-]{16,}|hf_[A-Za-z0-9]{30,}|AIza[\w-]{35}|npm_[A-Za-z0-9]{36}|gsk_[A-Za-z0-9]{40,})"
)
"""Keys of model and package hubs that are younger than the library's release."""
DEPTH = 4
"""Levels of JSON inside JSON that are undone."""
_ESCAPE = re.compile(r"\\(?:u([\da-fA-F]{4})|(.))", re.DOTALL)
_LOCK = threading.Lock()
_ALLOW = re.compile(r"pragma:\s*(?:allow|white)list\S*(?:\s+\S*secret)?", re.IGNORECASE)


class SecretError(InputError):
    """A trace holds what must not leave this machine."""


@cache
def _library() -> tuple[Any, Any]:
    try:
        from detect_secrets.core.scan import scan_line
        from detect_secrets.settings import transient_settings
    except ImportError as error:
        raise ConfigError(
            f"the secret scan needs detect-secrets, which is not here: {error}",
            hint="pip install 'hintdistill[critic]'; critic.secret_scan=off sends traces unscanned",
        ) from None
    return scan_line, transient_settings


def require() -> None:
    """Raises ConfigError where the library is not installed."""
    _library()


def _readings(text: str) -> Iterator[str]:
    """The text, and what it is with JSON escapes undone, level by level."""
    for _ in range(DEPTH):
        yield text
        plain = _ESCAPE.sub(
            lambda m: chr(int(m[1], 16)) if m[1] else {"n": "\n", "r": "\n", "t": "\t"}.get(m[2], m[2]), text
        )
        if plain == text:
            return
        text = plain
    yield text


def kinds(text: str) -> list[str]:
    """What kinds of secrets a text holds, each once."""
    scan_line, transient_settings = _library()
    readings = list(_readings(text))
    found = ["e-mail address"] if any(EMAIL.search(r) for r in readings) else []
    found += ["key of a model or package hub"] if any(MODEL_KEYS.search(r) for r in readings) else []
    # a trace must not be able to wave itself through: the library's allow-list comments are taken out first
    settings = {"plugins_used": [{"name": name} for name in DETECTORS]}
    with _LOCK, transient_settings(settings):
        for line in dict.fromkeys(line for r in readings for line in _ALLOW.sub(" ", r).splitlines()):
            found += [secret.type for secret in scan_line(line)]
    return list(dict.fromkeys(found))


def refuse(trace_id: str, parts: Iterable[tuple[str, str]]) -> None:
    """Raise SecretError where one of the named texts holds a secret."""
    found = [f"{name}: {', '.join(held)}" for name, text in parts if (held := kinds(text))]
    if found:
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        raise SecretError(
            f"trace {trace_id} was not sent: {shown}",
            hint="clean the trace, use a critic on this machine, or set critic.secret_scan=off",
        )
