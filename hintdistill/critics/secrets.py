"""Decide whether text may leave this machine. detect-secrets and `secret_forms.py` detect keys and tokens; a pattern
detects e-mail addresses.

A trace is scanned in the form that is sent, and again with its JSON escapes undone level by level, because detectors
miss a password behind escaped quotation marks. It is also scanned with the spellings of URLs, HTML, wide letters and
invisible characters undone. A secret is never repeated: a refusal names only the message and the kind of secret.
docs/security.md lists what the scan misses.
"""

from __future__ import annotations

import html
import re
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any
from urllib.parse import unquote

from hintdistill.core.errors import ConfigError, InputError
from hintdistill.critics.secret_forms import HASH, KEYS, PRIVATE, WEBHOOK, named_secrets

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
"""The library's detectors that look for the shape of a key. The two entropy detectors are left out, because they report
every order number of a trace."""

DEPTH = 8
"""Number of levels of nested JSON that are undone."""
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufeff]")
FORMS = {"key of a service": KEYS, "address of a webhook": WEBHOOK, "private key": PRIVATE, "hash of a password": HASH}
_ESCAPE = re.compile(r"\\(?:u([\da-fA-F]{4})|(.))", re.DOTALL)
_LOCK = threading.Lock()
_ALLOW = re.compile(r"pragma:\s*(?:allow|white)list\S*(?:\s+\S*secret)?", re.IGNORECASE)


class SecretError(InputError):
    """A trace contains something that must not leave this machine."""


@cache
def _library() -> tuple[Any, Any]:
    try:
        from detect_secrets.core.scan import scan_line
        from detect_secrets.settings import transient_settings
    except ImportError as error:
        raise ConfigError(
            f"the secret scan needs detect-secrets, which is not installed: {error}",
            hint="pip install 'hintdistill[critic]'; critic.secret_scan=off sends traces unscanned",
        ) from None
    return scan_line, transient_settings


def require() -> None:
    """Raise ConfigError if the library is not installed."""
    _library()


def _readings(text: str) -> Iterator[str]:
    """Yield the text, then the text with JSON escapes undone level by level, and last with other spellings undone
    too."""
    for _ in range(DEPTH):
        yield text
        plain = _ESCAPE.sub(
            lambda m: chr(int(m[1], 16)) if m[1] else {"n": "\n", "r": "\n", "t": "\t"}.get(m[2], m[2]), text
        )
        if plain == text:
            break
        text = plain
    else:
        yield text
    plain = unicodedata.normalize("NFKC", _INVISIBLE.sub("", html.unescape(unquote(text, errors="replace"))))
    if plain != text:
        yield plain


def kinds(text: str) -> list[str]:
    """Return the kinds of secrets in a text, each once."""
    scan_line, transient_settings = _library()
    readings = list(_readings(text))
    found = ["e-mail address"] if any(EMAIL.search(r) for r in readings) else []
    for kind, pattern in FORMS.items():
        found += [kind] if any(pattern.search(r) for r in readings) else []
    found += ["value marked as secret"] if any(named_secrets(r) for r in readings) else []
    # a trace must not be able to wave itself through: the library's allow-list comments are taken out first
    settings = {"plugins_used": [{"name": name} for name in DETECTORS]}
    with _LOCK, transient_settings(settings):
        for line in dict.fromkeys(line for r in readings for line in _ALLOW.sub(" ", r).splitlines()):
            found += [secret.type for secret in scan_line(line)]
    return list(dict.fromkeys(found))


def refuse(trace_id: str, parts: Iterable[tuple[str, str]]) -> None:
    """Raise SecretError if one of the named texts contains a secret."""
    found = [f"{name}: {', '.join(held)}" for name, text in parts if (held := kinds(text))]
    if found:
        shown = "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
        raise SecretError(
            f"trace {trace_id} was not sent: {shown}",
            hint="clean the trace, use a critic on this machine, or set critic.secret_scan=off",
        )
