"""Episodes that fail after training, with the outcome of the same task before it; near-misses and episodes lost by
training come first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hintdistill.reporting.markup import html_table
from hintdistill.reporting.templates import text
from hintdistill.reporting.verdict import is_near_miss

SHOWN = 4
"""Maximum number of episodes per split whose text is in the report; episodes.jsonl contains all."""
LONGEST = 6000
"""Number of characters of an episode in the report; the number of cut characters is shown."""


def failed_after(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the episodes that fail after training.

    Args:
        rows: rows of episodes.jsonl.

    Returns:
        By split: the number of `episodes` after training, of `failed` ones, and of those `lost` (succeeded before) or
        `failed_before`; and the `shown` episodes, near-misses and lost ones first. None if there is no episode after
        training.
    """
    by: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in rows:
        by.setdefault(row["split"], {}).setdefault(row["when"], {})[row["task"]] = row
    splits, shown = {}, []
    for split in sorted(by, key=lambda s: (not is_near_miss(s), list(by).index(s))):
        before, after = by[split].get("before", {}), by[split].get("after", {})
        if not after:
            continue
        failed = [r for r in after.values() if not r["success"]]
        lost = [r for r in failed if r["task"] in before and before[r["task"]]["success"]]
        splits[split] = {
            "episodes": len(after),
            "failed": len(failed),
            "lost": len(lost),
            "failed_before": sum(r["task"] in before for r in failed) - len(lost),
        }
        for row in [*lost, *(r for r in failed if r not in lost)][:SHOWN]:
            old = before.get(row["task"])
            shown.append(
                {
                    "split": split,
                    "task": row["task"],
                    "before": None if old is None else _entry(old),
                    "after": _entry(row),
                }
            )
    return {"splits": splits, "shown": shown} if splits else None


def _entry(row: Mapping[str, Any]) -> dict[str, Any]:
    said = row["text"] or ""
    return {
        **{k: row[k] for k in ("success", "errors", "failure")},
        "text": said[:LONGEST],
        "cut": max(0, len(said) - LONGEST),
    }


def body(document: Mapping[str, Any]) -> str:
    """Return the section of the page."""
    found = document.get("failed_after")
    if not found:
        return ""
    columns = ("split", "episodes", "failed after", "succeeded before", "also failed before")
    rows = [(s, *(n[k] for k in ("episodes", "failed", "lost", "failed_before"))) for s, n in found["splits"].items()]
    table = html_table("Episodes that fail after training", columns, rows, (1, 2, 3, 4))
    said = (
        f"At most {SHOWN} per split, those that succeeded before first; episodes.jsonl in the run folder contains all."
    )
    episodes = Markup("\n").join(_shown(e) for e in found["shown"])
    return str(Markup('{}\n<p class="mute">{}</p>\n{}').format(table, said, episodes))


def _shown(episode: Mapping[str, Any]) -> Markup:
    parts = [(when, episode[when]) for when in ("after", "before") if episode[when] is not None]
    ended = ", ".join(f"{when} {_ended(e)}" for when, e in reversed(parts))
    texts = Markup("").join(
        Markup('<h3>{}: {}</h3><pre class="above">{}</pre>').format(when, text(_ended(e)), text(_text(e)))
        for when, e in reversed(parts)
    )
    head = text(f"{episode['split']}, {episode['task']}: {ended}")
    return Markup("<details><summary>{}</summary>{}</details>").format(head, texts)


def _ended(entry: Mapping[str, Any]) -> str:
    if entry["success"]:
        return "success"
    why = [*entry["errors"], *([entry["failure"]] if entry["failure"] else [])]
    return "failed" + (f" ({', '.join(why)})" if why else "")


def _text(entry: Mapping[str, Any]) -> str:
    return entry["text"] + (f"\n… {entry['cut']:,} more characters" if entry["cut"] else "")
