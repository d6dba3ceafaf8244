"""Publishing the student's folder on a hub: one setting (`train.push`) or one command away, and off by default.

The hub is huggingface.co, or what HF_ENDPOINT names. Nothing but the student's folder is sent; no trace is in it.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from hintdistill.core.errors import ConfigError, InputError, ServiceError


def hub() -> str:
    """The hub's address."""
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def check_push(repository: str | None) -> None:
    """Fail before anything is done on a push that could not succeed. None is no push.

    Raises:
        ConfigError: the name is none a hub takes, or there is no token; the text says which host it would go to.
    """
    if repository is None:
        return
    from huggingface_hub import get_token
    from huggingface_hub.utils import validate_repo_id

    host = urlsplit(hub()).hostname
    try:
        validate_repo_id(repository)
    except ValueError as error:
        raise ConfigError(f"train.push: {error}", hint="it names a repository, e.g. me/my-student") from None
    if not get_token():
        raise ConfigError(
            f"the student is to be pushed to {repository} on {host}, and there is no token for it",
            hint="`hf auth login` or HF_TOKEN; train.push=null keeps the student here",
        )


def push_student(student: Path, repository: str, private: bool = True) -> str:
    """Upload the student's folder as it is; returns the address of the commit. A repository that is not there is made,
    private unless told otherwise.

    Raises:
        InputError: there is no student.
        ConfigError: see `check_push`.
        ServiceError: the hub cannot be reached or refuses.
    """
    if not (student / "config.json").is_file():
        raise InputError(f"no student at {student}", hint="`hintdistill train` makes one")
    check_push(repository)
    from huggingface_hub import HfApi

    api = HfApi(endpoint=hub())
    try:
        name = api.create_repo(repository, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(repo_id=name, folder_path=student, commit_message="Student of a hintdistill run")
    except Exception as error:
        raise ServiceError(
            f"{urlsplit(hub()).hostname} did not take the student for {repository}: {error}",
            hint=f"the student is at {student}; `hintdistill push` tries again",
        ) from error
    return str(commit.commit_url)
