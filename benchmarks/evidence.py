"""Run the ablation, and write its tables into README.md and docs/evidence.md.

    python benchmarks/evidence.py [--dir runs/evidence] [--full] [--longer] [--docs] [--summary] [key=value …]

Runs `python -m benchmarks.ablation benchmarks/ablation/ablate.yaml --sweep --resume` (with `--full` also regimes, critic
noise, other traces and the LLM critic; some two and a half hours on two cores, resumable). `--longer` runs five rounds
instead of two, of the targeted hint and of both SFT arms on two seeds, in DIR-longer; SFT on own successes has a lower rate
too, in DIR-longer-lower. `--summary` runs nothing and takes what is finished. `--docs`, with `--full`, writes the blocks
between the marks, docs/evidence_tables.md and the figure. Last line: one JSON object with
  gap_closed                  by arm: [greedy, T=1], first regime
  aims_reached, aims_measured
  prediction_r2
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blocks import put

from benchmarks.ablation.markdown import NAMES, table

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "benchmarks/ablation/ablate.yaml"
FOREIGN = "examples/toolworld/foreign.jsonl"
GREEDY, SAMPLED, CLEAN = "test@0", "test@1", "test_clean@1"
NEAR = ("near_miss_unknown_tool@0", "near_miss_wrong_argument@0")
MAIN = ("hint", "placebo", "wrong_hint", "random_step", "full_trace", "sft_success", "sft_corrected")
LONGER = {
    "longer": ["ablate.arms=[hint,sft_success,sft_corrected]"],
    "longer-lower": ["ablate.arms=[sft_success]", "ablate.train.sft_success.learning_rate=4.0e-4"],
}
Data = Mapping[str, Any]


def run(folder: Path, options: list[str], summary: bool, overrides: list[str]) -> dict[str, Any]:
    """The ablation through the command line; its document."""
    if "--full" in options and not (ROOT / FOREIGN).exists():
        subprocess.run([sys.executable, "examples/toolworld/make_foreign.py"], check=True, cwd=ROOT)
    resume = ["--resume"] if (folder / "manifest.json").exists() else []
    command = [
        sys.executable,
        "-m",
        "benchmarks.ablation",
        CONFIG,
        *(["--summary"] if summary else [*options, *resume]),
    ]
    subprocess.run([*command, f"run.dir={folder}", *overrides], check=True, cwd=ROOT)
    return json.loads((folder / "evidence.json").read_text(encoding="utf-8"))


def run_longer(folder: Path, summary: bool, overrides: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """Five rounds; the second document has SFT on own successes at the lower rate."""
    out = []
    for name, settings in LONGER.items():
        path = folder.with_name(f"{folder.name}-{name}")
        out.append((name, run(path, [], summary, ["run.rounds=5", "ablate.seeds=[0,1]", *settings, *overrides])))
    return out


def short(x: float | None, digits: int = 3) -> str:
    """`.912`, `−.03`, `1.000`; a dash for what was not measured."""
    # + 0.0: what rounds to nothing has no sign
    return "–" if x is None else re.sub(r"^(-?)0\.", r"\1.", f"{round(x, digits) + 0.0:.{digits}f}").replace("-", "−")


def both(settings: Data, digits: int = 3) -> str:
    """Success, greedy / T=1."""
    return " / ".join(short(settings[s]["success"]["mean"], digits) for s in (GREEDY, SAMPLED))


def spread(x: Data, digits: int = 2) -> str:
    """Mean and 95 % interval."""
    return f"{short(x['mean'], digits)} ({short(x['low'], digits)} to {short(x['high'], digits)})"


def main_table(regime: Data) -> str:
    """One regime: success, share of the gap closed, and what else moved."""
    initial, hinted = regime["initial"], regime["hinted"]

    def near(settings: Data) -> str:
        return " / ".join(short(settings[s]["success"]["mean"], 2) for s in NEAR)

    head = [
        "arm",
        "greedy",
        "T=1",
        "gap closed, greedy",
        "gap closed, T=1",
        "tasks without a trigger",
        "near-misses ¹",
        "KL near-misses",
    ]
    rows = [
        [
            "no training",
            *(short(initial[s]["success"]["mean"]) for s in (GREEDY, SAMPLED)),
            "",
            "",
            short(initial[CLEAN]["success"]["mean"]),
            near(initial),
            "0",
        ]
    ]
    for arm in MAIN:
        e = regime["arms"][arm]
        s, gap = e["settings"], e["gap_closed"]
        rows.append(
            [
                f"**{NAMES[arm]}**" if arm == "hint" else NAMES[arm],
                *(short(s[k]["success"]["mean"]) for k in (GREEDY, SAMPLED)),
                spread(gap[GREEDY]),
                spread(gap[SAMPLED]),
                spread(s[CLEAN]["minus_initial"], 3),
                near(s),
                short(e["off_target"]["near_misses"]["kl_per_token"]["mean"], 4),
            ]
        )
    rows.append(
        [
            "initial policy, hinted",
            *(short(hinted[s]["success"]["mean"]) for s in (GREEDY, SAMPLED)),
            "",
            "",
            "",
            "",
            "",
        ]
    )
    return table(head, rows)


def regime_table(document: Data) -> str:
    """Every regime in a row, the main arms in columns: success, greedy / T=1."""
    arms = ("hint", "full_trace", "sft_success", "sft_corrected", "placebo", "wrong_hint", "llm_critic")
    head = [
        "regime",
        "rollouts that succeed",
        "test tasks",
        "no training",
        *(NAMES[a] for a in arms),
        "initial policy, hinted",
    ]
    rows = []
    for name, data in document["regimes"].items():
        cells = [both(data["arms"][a]["settings"]) if a in data["arms"] else "–" for a in arms]
        rows.append(
            [
                f"`{name}`",
                short(data["success_in_rollouts"]),
                str(data["tasks"][GREEDY]),
                both(data["initial"]),
                *cells,
                both(data["hinted"]),
            ]
        )
    return table(head, rows)


def noise_table(document: Data) -> str:
    """Critic noise: share of the true critic's gain, greedy / T=1, gate off and on, and what the gate rejects."""
    arms = document["regimes"]["common"]["arms"]
    words = {
        "step": "wrong step in {} % of findings",
        "alarm": "false alarm on {} % of clean traces",
        "hint": "wrong hint text in {} %",
    }
    rows = []
    for kind, percent, off, on in _noise_rows(document):
        name = "as it is" if not percent else words[kind].format(percent)
        gated = arms["hint" if not percent else f"{kind}:{percent}+gate"]
        rejected = gated["rounds"][0]["rejected"] / (gated["rounds"][0]["rejected"] + gated["rounds"][0]["candidates"])
        rows.append([name, _share(off), _share(on), f"{100 * rejected:.0f} %"])
    return table(["critic", "gain kept, gate off", "gain kept, gate on", "rejected by the gate, round 1"], rows)


