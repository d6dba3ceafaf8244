"""Work with model folders: resolve names, compute content keys, load tokenizers.

The key of a model covers its config, tokenizer, template and weights, so that targets made with different weights or
tokenizers can be told apart. Hashing weights is slow, so hashes are cached by path, size and modification time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hintdistill.core.errors import ModelError
from hintdistill.core.trust import guards, model_code_allowed, require_trusted

WEIGHTS = (".safetensors", ".bin", ".pt")
TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
)
ADAPTER_CONFIG = "adapter_config.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")


@dataclass(frozen=True)
class ModelKey:
    """Hold the content hashes of a model folder, each of 16 hexadecimal digits."""

    weights: str
    tokenizer: str
    template: str

    def __str__(self) -> str:
        return f"{self.weights}-{self.tokenizer}-{self.template}"


def resolve_model(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a model given as a path or as a hub name with an optional revision.

    Raises:
        ModelError: the name is not a folder and cannot be downloaded.
        UntrustedError: the model would have to be downloaded, and the settings come from an untrusted run folder.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file() and not (path / "adapter_config.json").is_file():
            raise ModelError(f"{path} holds no config.json", hint="set run.model to a folder saved by save_pretrained")
        return path
    if not is_hub_name(name):
        raise ModelError(
            f"no model folder at {name}", hint="set run.model to a folder saved by save_pretrained, or to a hub name"
        )
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, revision=revision, local_files_only=guards()))
    except Exception as error:
        require_trusted(f"download the model {name}")
        raise ModelError(
            f"no model folder at {name}, and it could not be downloaded from the hub: {type(error).__name__}: "
            f"{str(error).splitlines()[0]}",
            hint="set run.model to a folder saved by save_pretrained, or to a hub name that can be reached",
        ) from None


def is_hub_name(name: str) -> bool:
    """Return whether a name has the form of a hub name, `owner/model`. A folder of that name still takes precedence."""
    return re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name) is not None


def model_key(folder: Path) -> ModelKey:
    """Return the content hashes of a model folder."""
    weights = [
        p for p in sorted(folder.iterdir()) if p.suffix in WEIGHTS or p.name in ("config.json", "adapter_config.json")
    ]
    return ModelKey(
        weights=_hash_files(weights),
        tokenizer=_hash_files([folder / n for n in TOKENIZER if (folder / n).is_file()]),
        template=_hash_files([folder / n for n in (*TEMPLATES, "tokenizer_config.json") if (folder / n).is_file()]),
    )


def load_tokenizer(folder: Path, needs_template: bool = True) -> Any:
    """Return the tokenizer of a model folder, with the folder's chat template unless another one replaces it.

    Raises:
        ModelError: it cannot be loaded, has tokens without a row in the folder's model, is not a fast tokenizer, or has
            no chat template.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=model_code_allowed())
    except Exception as error:
        raise unloadable(f"the tokenizer of {folder}", error) from error
    _require_rows(folder, tokenizer)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"the tokenizer of {folder} is not a fast tokenizer",
            hint="character offsets need a fast tokenizer (tokenizer.json)",
        )
    if needs_template and not tokenizer.chat_template:
        raise ModelError(
            f"the tokenizer of {folder} has no chat template",
            hint="put a chat_template.jinja into the folder, or name one as run.template.file; the template decides "
            "what the student saw",
        )
    return tokenizer


def _require_rows(folder: Path, tokenizer: Any) -> None:
    """Raise ModelError if the tokenizer has ids beyond the vocabulary of the model in the same folder."""
    if not (folder / "config.json").is_file():
        return
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=model_code_allowed()).get_text_config()
    except Exception as error:
        raise unloadable(f"the config of {folder}", error) from error
    rows = getattr(config, "vocab_size", None)
    beyond = sorted((at, token) for token, at in tokenizer.get_vocab().items() if rows and at >= rows)
    if beyond:
        named = ", ".join(f"{token!r} ({at})" for at, token in beyond[:3]) + (", …" if len(beyond) > 3 else "")
        raise ModelError(
            f"the tokenizer of {folder} has {len(beyond)} tokens with ids beyond the model's vocabulary of {rows}: {named}",
            hint="the tokenizer belongs to another model, or tokens were added without model.resize_token_embeddings",
        )


def unloadable(what: str, error: Exception) -> ModelError:
    """Return the error for a part of a model folder that transformers cannot load; it says so if the folder's own code
    would have to run."""
    if "trust_remote_code" in str(error):
        return ModelError(
            f"cannot load {what}: it needs Python code from the model folder",
            hint="read that code; run.trust_remote_code=true (load_engine: trust_remote_code=True) lets it run with "
            "your permissions",
        )
    return ModelError(f"cannot load {what}: {error}")


def _hash_files(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name}\0{_file_hash(file)}\0".encode())
    return digest.hexdigest()[:16]


def _file_hash(file: Path) -> str:
    stat = file.stat()
    if stat.st_size < 1 << 20:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    cache_file = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hintdistill" / "hashes.json"
    slot = f"{file.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}"
    try:
        cache: dict[str, str] = json.loads(cache_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        cache = {}
    if slot in cache:
        return cache[slot]
    with file.open("rb") as stream:
        cache[slot] = hashlib.file_digest(stream, "sha256").hexdigest()
    try:
        cache_file.parent.mkdir(parents=True, exist_ok=True)
        aside = cache_file.with_name(f"hashes.{os.getpid()}.json")
        aside.write_text(json.dumps(cache), encoding="utf-8")
        aside.replace(cache_file)
    except OSError:
        pass  # a cache that cannot be written costs time, nothing else
    return cache[slot]
