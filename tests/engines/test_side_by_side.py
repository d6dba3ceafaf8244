"""Parts of a batch are read by several threads at the same time, and each number is the one that a single reader finds."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import STUDENT

from hintdistill.core.errors import ContextLengthError
from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.forward import READER, intercept
from hintdistill.engines.kept import KeptEngine, _Job
from hintdistill.engines.side_by_side import SideBySide, readers_for
from hintdistill.engines.transformers import TransformersEngine

pytestmark = pytest.mark.usefixtures("one_thread")
EXACT = 1e-5


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine.load(STUDENT, "float32", "cpu")


def jobs_of(callers: int, seed: int = 0) -> list[_Job]:
    """Callers with a conversation each: the plain view, a hinted one and one that leaves it elsewhere."""
    rng, jobs = np.random.default_rng(seed), []
    for n in range(callers):
        ids = rng.integers(3, 900, 60 + 17 * n)
        hinted = np.concatenate([ids[:-20], rng.integers(3, 900, 9), ids[-20:]])
        other = np.concatenate([ids[:-25], rng.integers(3, 900, 4), ids[-25:]])
        views = ((ids, "a"), (hinted, "a"), (other, None))
        jobs.append(_Job([ScoreRequest(x, len(x) - 12, len(x), group) for x, group in views], 5))
    return jobs


def same(a, b):
    return np.allclose(a, b, rtol=EXACT, atol=EXACT)


def test_two_readers_find_what_one_finds(engine):
    two, jobs = KeptEngine(engine, 1 << 30, readers=2), jobs_of(5)
    # twice, so that the second time everything of the plain views is there
    for _ in range(2):
        two._serve(jobs)
        for job, alone in zip(jobs, jobs_of(5), strict=True):
            one = KeptEngine(engine, 1 << 30, readers=1)
            for a, b in zip(job.scores, one.score(alone.requests, 5), strict=True):
                assert same(a.sampled, b.sampled) and same(a.tail_logprob, b.tail_logprob)
                assert (a.topk_ids == b.topk_ids).all() and same(a.topk_logprobs, b.topk_logprobs)
        lengths = [len(job.requests[0].ids) - 1 for job in jobs]
        assert two.conversations == 5 and sorted(k.read for k in two._kept) == lengths
    assert {t.name.rsplit("_", 1)[0] for t in threading.enumerate()} >= {"hintdistill-part"}


def test_an_error_of_one_caller_is_not_the_others_nor_the_readers(engine):
    two, jobs = KeptEngine(engine, 1 << 30, readers=2), jobs_of(3, seed=1)
    long = engine.max_length + 5
    jobs[1] = _Job([ScoreRequest(np.zeros(long, np.int64), 5, long, "b")], 5)
    two._serve(jobs)
    assert isinstance(jobs[1].error, ContextLengthError)
    assert all(np.isfinite(s.sampled).all() for n in (0, 2) for s in jobs[n].scores)


def test_a_hook_acts_on_the_forward_passes_of_its_own_reader(engine):
    """Both readers are between hook and forward pass at the same time."""
    side, meet = SideBySide(2), threading.Barrier(2)
    sequences = [torch.arange(5, 25)[None], torch.arange(40, 70)[None]]

    def last(ids: torch.Tensor) -> torch.Tensor:
        out, rows = list[torch.Tensor](), torch.tensor([0])
        with intercept(engine.model, rows, torch.tensor([ids.shape[1] - 1]), out):
            meet.wait(30)
            engine.model(input_ids=ids, use_cache=False)
            meet.wait(30)
        (hidden,) = out
        return hidden

    found = side.map(last, sequences)
    for ids, hidden in zip(sequences, found, strict=True):
        out = list[torch.Tensor]()
        with torch.inference_mode(), intercept(engine.model, torch.tensor([0]), torch.tensor([ids.shape[1] - 1]), out):
            engine.model(input_ids=ids, use_cache=False)
        assert (hidden - out[0]).abs().max() <= EXACT


def test_work_is_divided_evenly_and_nothing_is_left_out():
    side = SideBySide(2)
    assert side.divide([]) == []
    parts = side.divide([9, 1, 5, 4, 1])
    assert sorted(i for part in parts for i in part) == [0, 1, 2, 3, 4] and len(parts) == 2
    assert sorted(sum([9, 1, 5, 4, 1][i] for i in part) for part in parts) == [10, 10]
    assert side.divide([1, 1, 1]) == [[0, 1, 2]] and side.divide([9, 1]) == [[0, 1]]
    assert side.divide([3]) == [[0]] and SideBySide(1).divide([1, 2]) == [[0, 1]]


def test_each_reader_has_one_thread_and_others_keep_theirs():
    torch.set_num_threads(2)
    try:
        side = SideBySide(2)
        assert side.map(lambda _: torch.get_num_threads(), [0, 1]) == [1, 1]
        later = list[int]()
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 2 and later == [2]
        # a part alone is for the thread that asks, with all of its own
        assert side.map(lambda _: (torch.get_num_threads(), READER.get()), [0]) == [(2, None)]
    finally:
        torch.set_num_threads(1)


def test_errors_come_when_every_part_has_ended():
    ended = threading.Event()

    def work(n: int) -> None:
        if n:
            raise ValueError("part")
        ended.wait(0.05)
        ended.set()

    with pytest.raises(ValueError, match="part"):
        SideBySide(2).map(work, [0, 1])
    assert ended.is_set()


def test_models_that_a_pass_changes_have_one_reader(engine):
    torch.set_num_threads(2)
    try:
        assert readers_for(engine.model, True) == 2 and readers_for(engine.model, False) == 1
        for kind in ("dynamic", "longrope"):
            part = SimpleNamespace(rope_type=kind)
            assert readers_for(SimpleNamespace(modules=lambda part=part: [part]), True) == 1
    finally:
        torch.set_num_threads(1)
