"""Tell which servers run on this machine, and which may receive the contents of traces."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from hintdistill.core.errors import ConfigError
from hintdistill.core.trust import require_trusted


def is_loopback(host: str) -> bool:
    """Return whether `host` is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_outside(base_url: str | None) -> bool:
    """Return whether a server is on another machine."""
    return base_url is not None and not is_loopback(urlsplit(base_url).hostname or "")


def without_password(url: str) -> str:
    """Return the URL in a form that may be shown: without user, password, query and fragment."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def require_allowed(what: str, base_url: str, allow_hosts: Iterable[str], key: str) -> None:
    """Refuse a server outside this machine unless the settings allow it.

    Args:
        what: the server's name in messages, e.g. `the critic`.
        key: the setting that allows hosts.

    Raises:
        UntrustedError: `base_url` is outside this machine, and the settings in use are from elsewhere.
        ConfigError: `base_url` is outside this machine and its host is not in `allow_hosts`.
    """
    host = urlsplit(base_url).hostname or ""
    if is_outside(base_url):
        require_trusted(f"ask {host}")
    if is_outside(base_url) and host not in {allowed.lower() for allowed in allow_hosts}:
        raise ConfigError(
            f"{what} at {without_password(base_url)} is outside this machine",
            hint=f"traces may hold private data; to send them there, set {key}=[{host}]",
        )