def _noise_rows(document: Data) -> Iterator[tuple[str, int, Data, Data]]:
    by = {(r["kind"], r["percent"], r["gate"]): r for r in document["noise"]["rows"]}
    yield "step", 0, by["step", 0, False], by["step", 0, True]
    for kind in ("step", "alarm", "hint"):
        for percent in sorted({p for k, p, _ in by if k == kind and p}):
            yield kind, percent, by[kind, percent, False], by[kind, percent, True]


def _share(row: Data) -> str:
    return " / ".join(short(row["settings"][s]["share_of_true_gain"], 2) for s in (GREEDY, SAMPLED))


def traces_table(document: Data) -> str:
    """Whose traces and whose findings: success and the paired difference to the targeted hint."""
    regime = document["regimes"]["common"]
    names = {
        "hint": "own fresh traces, the world's checker",
        "stale": "the round before's traces",
        "foreign": "another policy's traces",
        "llm_critic": "own fresh traces, the tiny critic LLM: no rule, label or checker in the loop",
        "hint_outcome": "own fresh traces, the outcome reward beside the hint",
    }
    rows = []
    for arm, name in names.items():
        s = regime["arms"][arm]["settings"]
        minus = [spread(s[k]["minus_hint"], 3) if "minus_hint" in s[k] else "" for k in (GREEDY, SAMPLED)]
        rows.append([name, both(s), *minus, " / ".join(short(s[k]["success"]["mean"], 2) for k in NEAR)])
    return table(
        ["whose traces, whose findings", "greedy / T=1", "minus the first, greedy", "T=1", "near-misses ¹"], rows
    )


def longer_table(documents: list[tuple[str, dict[str, Any]]]) -> str:
    """Success after each of five rounds as sampled, then greedy, near-misses, and what moved."""
    rows = []
    for _, document in documents:
        regime = document["regimes"]["common"]
        for arm, e in regime["arms"].items():
            s, rate = e["settings"], e["train"]["learning_rate"]
            rows.append(
                [
                    f"{NAMES[arm]}, {rate:g}",
                    *(short(c["success"]["mean"]) for c in e["curve"]),
                    short(s[GREEDY]["success"]["mean"]),
                    short(s[CLEAN]["minus_initial"]["mean"]),
                    " / ".join(short(s[k]["success"]["mean"], 2) for k in NEAR),
                    short(e["off_target"]["near_misses"]["kl_per_token"]["mean"], 4),
                ]
            )
    curve = documents[0][1]["regimes"]["common"]["arms"]["hint"]["curve"]
    head = [
        "arm, learning rate",
        *(f"after {c['round']}" for c in curve),
        "greedy, last",
        "tasks without a trigger",
        "near-misses ¹",
        "KL near-misses",
    ]
    return table(head, rows)


