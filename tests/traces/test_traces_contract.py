"""The contract of every format, on its seed, on small damage to it, and on what a fuzzer once broke."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from support.traces_contract import check_bytes, check_value
from support.traces_seeds import SEEDS

from hintdistill.core.types import Trace
from hintdistill.traces.reading import read_traces
from hintdistill.traces.registry import formats, recognise

REPLAY = sorted((Path(__file__).parent / "replay").glob("*.json"))


def test_every_format_has_seeds_and_is_recognised_by_them(tmp_path):
    assert set(SEEDS) == {f.NAME for f in formats()}
    for name, seeds in SEEDS.items():
        scope = next(f.SCOPE for f in formats() if name == f.NAME)
        for seed in seeds if scope == "record" else seeds[:1]:
            found = recognise(seed)
            assert found is not None and name == found.NAME, f"{name}: {json.dumps(seed)[:60]}"
        path = tmp_path / f"{name}.jsonl"
        path.write_text("\n".join(map(json.dumps, seeds)))
        if name != "sessions":
            assert any(isinstance(o, Trace) for o in read_traces([path])), name


def asked_one_by_one(value: Any) -> Any:
    return next((f for f in formats() if f.fits(value)), None)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9), lambda of: st.lists(of, max_size=2)
)
CHAT = st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["system", "user", "assistant", "tool", "ai", "model", "human"]) | ANYTHING},
                optional={
                    "content": st.none() | st.text(max_size=9) | ANYTHING,
                    "tool_calls": ANYTHING,
                    "tool_call_id": ANYTHING,
                    "name": ANYTHING,
                    "type": st.just("ai"),
                },
            ),
            max_size=3,
        )
    },
    optional=dict.fromkeys(("id", "trace_id", "task_id", "model", "tools", "reward", "system", "format"), ANYTHING),
)


@settings(max_examples=examples(150), deadline=None)
@given(CHAT)
def test_a_record_of_plain_chat_is_recognised_as_it_is_by_asking_every_format(value):
    assert recognise(value) is asked_one_by_one(value)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_every_part_of_a_seed_is_recognised_as_it_is_by_asking_every_format(name):
    for seed in SEEDS[name]:
        for part in (seed, *(at[key] for at, key in nodes(seed))):
            assert recognise(part) is asked_one_by_one(part)


@pytest.mark.parametrize("name", sorted(SEEDS))
def test_seeds_keep_the_contract(name):
    for seed in SEEDS[name]:
        check_value(seed)
    check_bytes("\n".join(map(json.dumps, SEEDS[name])).encode(), "t.jsonl")
    check_bytes(json.dumps(SEEDS[name]).encode())


def nodes(value: Any) -> list[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in list(items) for found in [(value, key), *nodes(inner)]]


@settings(max_examples=examples(120), deadline=None)
@given(st.data())
def test_damaged_seeds_keep_the_contract(data):
    """Any node gone, or something else in its place."""
    name = data.draw(st.sampled_from(sorted(SEEDS)))
    seeds = copy.deepcopy(SEEDS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        found = nodes(seeds)
        if not found:
            break
        at, key = data.draw(st.sampled_from(found))
        other = data.draw(st.sampled_from([None, 0, "x", [], {}, [None], "[]", {"role": "assistant"}, True]))
        if data.draw(st.booleans()):
            del at[key]
        else:
            at[key] = other
    if seeds:
        check_bytes("\n".join(map(json.dumps, seeds)).encode(), "t.jsonl")
        check_value(seeds[0])


@pytest.mark.parametrize("path", REPLAY, ids=lambda p: p.stem)
def test_what_a_fuzzer_broke_holds(path):
    case = json.loads(path.read_text(encoding="utf-8"))
    if "bytes" in case:
        check_bytes(bytes.fromhex(case["bytes"]))
        check_bytes(bytes.fromhex(case["bytes"]), "t.jsonl")
        return
    check_bytes("\n".join(map(json.dumps, case["values"])).encode(), "t.jsonl")
    check_bytes(json.dumps(case["values"]).encode())
    for value in case["values"]:
        check_value(value)
