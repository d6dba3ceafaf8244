"""Decide whose settings may run code, download or send data: the caller's, but not those of an untrusted run folder.

The caller chooses a config file, an override or a keyword. The configuration in a run folder's manifest may come from
anybody. So it is signed when it is written, with a key that is kept only in this user's state folder
(`$XDG_STATE_HOME/hintdistill/key`, else `~/.local/state/hintdistill/key`). While the settings of a folder without this
signature are in use, no Python file or module that they name is loaded, no code of a model folder runs, nothing is
downloaded, and no server outside this machine is asked. `--trust` lifts this for one command. The state belongs to the
process, not to a thread, so it applies in every worker.
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
    """The settings of a run folder that this user did not write ask for code, a download or a server."""


class _State:
    foreign: tuple[str, ...] = ()
    """Run folders whose settings are in use, were not written by this user, and are not trusted."""
    answered: int = 0
    """Number of open scopes for run folders that this user did not write, trusted or not."""
    model_code: bool = False
    """Whether code in model folders may run (`run.trust_remote_code`)."""


def state_folder() -> Path:
    """Return the folder that holds this user's key."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "hintdistill"


def sign(data: Any) -> str | None:
    """Return this user's signature of JSON-able data on this machine; None if the state folder cannot be written."""
    key = _key(make=True)
    return None if key is None else _digest(key, data)


def is_signed(data: Any, signature: Any) -> bool:
    """Return whether this user signed this data on this machine."""
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
    """Return the folder if it is a run folder whose settings this user did not write; None otherwise."""
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
    """While settings are in use, refuse their code, downloads and servers if they come from an untrusted run folder.

    Args:
        foreign: the run folder, not written by this user, that holds the settings; None for settings that the caller
            chose.
        model_code: whether the settings allow the code of model folders to run.
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
    """Return whether settings from an untrusted run folder are in use."""
    return bool(_State.foreign)


def require_scope(foreign: str | None) -> None:
    """Refuse to use settings that this user did not write outside `in_use`, which decides whether they are trusted.

    Raises:
        UntrustedError: no `in_use` block is open for them.
    """
    if foreign is not None and not _State.answered:
        raise _refusal(foreign, "be used")


def require_trusted(what: str) -> None:
    """Refuse an action that settings from an untrusted run folder ask for.

    Args:
        what: the action, e.g. `load the environment x.py:World`.

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
    """Return whether code of model folders may run: the setting allows it, and it does not come from an untrusted run
    folder."""
    return _State.model_code and not _State.foreign
