"""Coverage-guided fuzzing of every trace format: structure-aware mutations of one seed per format, and raw bytes.

    python tests/fuzz/fuzz_traces.py [--seconds 600] [--corpus DIR] [--crashes DIR]

Needs atheris (`pip install 'hintdistill[fuzz]'`). The input drives the mutations: which seed, which node of it, what is done
to it. What fails is written to the crash folder; `--show FILE` prints the value that such a file stands for, which goes
to tests/traces/replay as a case of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
with atheris.instrument_imports(include=["hintdistill.traces", "hintdistill.core.types"]):
    import hintdistill.traces.registry as registry

    registry.formats()
    from support import traces_contract as contract

from support.traces_seeds import SEEDS

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1 << 70,
    1e308,
    "",
    "x",
    "None",
    "[]",
    "{",
    '"\\"x\\""',
    "assistant",
    "user: a\nassistant: None",
    [],
    {},
    [[]],
    [{}],
    [None],
    {"": None},
    {"role": "assistant"},
    {"type": "text"},
    "attachment://h",
    "1",
    "²",
    "9" * 400,
    "\x00",
    "é" * 40,
    [[[[[[]]]]]],
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a value, in order."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        at = stack.pop()
        items = at.items() if isinstance(at, dict) else enumerate(at) if isinstance(at, list) else ()
        for key, inner in items:
            found.append((at, key))
            stack.append(inner)
    return found


def mutate(data: atheris.FuzzedDataProvider, value: Any, pool: list[Any]) -> Any:
    """One mutation: drop, replace, wrap, repeat, rename, nest or unpack a node."""
    found = places(value)
    if not found:
        return copy.deepcopy(pool[data.ConsumeIntInRange(0, len(pool) - 1)])
    at, key = found[data.ConsumeIntInRange(0, len(found) - 1)]
    what = data.ConsumeIntInRange(0, 8)
    if what == 0:
        del at[key]
    elif what == 1:
        at[key] = copy.deepcopy(ODD[data.ConsumeIntInRange(0, len(ODD) - 1)])
    elif what == 2:
        at[key] = copy.deepcopy(pool[data.ConsumeIntInRange(0, len(pool) - 1)])
    elif what == 3:
        at[key] = [at[key]] if data.ConsumeBool() else {"x": at[key]}
    elif what == 4:
        other, its = found[data.ConsumeIntInRange(0, len(found) - 1)]
        at[key] = copy.deepcopy(other[its])
    elif what == 5:
        at[key] = json.dumps(at[key])
    elif what == 6:
        at[key] = data.ConsumeUnicodeNoSurrogates(12)
    elif what == 7 and isinstance(at, list):
        at.extend(copy.deepcopy(at[key]) for _ in range(data.ConsumeIntInRange(1, 20)))
    elif what == 8:
        for _ in range(data.ConsumeIntInRange(1, 90)):
            at[key] = [at[key]]
    return value


def decode(raw: bytes) -> tuple[str, Any]:
    """What an input stands for: `("bytes", …)` or `("values", …)`."""
    data = atheris.FuzzedDataProvider(raw)
    if data.ConsumeIntInRange(0, 4) == 0:
        return "bytes", data.ConsumeBytes(4096)
    names = sorted(SEEDS)
    seeds = copy.deepcopy(SEEDS[names[data.ConsumeIntInRange(0, len(names) - 1)]])
    pool = [s for listed in SEEDS.values() for s in listed]
    for _ in range(data.ConsumeIntInRange(1, 6)):
        seeds = mutate(data, seeds, pool)
        if not isinstance(seeds, list):
            seeds = [seeds]
    return "values", seeds


def one_input(raw: bytes) -> None:
    """Read what an input stands for, as a file and, record by record, through every format."""
    kind, value = decode(raw)
    if kind == "bytes":
        contract.check_bytes(value)
        contract.check_bytes(value, "fuzz.jsonl")
        return
    text = json.dumps(value)
    if len(text) > 200_000:
        return
    if value:
        contract.check_bytes("\n".join(map(json.dumps, value)).encode(), "fuzz.jsonl")
        contract.check_bytes(text.encode())
    for record in value[:2]:
        contract.check_value(record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz/corpus"))
    parser.add_argument("--crashes", type=Path, default=Path(".fuzz/crashes"))
    parser.add_argument("--show", type=Path)
    arguments = parser.parse_args()
    if arguments.show:
        kind, value = decode(arguments.show.read_bytes())
        print(value.hex() if kind == "bytes" else json.dumps(value))
        return
    for folder in (arguments.corpus, arguments.crashes):
        folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={arguments.seconds}",
        "-timeout=20",
        "-rss_limit_mb=3000",
        "-max_len=2000",
        "-len_control=0",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={arguments.crashes}/", str(arguments.corpus)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
