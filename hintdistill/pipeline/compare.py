"""`hintdistill critique --compare A B`: compare two critics or two prompts on the same traces.

A side is a run folder, a config, `key=value` applied to the config, or the path of a critic prompt. Both sides are
assembled before any question is asked, so that an unknown prompt costs nothing. Both run up to rescoring, so that the
comparison covers the effects as well as the answers: findings gained, lost and moved, hints accepted, specificity,
tokens spent. Differences are B − A, paired by trace; their 95 % intervals are percentiles of 2,000 resamples of the
traces (Efron 1979), so that the variation between traces cancels.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hintdistill.config import RunConfig
from hintdistill.config.file import load_config
from hintdistill.core.errors import InputError
from hintdistill.core.types import Critique, Finding
from hintdistill.pipeline import critique, read
from hintdistill.pipeline.context import RunContext, in_use
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.run import run, run_folder
from hintdistill.pipeline.store import RunDir
from hintdistill.pipeline.to_score import hint_items
from hintdistill.prompts import hint_name
from hintdistill.rescoring.store import TargetStore

RESAMPLES = 2000


def run_comparison(
    config: Path, overrides: Sequence[str], sides: tuple[str, str], console: Console, *, trust: bool = False
) -> dict[str, Any]:
    """Run the missing stages of both sides and compare them. Targets with the same key are not scored twice: B takes
    them from A.

    Args:
        trust: see `pipeline.run.run`.

    Raises:
        ConfigError, InputError, PromptError: a side has none of these forms or cannot be assembled, or a run folder has
            no critique.
        HintdistillError: an error stopped one side.
    """
    base = run_folder(load_config(config, list(overrides)), f"{config.stem}-compare")
    settings = [None if RunDir(side).is_run() else side_settings(config, overrides, side) for side in sides]
    check_critics([s for s in settings if s is not None], console, trust=trust)
    folders: list[Path] = []
    for name, side, its in zip("ab", sides, settings, strict=True):
        if its is None:
            folders.append(Path(side))
            continue
        console.note(f"{name}: {side}")
        if folders:
            run(its, base / name, resume=True, until="inject", console=console, trust=trust)
            if lent := _lend(folders[0], base / name, its):
                console.note(f"{name}: {lent} injections are the same on both sides and are not scored again")
        folders.append(run(its, base / name, resume=True, until="rescore", console=console, trust=trust))
    return compare_runs(*folders)


def side_settings(config: Path, overrides: Sequence[str], side: str) -> RunConfig:
    """Return the configuration of a side that is not a folder; see the module.

    Raises:
        ConfigError: the configuration is invalid.
        InputError: the side has none of the known forms.
    """
    if "=" in side:
        key, _, value = side.partition("=")
        if key.endswith(".prompt") and value.endswith(".jinja") and Path(value).is_file():
            side = f"{key}={Path(value).resolve()}"
        return load_config(config, [*overrides, side])
    if not Path(side).is_file():
        raise InputError(
            f"{side} is neither a run folder, a config, a prompt nor key=value",
            hint="e.g. critic.llm.prompt=critic/mine.jinja",
        )
    if side.endswith(".jinja"):
        return load_config(config, [*overrides, f"critic.llm.prompt={Path(side).resolve()}"])
    return load_config(Path(side), list(overrides))


def check_critics(sides: Sequence[RunConfig], console: Console, *, trust: bool = False) -> None:
    """Assemble the critics of every side without asking anything. Raises ConfigError, PromptError or InputError."""
    for settings in sides:
        with in_use(settings, trust):
            critique.critics(RunContext(settings, RunDir(Path()), console))


def _lend(a: Path, b: Path, settings: RunConfig) -> int:
    """Copy to B the targets of A that B would score to the same bits, and return their number."""
    with in_use(settings):
        ctx = RunContext(settings, RunDir.open(b), Console(quiet=True))
        owed = {item.key for item in hint_items(ctx)}
    have, mine = TargetStore(a / "targets"), TargetStore(b / "targets")
    lent = owed & have.keys() - mine.keys()
    for part in have.parts():
        mine.append([t for t in have.read_part(part) if t.key in lent])
    return len(lent)


def compare_runs(a: Path, b: Path) -> dict[str, Any]:
    """Compare two run folders on the traces that both contain.

    Raises:
        InputError: a folder contains no run, or the two share no critiqued trace.
    """
    said_a, said_b = _said(a), _said(b)
    shared = [key for key in said_a if key in said_b]
    if not shared:
        raise InputError(f"{a} and {b} share no critiqued trace", hint="both sides must read the same traces")
    gained, lost, moved, same = _differences(said_a, said_b, shared)
    scored_a, scored_b = _scored(a), _scored(b)
    ids = {key: said_a[key].trace_id for key in shared}

    def paired(value: Callable[[Mapping[str, list[dict[str, Any]]], Mapping[str, Critique], str], float | None]) -> Any:
        pairs = [(value(scored_a, said_a, k), value(scored_b, said_b, k)) for k in shared]
        return paired_difference([p for p in pairs if p[0] is not None and p[1] is not None])  # type: ignore[misc]

    return {
        "a": str(a),
        "b": str(b),
        "traces": len(shared),
        "left_out": len(said_a) + len(said_b) - 2 * len(shared),
        "findings": {"same": same, "gained": gained, "lost": lost, "moved": moved},
        "unused_hints": unused_hints(
            (RunDir.open(a).manifest().get("prompts", {}), RunDir.open(b).manifest().get("prompts", {})),
            [f for said in (said_a, said_b) for c in said.values() for f in c.findings],
        ),
        "accepted": paired(lambda scored, _, k: float(sum(f["accepted"] for f in scored.get(ids[k], ())))),
        "acceptance": paired(lambda scored, _, k: _mean([float(f["accepted"]) for f in scored.get(ids[k], ())])),
        "specificity_nats": paired(
            lambda scored, _, k: _mean(
                [f["specificity_nats"] for f in scored.get(ids[k], ()) if f["specificity_nats"] is not None]
            )
        ),
        "tokens": paired(lambda _, said, k: float(said[k].usage.prompt_tokens + said[k].usage.completion_tokens)),
        "requests": paired(lambda _, said, k: float(said[k].usage.requests)),
    }


def unused_hints(hashes: tuple[Mapping[str, str], Mapping[str, str]], findings: Sequence[Finding]) -> list[str]:
    """Return the hint templates that differ between the sides although no finding uses them, because all findings of
    their class have hints of their own."""
    a, b = hashes
    edited = {n for n in {*a, *b} if n.startswith("hints/") and a.get(n) != b.get(n)}
    return sorted(edited - {hint_name(f.error_class) for f in findings if f.hint is None})


def _said(folder: Path) -> dict[str, Critique]:
    run = RunDir.open(folder)
    config, _ = run.config()
    with in_use(config):
        ctx = RunContext(config, run, Console(quiet=True))
        keys = {key for key, _, _ in read.load(ctx)}
        return {key: c for key, c in critique.load(ctx).items() if key in keys}


def _scored(folder: Path) -> dict[str, list[dict[str, Any]]]:
    path = folder / "report.json"
    if not path.is_file():
        return {}
    out: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(path.read_text(encoding="utf-8"))["findings"]:
        out.setdefault(finding["trace"], []).append(finding)
    return out


def _differences(
    a: Mapping[str, Critique], b: Mapping[str, Critique], shared: Sequence[str]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]], int]:
    gained: list[dict[str, Any]] = []
    lost: list[dict[str, Any]] = []
    moved: list[dict[str, Any]] = []
    same = 0
    for key in shared:
        of_a = {f.step: f.error_class for f in a[key].findings}
        of_b = {f.step: f.error_class for f in b[key].findings}
        same += len(of_a.keys() & of_b.keys())
        new = {s: c for s, c in of_b.items() if s not in of_a}
        old = {s: c for s, c in of_a.items() if s not in of_b}
        for step, error_class in list(old.items()):
            to = next((s for s, c in new.items() if c == error_class), None)
            if to is not None:
                moved.append({"trace": a[key].trace_id, "from": step, "to": to, "error_class": error_class})
                del old[step], new[to]
        gained += [{"trace": a[key].trace_id, "step": s, "error_class": c} for s, c in new.items()]
        lost += [{"trace": a[key].trace_id, "step": s, "error_class": c} for s, c in old.items()]
    return gained, lost, moved, same


def paired_difference(pairs: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Return the means of both sides, and of their difference with its interval."""
    if not pairs:
        return {"a": None, "b": None, "difference": None, "low": None, "high": None, "n": 0}
    values = np.array(pairs, float)
    gaps = values[:, 1] - values[:, 0]
    rng = np.random.default_rng(0)
    means = np.array([gaps[rng.integers(0, len(gaps), len(gaps))].mean() for _ in range(RESAMPLES)])
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "a": float(values[:, 0].mean()),
        "b": float(values[:, 1].mean()),
        "difference": float(gaps.mean()),
        "low": float(low),
        "high": float(high),
        "n": len(pairs),
    }


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def compare_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the comparison as lines for a terminal."""
    f = found["findings"]
    out = [
        f"A {found['a']}",
        f"B {found['b']}",
        f"{found['traces']} traces on both sides; {f['same']} findings the same, {len(f['gained'])} "
        f"gained, {len(f['lost'])} lost, {len(f['moved'])} moved",
    ]
    for name in ("accepted", "acceptance", "specificity_nats", "tokens", "requests"):
        p = found[name]
        if p["n"]:
            out.append(
                f"  {name:<18} A {p['a']:.3f}  B {p['b']:.3f}  B−A {p['difference']:+.3f} "
                f"[{p['low']:+.3f}, {p['high']:+.3f}] per trace, {p['n']} traces"
            )
    out += [f"  {name} differs, but no finding uses it" for name in found["unused_hints"]]
    for label in ("gained", "lost"):
        out += [f"  {label}: {x['trace']}, step {x['step']}, {x['error_class']}" for x in f[label][:10]]
    out += [f"  moved: {x['trace']}, step {x['from']} → {x['to']}, {x['error_class']}" for x in f["moved"][:10]]
    return out
