"""Every distinct token once: the plan spells each sequence, reads a past before what follows it, and meets the bound."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import WEATHER, call, examples, published_templates, renderer_for, tool
from hypothesis import given, settings
from hypothesis import strategies as st

from hintdistill.core.types import Message, Trace
from hintdistill.engines.prefix_tree import ROOT, batches, grow, shared_length

# few ids, so that random sequences share much
sequences = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=12).map(lambda ids: np.array(ids, np.int64)),
    min_size=1,
    max_size=12,
)


def bound(some: list[np.ndarray]) -> int:
    """Tokens in the trie of the sequences, from neighbours in sorted order."""
    ordered = sorted(some, key=lambda s: s.tolist())
    shared = [0, *(shared_length(a, b) for a, b in itertools.pairwise(ordered))]
    return sum(len(s) - n for s, n in zip(ordered, shared, strict=True))


@settings(deadline=None, max_examples=examples(200))
@given(some=sequences, budget=st.integers(1, 20))
def test_plan(some, budget):
    tree = grow(some)
    assert tree.computed == bound(some) and tree.asked == sum(map(len, some))
    for i, ids in enumerate(some):
        spelled = [tree.chains[c].ids[p - tree.chains[c].at] for c, p in tree.places(i, range(len(ids)))]
        assert spelled == ids.tolist()
    read: set[tuple[int, int]] = set()
    for pieces in tree.calls(budget):
        assert 0 < sum(p.length for p in pieces) <= budget
        # within a call every piece is written before any attends
        read |= {(p.chain, x) for p in pieces for x in range(p.start, p.stop)}
        for piece in pieces:
            past = tree.path(piece.chain, piece.stop)
            assert {(q.chain, x) for q in past for x in range(q.start, q.stop)} <= read
            assert past[0].start == 0 and tree.chains[past[0].chain].parent == ROOT
    assert len(read) == tree.computed


@settings(deadline=None, max_examples=examples(100))
@given(some=sequences, budget=st.integers(1, 40))
def test_batches_hold_every_sequence_once(some, budget):
    made = batches(some, budget)
    assert sorted(i for batch in made for i in batch) == list(range(len(some)))
    assert sum(grow([some[i] for i in b]).computed for b in made) >= bound(some)
    assert [i for b in batches(some, 1 << 30) for i in b] and len(batches(some, 1 << 30)) == 1


def test_branches_of_a_long_trunk_are_not_parted():
    trunk = np.arange(1000)
    views = [np.concatenate([trunk[:at], [5, 6, 7], trunk[at : at + 20]]) for at in (500, 700, 900)]
    assert len(batches([trunk, *views], 64)) == 1
    unrelated = [np.full(50, i) for i in range(10)]
    assert len(batches(unrelated, 100)) == 5


def test_the_plan_says_what_it_saves():
    trunk = np.arange(100)
    tree = grow([trunk, np.concatenate([trunk[:90], [7, 7]]), np.concatenate([trunk[:90], [7, 8]])])
    assert str(tree) == "3 sequences, 284 tokens asked, 103 computed (2.8× fewer): 1 trunks, 2 branches"


def test_given_trunks_cost_nothing():
    trunk = np.arange(50)
    tree = grow([np.concatenate([trunk[:40], [9, 9]]), trunk[:30]], [trunk])
    assert tree.computed == 2 and tree.given == 1 and tree.leaves == (1, 0)
    with pytest.raises(ValueError, match="has the same beginning as another"):
        grow([], [trunk, trunk])


def test_a_template_that_rewrites_history_meets_the_bound():
    """Six user turns of a thinking trace: every user turn drops earlier thinking, so there is no single trunk."""
    paths = [p for p in published_templates() if p.stem == "qwen3"]
    if not paths:
        pytest.skip("the trl wheel, which ships the Qwen3 template, is not installed")
    renderer = renderer_for(paths[0].read_text(encoding="utf-8"))
    messages: list[Message] = []
    for turn in range(6):
        messages.append(Message(role="user", content=f"Question {turn}: what is the weather in city {turn}?"))
        step = call("get_weather", f'{{"city": "C{turn}"}}')
        messages += [
            step.model_copy(update={"reasoning": f"Let me think about city number {turn}. " * 4}),
            tool("21 C"),
        ]
        messages.append(Message(role="assistant", reasoning="Now I can answer. " * 6, content=f"It is 21 in C{turn}."))
    trace = Trace(id="six", messages=tuple(messages), tools=(WEATHER,))
    views = []
    for k in range(len(trace.step_indices)):
        step = renderer.step(trace, k)
        plain = step.context_ids + step.step_ids
        views.append(np.array(plain))
        hint = tuple(renderer.encode("<|im_start|>user\nUse the tool get_weather.<|im_end|>\n"))
        at = len(step.context_ids) - len(step.header_ids)
        views.append(np.array(plain[:at] + hint + plain[at:]))
    trunk_of_all = shared_length(views[0], views[-2])
    assert trunk_of_all < len(views[0]), "the history was rewritten"
    tree = grow(views)
    assert tree.computed <= 1.1 * bound(views)
    assert tree.computed < 0.6 * tree.asked


def test_what_shares_a_whole_call_stays_together():
    """Half of the later one less a few tokens is shared: parting them would read a quarter of a long trace twice."""
    rng = np.random.default_rng(0)
    trace, other = rng.integers(0, 50, 400), rng.integers(0, 50, 30)
    sequences = [trace[:190], np.concatenate([trace[:190], other, trace[190:390]])]
    assert len(sequences[1]) > 2 * 190
    assert len(batches(sequences, 100)) == 1 and len(batches(sequences, 191)) == 2
