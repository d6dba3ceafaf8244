"""Random talks under every template of the trl wheel and of the tests: the invariants of the matrix hold, and of what a fuzzer found."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
from conftest import TEMPLATES, examples, published_templates
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.template_matrix import renderers, templates_in
from support.template_talks import talks, wrong_of

from hintdistill.core.types import Trace
from hintdistill.injection.rendering import Renderer

REPLAY = sorted((Path(__file__).parent / "replay").glob("*.json"))


@cache
def known() -> dict[str, Renderer]:
    wheel = {p.stem: p.read_text(encoding="utf-8") for p in published_templates()}
    return dict(renderers(wheel | templates_in(TEMPLATES)))


@settings(max_examples=examples(40), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(talks(), st.data())
def test_the_invariants_hold_of_random_talks(trace, data):
    """tests/fuzz/fuzz_templates.py does the same for minutes; `HINTDISTILL_EXAMPLES` sets the number here."""
    name = data.draw(st.sampled_from(sorted(known())))
    step = data.draw(st.integers(0, len(trace.step_indices) - 1))
    assert wrong_of(trace, step, known()[name]) == [], name


@pytest.mark.parametrize("path", REPLAY, ids=lambda p: p.stem)
def test_what_the_fuzzer_found_is_right_now(path):
    case = json.loads(path.read_text(encoding="utf-8"))
    if case["template"] not in known():
        pytest.skip("the trl wheel, which ships chat templates of released models, is not installed")
    assert wrong_of(Trace.model_validate(case["trace"]), case["step"], known()[case["template"]]) == []


def test_the_finds_are_replayed():
    assert REPLAY
