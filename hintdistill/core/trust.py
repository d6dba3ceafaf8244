"""Whose settings may run code, fetch or send: the caller's, never those of a run folder from elsewhere.

A config file, an override and a keyword are named by the caller. The configuration in a run folder's manifest is not: a folder
may come from anybody. It is signed when it is written, with a key that only this user's state folder holds
(`$XDG_STATE_HOME/hintdistill/key`, else `~/.local/state/hintdistill/key`). While the settings of a folder without this signature
are in use, no Python file or module that they name is loaded, no code of a model folder runs, nothing is downloaded, and no
server outside this machine is asked. `--trust` lifts that for one command.

The state is the process's, not a thread's: what is refused is refused in every worker.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ConfigError


class UntrustedError(ConfigError):
    """A run folder from elsewhere names code, a download or a server."""


class _State:
    foreign: tuple[str, ...] = ()
    """Run folders from elsewhere whose settings are in use and not trusted."""
    answered: int = 0
    """Scopes in use of folders from elsewhere, trusted or not."""
    model_code: bool = False
    """Whether code in model folders may run (`run.trust_remote_code`)."""


def state_folder() -> Path:
    """Return where this user's key is."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "hintdistill"


def sign(data: Any) -> str | None:
    """Return the signature of JSON-able data by this user on this machine; None if the state folder cannot be
    written."""
    key = _key(make=True)
    return None if key is None else _digest(key, data)


def is_signed(data: Any, signature: Any) -> bool:
    """Return whether this user signed the data on this machine."""
    key = _key(make=False)
    if key is None or not isinstance(signature, str):
        return False
    return hmac.compare_digest(_digest(key, data).encode(), signature.encode("utf-8", "surrogatepass"))


def _digest(key: bytes, data: Any) -> str:
    text = json.dumps(data, sort_keys=True, separators=(",", ":"))
    return hmac.new(key, b"hintdistill run config\0" + text.encode(), hashlib.sha256).hexdigest()


def _key(*, make: bool) -> bytes | None:
    path = state_folder() / "key"
    for _ in range(2):
        with suppress(OSError, ValueError):
            key = bytes.fromhex(path.read_text(encoding="ascii"))
            if len(key) == 32:
                return key
        if not make:
            return None
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            aside = path.with_name(f"key.{os.getpid()}")
            with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="ascii") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
            # the first of several processes wins, and a damaged key is replaced
            try:
                os.link(aside, path)
            except FileExistsError:
                if path.stat().st_size != 64:
                    aside.replace(path)
            aside.unlink(missing_ok=True)
        make = False
    return None


def written_elsewhere(folder: Path, settings: Any) -> str | None:
    """Return the folder, if it is a run folder and this user did not write these settings there; None for any
    other."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        manifest = None
    signature = manifest.get("signature") if isinstance(manifest, dict) else None
    return None if is_signed(settings, signature) else str(folder)


@contextmanager
def in_use(foreign: str | None, *, model_code: bool = False, trusted: bool = False) -> Iterator[None]:
    """While settings are in use: refuse what they name if they are from elsewhere, unless they are trusted.

    Args:
        foreign: the run folder from elsewhere that they are of; None for settings that the caller named.
        model_code: whether they let the code of model folders run.
    """
    before = _State.foreign, _State.answered, _State.model_code
    _State.model_code = model_code
    if foreign is not None:
        _State.answered += 1
        _State.foreign = _State.foreign if trusted else (*_State.foreign, foreign)
    try:
        yield
    finally:
        _State.foreign, _State.answered, _State.model_code = before


def guards() -> bool:
    """Return whether settings from elsewhere are in use and not trusted."""
    return bool(_State.foreign)


def require_scope(foreign: str | None) -> None:
    """Refuse to work with settings from elsewhere outside `in_use`, which says whether they are trusted.

    Raises:
        UntrustedError: nobody has said.
    """
    if foreign is not None and not _State.answered:
        raise _refusal(foreign, "be used")


def require_trusted(what: str) -> None:
    """Refuse an action that settings from elsewhere ask for.

    Args:
        what: what would be done, e.g. `load the environment x.py:World`.

    Raises:
        UntrustedError: the settings in use are those of a run folder that this user did not write on this machine.
    """
    if _State.foreign:
        raise _refusal(_State.foreign[-1], what)


def _refusal(folder: str, what: str) -> UntrustedError:
    return UntrustedError(
        f"{folder} was not written by you on this machine, so its settings may not {what}",
        hint=f"look at {folder}/manifest.json; --trust lets them run code, download and ask servers",
    )


def model_code_allowed() -> bool:
    """Return whether code of model folders may run: it is set, and not by settings from elsewhere."""
    return _State.model_code and not _State.foreign
