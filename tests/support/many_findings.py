"""Report documents of many findings, made from the golden run's, with the traces they are of; text differs from finding to finding."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from hintdistill.reporting.islands import trace_page

ROOT = Path(__file__).resolve().parent.parent.parent
GOLDEN = ROOT / "tests" / "goldens" / "run_v1"
CLASSES = ("unknown_tool", "wrong_argument", "skipped_lookup", "ignored_error")


def golden() -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The golden run's report document, and its traces as rows have them, by id."""
    document = json.loads((GOLDEN / "report.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (GOLDEN / "traces.jsonl").read_text(encoding="utf-8").splitlines()]
    return document, {r["trace"]["id"]: r["trace"] for r in rows if "trace" in r}


def toolworld(n: int, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """A document of `n` findings as toolworld has them, each of a trace of its own, and the traces."""
    document, traces = golden()
    rng, findings, pages = random.Random(seed), [], {}
    for i in range(n):
        like = document["findings"][i % len(document["findings"])]
        name = f"{like['trace'].partition('#')[0]}#{i}"
        # other names and numbers in each trace, so that it cannot be compressed as a copy of the one before
        words = {w: _word(rng) for w in ("Simon", "wallet", "account", "find_room", "city", "person", "hours")}
        finding = _reworded(like, words) | {"key": f"{rng.getrandbits(96):024x}", "trace": name}
        finding["error_class"] = CLASSES[i % 4]
        findings.append(_redrawn(finding, rng))
        pages[name] = trace_page(_reworded(traces[like["trace"]], words), [_critique(finding)])
    return document | {"findings": findings}, pages


def long_traces(n: int, characters: int = 48_000, seed: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same, with `characters` of real text in every trace: this repository's own pages and code, cut at random places."""
    document, pages = toolworld(n, seed)
    rng = random.Random(seed + 1)
    files = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "hintdistill").rglob("*.py"))]
    corpus = "\n".join(p.read_text(encoding="utf-8") for p in files)
    for page in pages.values():
        pieces, left = [], characters
        while left > 0:
            at, size = rng.randrange(len(corpus)), min(left, rng.randrange(200, 3000))
            pieces.append({"role": "tool", "name": "read_file", "content": corpus[at : at + size]})
            left -= size
        page["messages"][2:2] = pieces
    return document, pages


def _word(rng: random.Random) -> str:
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randrange(3, 9)))


def _reworded(value: Any, words: dict[str, str]) -> Any:
    """A value with other words in its texts; keys stay."""
    if isinstance(value, dict):
        return {k: _reworded(v, words) for k, v in value.items()}
    if isinstance(value, list):
        return [_reworded(v, words) for v in value]
    if isinstance(value, str):
        for old, new in words.items():
            value = value.replace(old, new)
    return value


def _redrawn(finding: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The finding with probabilities of its own, and with what a run of today knows beside."""
    for token in finding["tokens"]:
        for when in ("before", "hinted", "after"):
            token[when] = min(1.0, max(0.0, token[when] - abs(rng.gauss(0, 0.02))))
    decision = finding["decision"]
    if decision:
        for when in ("before", "hinted", "after"):
            decision[when] = finding["tokens"][decision["position"]][when] = rng.random()
        one = [{"text": _word(rng), "p": rng.random() / (k + 1)} for k in range(3)]
        decision |= {"odds_nats": rng.gauss(3, 2), "flips": True, "top": {"before": one, "hinted": one, "after": one}}
    finding["hint_block"] = f"<|im_start|>user\n{finding['hint']}<|im_end|>\n"
    return finding | {"level": rng.randrange(3), "candidate": "", "choice": "only", "twins": []}


def _critique(finding: dict[str, Any]) -> dict[str, Any]:
    said = {k: finding[k] for k in ("step", "error_class", "quote", "hint")}
    return {"critic": finding["critic"], "critique": {"verdict": "findings", "raw_answer": json.dumps(said)}}
