"""Print the loop's curves as a table in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show_rounds(document: Mapping[str, Any], console: Console) -> None:
    """Print one line per round: success by setting, findings, accepted hints, off-target KL."""
    settings = list(document["initial"])
    table = Table(title=f"{document['model']}, critic {', '.join(document['critics'])}")
    for heading in ("round", *(f"success {s}" for s in settings), "findings", "accepted", "off-target KL"):
        table.add_column(heading, justify="right")
    table.add_row("0", *(f"{document['initial'][s]['success_rate']:.3f}" for s in settings), "", "", "")
    for row in document["rounds"]:
        environment, moved = row.get("environment", {}), row.get("off_target", {})
        table.add_row(
            str(row["round"]),
            *(f"{environment[s]['success_rate']:.3f}" if s in environment else "" for s in settings),
            str(row["findings"]["roots"]) if "findings" in row else "",
            str(row["effect"]["accepted"]) if "effect" in row else "",
            f"{max(m['kl_per_token'] for m in moved.values()):.2g}" if moved else "",
        )
    console.print(table)
    if document["stop"]:
        console.print(f"stopped: {document['stop']}", markup=False)
