"""Callers of one model are served in the order in which they came, in bounded batches, and nothing of a conversation is read twice."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import STUDENT

from hintdistill.core.scores import ScoreRequest
from hintdistill.engines.kept import TOGETHER, KeptEngine
from hintdistill.engines.prefix_tree import grow
from hintdistill.engines.transformers import TransformersEngine
from hintdistill.engines.turns import PASSED, Turns

pytestmark = pytest.mark.usefixtures("one_thread")


class Crew:
    """Threads that come one after another while the turn is held, each in its place of the line before the next one starts."""

    def __init__(self, turns: Turns) -> None:
        self.turns, self.said, self.threads = turns, list[str](), list[threading.Thread]()

    def comes(self, work, in_line) -> None:
        """Start a thread and wait until it stands where it should."""
        thread = threading.Thread(target=work)
        thread.start()
        self.threads.append(thread)
        while not in_line():
            assert thread.is_alive()

    def prepares(self, name: str) -> None:
        """A thread that takes the turn and says its name."""
        wanted = self.turns.preparing + 1
        self.comes(lambda: self._says(name), lambda: self.turns.preparing == wanted)

    def leads(self, enough) -> None:
        """A thread that has work done."""
        self.comes(lambda: self._leads(enough), lambda: self.turns._leader is not None)

    def _says(self, name: str) -> None:
        with self.turns:
            self.said.append(name)

    def _leads(self, enough) -> None:
        with self.turns.last(enough):
            self.said.append("done")

    def join(self) -> list[str]:
        """What was said, in order, when all have gone."""
        for thread in self.threads:
            thread.join()
        return self.said


@pytest.fixture
def crew() -> Crew:
    return Crew(Turns(threading.RLock()))


def test_first_come_first_served_and_work_is_done_after_all_who_stand_in_line(crew):
    with crew.turns:
        crew.leads(lambda: False)
        for n in range(9):
            crew.prepares(str(n))
        with crew.turns:
            crew.said.append("again")
    assert crew.join() == ["again", *map(str, range(9)), "done"]


def test_enough_work_is_done_before_those_that_still_prepare(crew):
    with crew.turns:
        crew.leads(lambda: len(crew.said) >= 4)
        for n in range(6):
            crew.prepares(str(n))
    assert crew.join() == ["0", "1", "2", "3", "done", "4", "5"]


def test_work_that_waits_is_passed_by_a_bounded_number(crew):
    with crew.turns:
        crew.leads(lambda: False)
        for n in range(PASSED + 3):
            crew.prepares(str(n))
    assert crew.join().index("done") == PASSED


def test_those_that_come_back_go_before_those_that_prepare_in_the_order_they_are_called(crew):
    tickets, gone = [object() for _ in range(4)], threading.Event()

    def waits(n: int) -> None:
        with crew.turns:
            with crew.turns.released(tickets[n]):
                gone.wait()
            crew.said.append(f"back {n}")

    for n in range(4):
        crew.comes(lambda n=n: waits(n), lambda: True)
    while not gone.is_set():
        with crew.turns:
            crew.prepares("new")
            crew.turns.call_back([tickets[n] for n in (2, 0, 3, 1)])
            gone.set()
    assert crew.join() == ["back 2", "back 0", "back 3", "back 1", "new"]


def test_an_error_inside_gives_the_turn_back_and_one_outside_takes_nothing(crew):
    with pytest.raises(ValueError, match="mine"), crew.turns, crew.turns.released(object()):
        raise ValueError("mine")
    assert not crew.turns.mine
    with crew.turns.released(object()):
        assert not crew.turns.mine
    with crew.turns:
        assert crew.turns.mine


# -- the engine ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    return TransformersEngine.load(STUDENT, dtype="float32", device="cpu")


class Watched(KeptEngine):
    """Notes which callers each batch serves."""

    def __init__(self, engine: TransformersEngine) -> None:
        super().__init__(engine, 1 << 30)
        self.served: list[list[str]] = []

    def _score(self, jobs) -> None:
        self.served.append([job.requests[0].group for job in jobs])
        super()._score(jobs)


def test_callers_are_served_in_their_order_in_bounded_batches(engine):
    rng = np.random.default_rng(4)
    head = rng.integers(3, 900, 12)
    many = 2 * TOGETHER + 3
    talks = [np.concatenate([head, rng.integers(3, 900, 3 + n % 5)]) for n in range(many)]
    kept, back = Watched(engine), list[str]()

    def ask(n: int) -> float:
        with kept.turns:
            found = kept.score([ScoreRequest(talks[n], 12, len(talks[n]), str(n))], 4)[0]
            back.append(str(n))
            return float(found.sampled[0])

    with ThreadPoolExecutor(many) as pool:
        with kept.turns:
            futures = []
            for n in range(many):
                futures.append(pool.submit(ask, n))
                while kept.turns.preparing <= n:
                    assert not futures[-1].done()
        found = [f.result() for f in futures]
    assert [n for some in kept.served for n in some] == list(map(str, range(many))) == back
    assert all(len(some) <= TOGETHER for some in kept.served) and len(kept.served) == 3
    alone = [engine.score([ScoreRequest(t, 12, len(t))], 4)[0].sampled[0] for t in talks]
    np.testing.assert_allclose(found, alone, atol=1e-5)
    # so short a beginning is read again for each conversation of a batch, everything else once
    assert kept.computed == sum(len(t) - 1 for t in talks) - 12 * (many - TOGETHER)


def test_a_conversation_that_goes_on_is_read_once_whoever_asks_at_the_same_time(engine):
    rng = np.random.default_rng(5)
    talks = [rng.integers(3, 900, 40) for _ in range(3)]
    kept = Watched(engine)
    with ThreadPoolExecutor(3) as pool:
        for end in (20, 30, 40):
            list(pool.map(lambda t, end=end: kept.score([ScoreRequest(t[:end], end - 5, end, "a")], 4), talks))
    assert kept.computed == 3 * 39


def test_new_conversations_of_one_batch_read_their_common_beginning_once(engine):
    rng = np.random.default_rng(6)
    head, more = rng.integers(3, 900, 60), rng.integers(3, 900, 40)
    heads = [head, head, np.concatenate([head, more]), np.concatenate([head, more])]
    talks = [np.concatenate([h, rng.integers(3, 900, 10 + n)]) for n, h in enumerate(heads)]
    kept = Watched(engine)
    requests = [ScoreRequest(t, len(t) - 8, len(t), str(n)) for n, t in enumerate(talks)]
    found, alone = kept.score(requests, 4), engine.score(requests, 4)
    assert kept.computed == grow([t[:-1] for t in talks]).computed and kept.conversations == 4
    for a, b in zip(found, alone, strict=True):
        np.testing.assert_allclose(a.sampled, b.sampled, atol=1e-5)


def test_a_caller_that_is_served_before_it_begins_to_wait_holds_nobody_up(engine):
    kept, go_on, names = KeptEngine(engine, 1 << 30), threading.Event(), list[str]()
    waits = kept._served

    def late(job) -> None:
        if job.requests[0].group == "slow":
            go_on.wait()
        waits(job)

    kept._served = late
    ids = np.arange(10, 40)

    def ask(name: str) -> None:
        with kept.turns:
            assert np.isfinite(kept.score([ScoreRequest(ids, 20, 30, name)], 4)[0].sampled).all()
            names.append(name)

    crew = Crew(kept.turns)
    with kept.turns:
        for n, name in enumerate(("fast", "slow"), 1):
            crew.comes(lambda name=name: ask(name), lambda n=n: kept.turns.preparing == n)
    crew.threads[0].join()
    go_on.set()
    crew.join()
    with kept.turns:
        assert names == ["fast", "slow"] and kept.batches == 1


def test_an_interrupt_of_the_one_that_leads_reaches_those_that_it_served(engine, monkeypatch):
    kept = KeptEngine(engine, 1 << 30)
    request = ScoreRequest(np.arange(10, 40), 20, 30, "a")
    monkeypatch.setattr(kept, "_serve", lambda jobs: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        kept.score([request], 4)
    monkeypatch.undo()
    assert np.isfinite(kept.score([request], 4)[0].sampled).all() and not kept._queue
    # nor does anybody wait for one that was interrupted while it waited
    monkeypatch.setattr(kept, "_served", lambda job: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt), kept.turns:
        kept.score([request], 4)
    monkeypatch.undo()
    with kept.turns:
        assert not kept._queue and np.isfinite(kept.score([request], 4)[0].sampled).all()
