"""Twins in the report: each finding with its own, and for all of them the coverage by class and the policy's behaviour.

Probabilities refer to the sampled token at the decision token of the finding's hint: in the original context, in the
twin's context, and in the twin's context after training.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hintdistill.core.scores import TargetHead
from hintdistill.rescoring.scorer import TwinItem


def twin_entries(
    heads: Sequence[TargetHead],
    items: Mapping[str, TwinItem],
    trained: set[str],
    after: Mapping[str, np.ndarray],
) -> dict[str, list[dict[str, Any]]]:
    """Return each finding's twins without their text (see `with_edit`), by key of the hint's target.

    Args:
        heads: heads of all targets; those of other kinds are ignored.
        items: twins by the key of their target.
        after: by the key of the twin's target, log-probabilities of the step's tokens after training, float32 [T].
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for head in heads:
        if head.kind == "twin":
            item = items[head.key]
            found.setdefault(item.of, []).append(_entry(head, item, head.key in trained, after.get(head.key)))
    return found


def _entry(head: TargetHead, item: TwinItem, trained: bool, after: np.ndarray | None) -> dict[str, Any]:
    measured = head.measurement
    assert measured is not None and measured.position is not None
    return {
        "key": head.key,
        "kind": sys.intern(item.twin.edit.kind),
        "maker": sys.intern(item.twin.edit.maker),
        "split": head.split,
        "error_class": head.error_class,
        "accepted": head.accepted,
        "reasons": head.reasons,
        "trained": trained,
        "original": float(np.exp(measured.plain_logprob)),
        "here": float(np.exp(measured.plain_logprob + measured.effect)),
        "after": None if after is None else float(np.exp(after[measured.position])),
    }


def with_edit(entry: Mapping[str, Any], item: TwinItem) -> dict[str, Any]:
    """Return the whole entry of a twin, as the report lists it with its finding."""
    edit = item.twin.edit.model_dump(mode="json", include={"replacements", "removed"})
    return {**entry, "reasons": list(entry["reasons"]), "notes": list(item.twin.notes), "edit": edit}


def twin_document(
    hints: Sequence[TargetHead], entries: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, Any] | None:
    """Return the summary of all twins; None if none was scored.

    Args:
        hints: heads of all scored hints.
        entries: the result of `twin_entries`.
    """
    every = [e for some in entries.values() for e in some]
    if not every:
        return None
    classes: dict[str, list[TargetHead]] = {}
    for hint in hints:
        classes.setdefault(hint.error_class or "", []).append(hint)
    kept = [e for e in every if e["accepted"]]
    return {
        "by_class": {
            name: {
                "findings": len(some),
                "covered": sum(any(e["accepted"] for e in entries.get(h.key, ())) for h in some),
                **_measured([e for h in some for e in entries.get(h.key, ())]),
            }
            for name, some in sorted(classes.items())
        },
        "all": _measured(every),
        "kept": _measured(kept),
        "dropped": _measured([e for e in every if not e["accepted"]]),
        "by_split": {split: _measured([e for e in kept if e["split"] == split]) for split in ("train", "holdout")},
    }


def _measured(some: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "twins": len(some),
        "kept": sum(e["accepted"] for e in some),
        "trained": sum(e["trained"] for e in some),
        "reasons": dict(sorted(Counter(r for e in some for r in e["reasons"]).items())),
        "kinds": dict(sorted(Counter(e["kind"] for e in some).items())),
        "probability": {when: _mean([e[when] for e in some]) for when in ("original", "here", "after")},
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def edit_lines(edit: Mapping[str, Any]) -> list[str]:
    """Return a description of an edit, with one line per place."""
    lines = []
    for r in edit["replacements"]:
        place = f"{'message' if r['where'] == 'message' else 'tool'} {r['index']}"
        times = f" ({r['count']} times)" if r["count"] > 1 else ""
        if not r["old"]:
            lines.append(f"{place}: adds {r['new']!r}")
        elif not r["new"]:
            lines.append(f"{place}: removes {r['old']!r}{times}")
        else:
            lines.append(f"{place}: {r['old']!r} → {r['new']!r}{times}")
    if edit["removed"]:
        lines.append(f"removes the messages {', '.join(map(str, edit['removed']))}")
    return lines
