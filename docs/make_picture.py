"""Draw the idea from a real run: a trace, the erring step, the hint above it, and the tokens that moved.

    python docs/make_picture.py RUN          # writes docs/idea.svg

Nothing in the picture is made up: text, hint and probabilities are those of one held-out finding of the run's
report.json, which is not one that was trained on.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from html import escape
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent / "idea.svg"
WIDTH, LEFT, CHAR, LINE = 1000, 210, 8.4, 22
STYLE = """
text { font: 14px ui-monospace, Menlo, Consolas, monospace; fill: #1d2330; }
.label { font: 600 13px system-ui, sans-serif; fill: #5b6475; }
.title { font: 600 15px system-ui, sans-serif; }
.note { font: 13px system-ui, sans-serif; fill: #5b6475; }
"""
ROWS = (
    ("before", "the step, as sampled"),
    ("hinted", "same weights, with hint"),
    ("after", "after training, no hint"),
)


def choose(document: dict[str, Any]) -> dict[str, Any]:
    """The accepted held-out finding of a tool that does not exist whose decision token fell most under the hint."""
    found = [
        f
        for f in document["findings"]
        if f["split"] == "holdout" and f["accepted"] and f["error_class"] == "unknown_tool" and f["decision"]
    ]
    if not found:
        raise SystemExit("this run has no accepted held-out finding of class unknown_tool")
    return max(found, key=lambda f: (f["decision"]["before"] - f["decision"]["hinted"], f["trace"]))


def heat(probability: float) -> str:
    """Fill of a token: red where it is unlikely, green where it is certain."""
    return f"hsl({120 * probability:.0f}, 62%, {86 - 14 * abs(2 * probability - 1):.0f}%)"


def text(x: float, y: float, words: str, kind: str = "") -> str:
    """One line of text."""
    attribute = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{attribute} xml:space="preserve">{escape(words)}</text>'


def token_row(finding: dict[str, Any], when: str, y: float) -> tuple[list[str], float]:
    """The step's tokens coloured by their probability, and where the decision token ends."""
    out, x, mark = [], float(LEFT), float(LEFT)
    for i, token in enumerate(finding["tokens"]):
        if x > WIDTH - 60:
            out.append(text(x + 4, y, "…"))
            break
        shown = token["text"].replace("\n", "⏎")
        width = max(1, len(shown)) * CHAR + 3
        decides = i == finding["decision"]["position"]
        edge = ' stroke="#1d2330" stroke-width="2"' if decides else ""
        out.append(
            f'<rect x="{x:.1f}" y="{y - 16:.1f}" width="{width:.1f}" height="21" rx="3" fill="{heat(token[when])}"{edge}>'
            f"<title>{escape(shown)}: {token[when]:.4f}</title></rect>"
        )
        out.append(text(x + 1.5, y, shown))
        x += width + 1
        mark = x if decides else mark
    return out, mark


def draw(finding: dict[str, Any], student: str) -> str:
    """The whole picture as SVG."""
    above = finding["context_above"].strip().split("\n")[-6:]
    decision = finding["decision"]
    parts = [
        text(20, 30, "Targeted hint injection: one finding of a real run", "title"),
        text(20, 62, "the trace", "label"),
    ]
    y = 62.0
    for line in above:
        parts.append(text(LEFT, y, line if len(line) < 88 else line[:87] + "…"))
        y += LINE
    lines = textwrap.wrap(finding["hint"], 88)
    box = f'x="{LEFT - 8}" y="{y - 15:.0f}" width="{WIDTH - LEFT - 12}" height="{LINE * len(lines) + 4}" rx="4"'
    parts.append(f'<rect {box} fill="#fff4ce" stroke="#d9a400"/>')
    parts.append(text(20, y + 3, "the hint, spliced in", "label"))
    parts += [text(LEFT, y + 3 + LINE * i, line) for i, line in enumerate(lines)]
    y += LINE * len(lines) + 30
    for when, label in ROWS:
        row, mark = token_row(finding, when, y)
        parts += [text(20, y, label, "label"), *row]
        parts.append(text(mark - 60, y + 22, f"P = {decision[when]:.3f}", "note"))
        y += 52
    notes = (
        f"Colour: probability of each sampled token. Outlined: the decision token; the teacher would go on with {decision['instead']!r}.",
        f"Held-out trace {finding['trace']}, step {finding['step']}; student {student}.",
    )
    parts += [text(20, y + 20 * i, note, "note") for i, note in enumerate(notes)]
    height = y + 40
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}">\n'
        f'<style>{STYLE}</style>\n<rect width="100%" height="100%" rx="8" fill="#fbfbfd"/>\n{body}\n</svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder with a finished report.json")
    document = json.loads((parser.parse_args().run / "report.json").read_text(encoding="utf-8"))
    OUT.write_text(draw(choose(document), document["run"]["model"]), encoding="utf-8")
    print(OUT)


if __name__ == "__main__":
    main()
