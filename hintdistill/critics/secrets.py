"""Whether text may leave this machine: keys and tokens by detect-secrets, e-mail addresses by their shape.

Nothing found is ever repeated: a refusal says which message holds what kind of secret.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from functools import cache
from typing import Any

from hintdistill.errors import ConfigError, InputError

EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,8}")
DETECTORS = (
    "ArtifactoryDetector", "AWSKeyDetector", "AzureStorageKeyDetector", "BasicAuthDetector", "CloudantDetector",
    "DiscordBotTokenDetector", "GitHubTokenDetector", "GitLabTokenDetector", "IbmCloudIamDetector", "JwtTokenDetector",
    "KeywordDetector", "MailchimpDetector", "NpmDetector", "OpenAIDetector", "PrivateKeyDetector", "PypiTokenDetector",
    "SendGridDetector", "SlackDetector", "SoftlayerDetector", "SquareOAuthDetector", "StripeDetector",
    "TelegramBotTokenDetector", "TwilioKeyDetector",
)  # fmt: skip
"""Every detector of the library that looks for the shape of a key; not the two that measure entropy, to which every
order number of a trace is a secret."""

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


def kinds(text: str) -> list[str]:
    """What kinds of secrets a text holds, each once."""
    scan_line, transient_settings = _library()
    found = ["e-mail address"] if EMAIL.search(text) else []
    # a trace must not be able to wave itself through: the library's allow-list comments are taken out first
    settings = {"plugins_used": [{"name": name} for name in DETECTORS]}
    with _LOCK, transient_settings(settings):
        for line in _ALLOW.sub(" ", text).splitlines():
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
