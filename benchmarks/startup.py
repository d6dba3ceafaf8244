"""Time `import hintdistill` and `hintdistill --help`. Aim: at most 0.5 s each.

    python benchmarks/startup.py [--repeats 5]

Last line: one JSON object, seconds, the best of the repeats.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time


def best(command: list[str], repeats: int) -> float:
    """Shortest wall-clock time of a command, seconds."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    figures = {
        "python_s": best([sys.executable, "-c", "pass"], repeats),
        "import_s": best([sys.executable, "-c", "import hintdistill"], repeats),
        "help_s": best([sys.executable, "-m", "hintdistill.cli", "--help"], repeats),
        "aim_s": 0.5,
    }
    for name, value in figures.items():
        print(f"{name:>10} {value:.3f}")
    print(json.dumps({k: round(v, 4) for k, v in figures.items()}))


if __name__ == "__main__":
    main()