def aims_table(document: Data) -> str:
    """Aims of the first regime, and those that belong to none."""
    rows = [
        [a["aim"], a["where"].removeprefix("common, "), a["bound"], _measured(a["measured"]), _verdict(a["reached"])]
        for a in document["aims"]
        if not a["where"].startswith(("rare", "absent"))
    ]
    return table(["aim", "where", "bound", "measured", ""], rows)


def _measured(value: Any) -> str:
    digits = 4 if isinstance(value, dict) and value["mean"] is not None and abs(value["mean"]) < 0.01 else 3
    return "–" if value is None else spread(value, digits) if isinstance(value, dict) else short(value)


def _verdict(reached: bool | None) -> str:
    return "not measured" if reached is None else "reached" if reached else "**missed**"


def readme_text(document: Data) -> str:
    """Return the rows of README.md: the targeted hint and the arms that represent similar methods."""
    regime = document["regimes"]["common"]

    def near(settings: Data) -> str:
        return " / ".join(short(settings[s]["success"]["mean"], 2) for s in NEAR)

    rows = [["no training", both(regime["initial"]), near(regime["initial"]), "0"]]
    for arm in ("hint", "full_trace", "sft_corrected"):
        e = regime["arms"][arm]
        moved = short(e["off_target"]["near_misses"]["kl_per_token"]["mean"], 4)
        rows.append([NAMES[arm], both(e["settings"]), near(e["settings"]), moved])
    head = f"{len(regime['seeds'])} seeds, {regime['tasks'][GREEDY]} test tasks"
    return table([head, "success, greedy / T=1", "near-misses ¹", "KL near-misses"], rows)


def write_docs(document: Data, folder: Path, longer: list[tuple[str, dict[str, Any]]]) -> None:
    """README.md, docs/evidence.md, docs/evidence_tables.md and the figure."""
    if not document["noise"]["rows"]:
        # half of a page would be of another run
        raise SystemExit("--docs writes whole pages, and this run lacks regimes and critic noise: add --full")
    page = ROOT / "docs" / "evidence.md"
    _block(ROOT / "README.md", "ablation", readme_text(document))
    _block(page, "main", main_table(document["regimes"]["common"]))
    _block(page, "aims", aims_table(document))
    _block(page, "regimes", regime_table(document))
    _block(page, "noise", noise_table(document))
    _block(page, "traces", traces_table(document))
    if longer:
        _block(page, "longer", longer_table(longer))
    tables = (folder / "evidence.md").read_text(encoding="utf-8")
    commits = sorted({s["commit"] for s in document["sessions"]})
    head = (
        "# Tables of the ablation\n\n`python -m benchmarks.ablation` writes these tables, and "
        "`python benchmarks/evidence.py --docs` puts them here "
        f"(commit {', '.join(commits)}). [evidence.md](evidence.md) explains how to read them.\n\n"
    )
    (ROOT / "docs" / "evidence_tables.md").write_text(head + tables, encoding="utf-8")
    shutil.copy(folder / "evidence.svg", ROOT / "docs" / "evidence.svg")


def _block(page: Path, name: str, text: str) -> None:
    put(page, f"<!-- {name}: made by benchmarks/evidence.py --docs -->", f"<!-- end of {name} -->", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, default=ROOT / "runs" / "evidence")
    parser.add_argument("--full", action="store_true", help="also what takes hours")
    parser.add_argument("--longer", action="store_true", help="also five rounds of three arms")
    parser.add_argument("--summary", action="store_true", help="of what is finished; runs nothing")
    parser.add_argument("--docs", action="store_true", help="write the figures into README.md and docs/")
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    folder = args.dir.resolve()
    document = run(folder, ["--sweep", *(["--full"] if args.full else [])], args.summary, args.overrides)
    longer = run_longer(folder, args.summary, args.overrides) if args.longer else []
    if args.docs:
        write_docs(document, folder, longer)
    arms, line = document["regimes"]["common"]["arms"], document["preflight"]["line"]
    measured = [a["reached"] for a in document["aims"] if a["reached"] is not None]
    print(
        json.dumps(
            {
                "gap_closed": {
                    a: [round(e["gap_closed"][s]["mean"], 3) for s in (GREEDY, SAMPLED)]
                    for a, e in arms.items()
                    if ":" not in a
                },
                "aims_reached": sum(measured),
                "aims_measured": len(measured),
                "prediction_r2": line and round(line["r2"]["mean"], 3),
            }
        )
    )


if __name__ == "__main__":
    main()
