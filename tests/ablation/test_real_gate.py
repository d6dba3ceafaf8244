"""The table of what the gate lets pass on the real model, from rows alone."""

from __future__ import annotations

from dataclasses import asdict

from benchmarks import gate
from benchmarks.realmodel.gating import _auc, _choice, _passing
from hintdistill.config import GateSection
from hintdistill.core.scores import Measurement


def row(finding: int, arm: str, odds: float, **more) -> dict:
    m = Measurement(
        0, 5, -3.0, -0.5, 0.0, -1.0, None, -0.1, odds=odds, rise=1.0, placebo_odds=0.5, placebo_odds_median=0.0
    )
    base = {"finding": finding, "class": "wrong_tool", "noun": "pen", "guards": [], "m": asdict(m)}
    return {**base, "arm": arm, **({"level": 1} if arm.startswith("hint:") else {}), **more}


def rows() -> list[dict]:
    out = []
    for n in range(10):
        out += [
            row(n, "hint:critic", 6.0, repaired=n < 8, plain_repaired=False),
            row(n, "hint:principle", 1.0, repaired=n < 4),
            row(n, "generic", 5.0 if n == 0 else 0.1, **({"repaired": True} if n == 0 else {})),
            row(n, "shuffled_answer_free", 0.1),
            row(n, "other_tool", 6.0, repaired=False),
        ]
    return out


def test_each_kind_has_its_share_its_bound_and_what_it_repairs():
    read = gate.read_half(rows(), GateSection())
    lines = _passing(read).splitlines()
    assert "| hints that repair the step when decoded | 12 | 0.67 | at least .75 | 1.00 |" in lines
    assert "| placebo: generic | 10 | 0.10 | at most .10 | 1.00 of those that pass |" in lines
    assert "| placebo: shuffled, answer-free | 10 | 0.00 | at most .10 | – |" in lines
    assert "| wrong: confident hint for another listed tool | 10 | 1.00 |  | 0.00 |" in lines
    # the winner by odds is the critic's hint: 8 of 10 against (8 + 4) / 20
    assert "| 1 | 10 | 0.80 | 0.60 |" in _choice(read["choice"]).splitlines()
    assert _auc(read).startswith("10 findings; 0.00 come out right")
