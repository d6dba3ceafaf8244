"""Masks that a data set puts on single messages: a turn that must not be trained on becomes context.

Weights (`weight: 0`), switches (`train`, `trainable`, `loss: false`), per-message loss masks (`loss_mask: 0`, or a list
of zeros) and their opposites (`mask: true`, `ignore: true`) are recognised in any spelling of the key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hintdistill.traces.calls import plain_key

TRAINED = frozenset(
    {
        "weight",
        "train",
        "trained",
        "trainable",
        "istrainable",
        "training",
        "shouldtrain",
        "trainonturn",
        "trainonthis",
        "trainmask",
        "trainingmask",
        "loss",
        "lossmask",
        "lossweight",
        "losscoefficient",
        "hasloss",
        "useloss",
        "calculateloss",
        "calcloss",
        "computeloss",
        "applyloss",
        "learn",
        "learnable",
        "supervise",
        "supervised",
        "includeinloss",
        "assistantmask",
        "assistantmasks",
    }
)
"""Keys that exclude a turn from the loss with the value 0 or false."""
MASKED = frozenset(
    {
        "mask",
        "masked",
        "ismasked",
        "maskloss",
        "lossmasked",
        "maskout",
        "ignore",
        "ignored",
        "ignoreloss",
        "noloss",
        "notrain",
        "skiploss",
        "skiptraining",
        "skiptrain",
        "excludefromloss",
        "excludefromtraining",
    }
)
"""Keys that exclude a turn from the loss with the value 1 or true."""
_LETTERS = frozenset(key[:2] for key in TRAINED | MASKED)


def masked_by(value: Mapping[str, Any]) -> str | None:
    """Return the mask that excludes a message from training, as `key: value`; None if there is none."""
    for key, said in value.items():
        if said is None or type(key) is not str or key[:2].lower() not in _LETTERS:
            continue
        plain = plain_key(key)
        if (plain in TRAINED and _off(said)) or (plain in MASKED and _on(said)):
            return (
                f"{key}: {str(said).lower() if isinstance(said, bool) else said if not isinstance(said, list) else 0}"
            )
    return None


def _off(said: Any) -> bool:
    if isinstance(said, list):
        return bool(said) and all(type(s) in (int, float, bool) and not s for s in said)
    return said in (0, "0", "0.0") or (isinstance(said, str) and said.strip().lower() in ("false", "no", "off"))


def _on(said: Any) -> bool:
    return said is True or said in (1, "1") or (isinstance(said, str) and said.strip().lower() in ("true", "yes", "on"))
