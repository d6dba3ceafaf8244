"""The token budget with several questions in flight, answered in many orders."""

from __future__ import annotations

import json
import random
import sys
import threading

import pytest

from hintdistill.config import LLMSection
from hintdistill.core.errors import ServiceError
from hintdistill.core.types import Critique, Message, Trace, Usage
from hintdistill.critics import one_by_one
from hintdistill.critics.backends import AnswerCache, Budget, BudgetError, Reply, by_bytes
from hintdistill.critics.llm import LLMCritic
from hintdistill.prompts import PromptLibrary

NONE = json.dumps({"verdict": "none", "findings": []})
NO_MISTAKE = json.dumps({"mistake": False, "quote": None, "error_class": "none", "hint": "", "confidence": 0.9})
ANSWER_TOKENS = 100
PROMPTS = PromptLibrary()
ORDERS = pytest.mark.parametrize(("together", "seeds"), [(False, range(50)), (True, range(5))])
"""Threads answer in an order that the seed and the machine make; in step, the order is that of the traces."""


class Shuffled:
    """Holds what is in flight and, once nothing more arrives, answers one of them that the seed picks.

    An answer costs a share of the question's bound that depends on the question, or always `cost` tokens.
    """

    key = "shuffled"
    context_tokens = None
    count = staticmethod(by_bytes)

    def __init__(self, seed: int, together: bool = False, cost: int | None = None) -> None:
        self.together, self.cost, self.asked, self.paid = together, cost, [], 0
        self._random, self._held, self._lock = random.Random(seed), [], threading.Lock()

    def complete(self, requests):
        mine = threading.Event()
        with self._lock:
            self._held.append(mine)
        while not mine.wait(0.0005):
            with self._lock:
                if self._held:
                    self._held.pop(self._random.randrange(len(self._held))).set()
        with self._lock:
            return [self._reply(r) for r in requests]

    def _reply(self, request):
        bound = by_bytes(request.messages[0]["content"]) + ANSWER_TOKENS
        cost = random.Random(request.key).randint(1, bound) if self.cost is None else self.cost
        self.asked.append(request.key)
        self.paid += cost
        text = NO_MISTAKE if request.schema.get("title") == "StepAnswer" else NONE
        return Reply(text, Usage(requests=1, prompt_tokens=cost - 1, completion_tokens=1))


def traces(sizes) -> list[Trace]:
    """Traces of two steps, no two alike; the first step of each holds so many characters more."""
    out = []
    for i, size in enumerate(sizes):
        said = (f"say{i}" + "x" * size, "go on", f"say{i}", "go on")
        turns = [Message(role=r, content=t) for r, t in zip(("assistant", "user") * 2, said, strict=True)]
        out.append(Trace(id=f"t{i}", messages=(Message(role="user", content="do it"), *turns)))
    return out


def critic(backend, budget=None, cache=None, **settings) -> LLMCritic:
    return LLMCritic(LLMSection(max_tokens=ANSWER_TOKENS, **settings), PROMPTS, backend, budget=budget, cache=cache)


def need(trace: Trace) -> int:
    """What is set aside for the one question about a trace."""
    return critic(Shuffled(0)).estimate(trace).prompt_tokens + ANSWER_TOKENS


def test_a_budget_stops_cleanly_and_keeps_what_was_done():
    """One at a time, outcomes come in the order of the traces, whatever the threads do."""
    some = traces([0] * 6)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            assert [t for t, _ in one_by_one(lambda n: n, range(100), 1)] == list(range(100))
    finally:
        sys.setswitchinterval(before)
    c = critic(backend := Shuffled(0, cost=15), Budget(need(some[0]) + 31), concurrency=1)
    got = list(c.critique(some))
    assert [t.id for t, _ in got] == [t.id for t in some]
    assert [type(o) for _, o in got] == [Critique] * 3 + [BudgetError] * 3, "after three, 45 tokens are paid: none fits"
    assert all(o.retryable for _, o in got[3:]) and len(backend.asked) == 3


@ORDERS
def test_a_budget_buys_as_much_in_any_order(together, seeds):
    """What is set aside for a question in flight refuses no other: three of six are paid for, however many fly."""
    some = traces([0] * 6)
    limit = need(some[0]) + 31
    for seed in seeds:
        backend, budget = Shuffled(seed, together, cost=15), Budget(limit)
        got = [o for _, o in critic(backend, budget, concurrency=1 + seed % 5).critique(some)]
        assert sorted(type(o).__name__ for o in got) == ["BudgetError"] * 3 + ["Critique"] * 3, f"seed {seed}"
        assert (budget.spent, budget.in_flight, len(backend.asked)) == (45, 0, 3), f"seed {seed}"


@ORDERS
def test_no_order_of_answers_overspends_or_loses_one(together, seeds, tmp_path):
    """Questions of many sizes, several a trace: within the limit, the rest owed, and what was paid never asked again."""
    for seed in seeds:
        some = traces([300 * ((seed + i) % 4) for i in range(5)])
        settings = {"strategy": "step_by_step", "concurrency": 2 + seed % 4}
        limit, cache = need(some[0]) + 600 + 20 * seed, tmp_path / f"{together}-{seed}.jsonl"
        first, budget = Shuffled(seed, together), Budget(limit)
        got = {t.id: o for t, o in critic(first, budget, AnswerCache(cache), **settings).critique(some)}
        assert budget.spent == first.paid <= limit and budget.in_flight == 0, f"seed {seed}"
        owed = [t for t in some if not isinstance(got[t.id], Critique)]
        assert first.asked and len(got) == 5 and owed and all(isinstance(got[t.id], BudgetError) for t in owed), (
            f"seed {seed}"
        )
        second = Shuffled(seed, together)
        rest = {t.id: o for t, o in critic(second, None, AnswerCache(cache), **settings).critique(owed)}
        assert not set(first.asked) & set(second.asked) and len(first.asked + second.asked) == 10, f"seed {seed}"
        usage = [o.usage for o in (got | rest).values()]
        assert sum(u.prompt_tokens + u.completion_tokens for u in usage) == first.paid + second.paid, f"seed {seed}"


def test_a_question_that_dies_gives_back_what_was_set_aside():
    """The second waits for the room that the first holds; it would wait for ever were that not given back."""
    some = traces([0, 0])

    class Dead(Shuffled):
        def complete(self, requests):
            self.asked.append(requests)
            super().complete([])
            failure = ServiceError("gone")
            failure.retryable = False
            raise failure

    c = critic(backend := Dead(0), budget := Budget(need(some[0]) + 31), concurrency=2)
    with pytest.raises(ServiceError, match="gone"):
        list(c.critique(some))
    assert (budget.spent, budget.in_flight) == (0, 0) and len(backend.asked) >= 1
