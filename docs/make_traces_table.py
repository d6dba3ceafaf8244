"""Write the tables of docs/traces.md: the formats from the registry, and what each real file gives.

    python docs/make_traces_table.py [FOLDER]

FOLDER holds the trace files; without it, or where it is absent, only the table of formats is written.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from hintdistill.reporting.inspection import FileReport, inspect_files
from hintdistill.traces.registry import SHIPPED

PAGE = Path(__file__).parent / "traces.md"
FORMATS = ("<!-- formats -->", "<!-- /formats -->")
FILES = ("<!-- files -->", "<!-- /files -->")


def formats_table() -> str:
    """Name, what one record is, and the first sentence of the module."""
    rows = ["| `traces.format` | one record is | what |", "|---|---|---|"]
    for name in SHIPPED:
        module = importlib.import_module(f"hintdistill.traces.formats.{name}")
        first = (module.__doc__ or "").partition("\n\n")[0].replace("\n", " ").replace("|", "\\|")
        rows.append(f"| `{module.NAME}` | a {'file' if module.SCOPE == 'file' else 'value'} | {first} |")
    return "\n".join(rows)


def files_table(folder: Path) -> str:
    """One row per file, folder by folder, each folder read on its own."""
    rows = [
        "| file | format | traces | steps | given | calls | failures | why not, or what was left out |",
        "|---|---|---|---|---|---|---|---|",
    ]
    inner = sorted(p for p in folder.iterdir() if p.is_dir())
    reports = [r for p in inner for r in inspect_files([p])]
    rows += [_row(r, folder) for r in reports]
    summed = [sum(getattr(r, n) for r in reports) for n in ("traces", "steps", "given_steps", "tool_calls", "failures")]
    rows.append(f"| {len(reports)} files | | " + " | ".join(map(str, summed)) + " | |")
    return "\n".join(rows)


def _row(report: FileReport, folder: Path) -> str:
    name = report.path.removeprefix(f"{folder}/")
    counts = (report.traces, report.steps, report.given_steps, report.tool_calls, report.failures)
    reason = (report.reason or "").replace("|", "\\|").replace(f"{folder}/", "").replace("\n", " ")
    return f"| {name} | {report.format or ''} | {' | '.join(map(str, counts))} | {reason[:200]} |"


def between(text: str, marks: tuple[str, str], table: str) -> str:
    """The page with what stands between two marks replaced."""
    head, _, rest = text.partition(marks[0])
    _, _, tail = rest.partition(marks[1])
    return f"{head}{marks[0]}\n{table}\n{marks[1]}{tail}"


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2] / "shared" / "traces")
    text = between(PAGE.read_text(encoding="utf-8"), FORMATS, formats_table())
    if folder.is_dir():
        text = between(text, FILES, files_table(folder))
    else:
        print(f"no trace files at {folder}: that table is left as it is", file=sys.stderr)
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
