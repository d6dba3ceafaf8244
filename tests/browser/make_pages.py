"""Make the pages that the browser tests read: `make_pages.py FOLDER [RUN]`.

A small run of the shipped example from its traces to its report, or the finished run that is named; the same run up to `rescore`; the
shared report; a hostile document; and documents of 5,000 and 1,000 findings for the bounds on size. Prints seconds and sizes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.many_findings import golden, long_traces, toolworld  # noqa: E402

from hintdistill.reporting.html import render_html  # noqa: E402
from hintdistill.reporting.islands import trace_page  # noqa: E402
from hintdistill.reporting.templates import picture  # noqa: E402

ATTACK = (
    "</script></pre><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\x1b[2J\u202e"
)
DRAWING = """<svg xmlns="http://www.w3.org/2000/svg" width="100" height="50">
<style>rect.a { fill: #008000 }</style><rect class="a" width="50" height="50"/>
<rect x="50" width="50" height="50" style="fill: #000080"/><script>document.title = "owned"</script></svg>"""
SMALL = (
    "traces.limit=60",
    "train.epochs=2",
    "train.twins.per_finding=1",
    "rollout.limit=6",
    "rollout.splits=[test,near_miss_unknown_tool]",
    "report.off_target_steps=20",
)
"""Overrides of the quickstart that end in half a minute."""


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long something took."""
    start = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - start:.1f} s", flush=True)


def main(folder: Path, finished: Path | None) -> None:
    """Make every page into a folder that is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    run = finished or folder / "run"
    if finished is None:
        with timed("a small run of the quickstart"):
            hintdistill("run", "configs/quickstart.yaml", "--quiet", f"run.dir={run}", *SMALL)
    else:
        hintdistill("report", str(run))
    hintdistill("report", str(run), "--share")
    for name in ("report", "report-share"):
        shutil.copyfile(run / f"{name}.html", folder / f"{name}.html")
    shutil.copyfile(run / "report.json", folder / "report.json")
    document = json.loads((run / "report.json").read_text(encoding="utf-8"))
    write(folder / "scored.html", render_html(before_training(document), 5000))
    write(folder / "hostile.html", hostile())
    for name, (many, pages) in {"toolworld": toolworld(5000), "long": long_traces(1000)}.items():
        with timed(f"{name}.html, {len(many['findings'])} findings"):
            page = render_html(many, 5000, pages)
        write(folder / f"{name}.html", page)
    many, pages = toolworld(80, seed=3)
    page = render_html(many, 60, pages)
    write(folder / "few.html", page)
    write(folder / "drawn.html", page.replace("</main>", f"{picture(DRAWING, 'two colours')}</main>"))


def hintdistill(*arguments: str) -> None:
    """Run the command in a process of its own."""
    subprocess.run([sys.executable, "-m", "hintdistill.cli.main", *arguments], check=True, cwd=ROOT)


def write(path: Path, page: str) -> None:
    """Write a page and print its size."""
    path.write_text(page, encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB", flush=True)


def before_training(document: dict[str, Any]) -> dict[str, Any]:
    """The document as `run --until rescore` leaves it: nothing trained, nothing read again."""
    bare = json.loads(json.dumps(document)) | {"train": None, "environment": None, "off_target": {}}
    bare["funnel"]["train"] |= {"hints": 0, "anchors": 0}
    for finding in bare["findings"]:
        finding["trained"] = False
        for token in finding["tokens"]:
            token["after"] = None
        if finding["decision"]:
            finding["decision"]["after"] = None
            finding["decision"]["top"] |= {"after": None}
    return bare


def hostile() -> str:
    """A page in which every text of a trace, a finding and a critic is an attack."""
    document, traces = golden()
    findings = [attacked(f) | {"key": f["key"], "placement": "message/user"} for f in document["findings"]]
    pages = {ATTACK: trace_page(attacked(next(iter(traces.values()))), [])}
    return render_html(document | {"findings": findings, "warnings": [ATTACK]}, 5000, pages)


def attacked(value: Any) -> Any:
    """A value with the attack in the place of every text but a role."""
    if isinstance(value, dict):
        return {k: v if k in ("role", "split") else attacked(v) for k, v in value.items()}
    if isinstance(value, list):
        return [attacked(v) for v in value]
    return ATTACK if isinstance(value, str) else value


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
