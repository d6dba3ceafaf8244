"""Progress: done of total, rate and time left, right in batches; a bar on a terminal, lines elsewhere; what matters."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console as RichConsole

from hintdistill.config import CriticSection
from hintdistill.core.errors import ServiceError
from hintdistill.core.types import Critique, Usage
from hintdistill.critics.rules import RulesCritic
from hintdistill.pipeline import progress
from hintdistill.pipeline.critique import Meter
from hintdistill.pipeline.progress import Console, Readings, Work


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_what_was_done_before_took_no_time(clock):
    work = Work("rescore", 200, clock)
    work.before(100)
    assert work.rate is None and work.left_s is None and work.status() == "100 of 200 (50%)"
    clock.now += 10
    work(20)
    assert work.rate == 2.0 and work.left_s == 40.0
    assert work.status() == "120 of 200 (60%), 2.0/s, 0:40 left"


def test_a_batch_under_way_does_not_slow_the_rate(clock):
    work = Work("critique", 400, clock)
    for _ in range(2):
        clock.now += 60
        work(128)
    assert work.rate == 256 / 120 and work.left_s == pytest.approx(144 / (256 / 120))
    clock.now += 30
    assert work.rate == 256 / 120 and work.left_s == pytest.approx(144 / (256 / 120) - 30)
    clock.now += 1000
    assert work.left_s == 0.0, "a batch that is late is never negative"


def test_a_count_that_is_kept_elsewhere_and_goes_on_from_a_checkpoint(clock):
    work = Work("train", None, clock)
    clock.now += 500  # weights are loaded
    work.reach(101, 300)
    assert work.rate is None
    clock.now += 5
    work.reach(102, 300)
    assert (work.done, work.total, work.rate) == (102, 300, 0.2)
    work.says("loss 0.1")
    assert work.status() == "102 of 300 (34%), 12.0/min, 16:30 left; loss 0.1"


def test_slow_work_is_told_by_the_hour(clock):
    work = Work("plan", 30, clock)
    clock.now += 600
    work(1)
    assert work.status() == "1 of 30 (3%), 6.0/h, 4:50:00 left"
    assert Work("read", None, clock).status() == "0"


def test_lines_come_while_nothing_advances_and_end_with_the_work(monkeypatch):
    monkeypatch.setattr(progress, "EVERY_S", 0.001)
    heard = threading.Event()

    class Heard(io.StringIO):
        def write(self, text: str) -> int:
            n = super().write(text)
            heard.set() if "599 of 600" in self.getvalue() else None
            return n

    out, console = Heard(), Console()
    console.console = RichConsole(file=out, width=40)
    with console.progress("critique [x]", 600) as work:
        work.before(599)
        assert heard.wait(60)
    said = out.getvalue().splitlines()
    assert said[-1] == "critique [x]: 599 of 600 (100%)" and all(line.startswith("critique [x]: ") for line in said)
    assert not [t for t in threading.enumerate() if t.name == "progress"]
    quiet = Console(quiet=True)
    quiet.console = RichConsole(file=io.StringIO())
    with quiet.progress("critique", 2) as work:
        work(1)
        assert not [t for t in threading.enumerate() if t.name == "progress"]
    assert quiet.console.file.getvalue() == ""


def test_a_terminal_has_a_bar_with_the_same_words():
    console = Console()
    console.console = RichConsole(file=io.StringIO(), width=120, force_terminal=True)
    with console.progress("train", 4) as work:
        work.before(3)
        work.says("loss 0.25, decision tokens 0.900 → 0.400")
    drawn = console.console.file.getvalue()
    assert "train" in drawn and "3 of 4 (75%); loss 0.25, decision tokens 0.900 → 0.400" in drawn


def test_training_says_its_loss_and_where_decision_tokens_go():
    said: list[str] = []
    reads = Readings(said.append)
    reads.add({"loss": 0.25, "decision_probability": 0.9})
    reads.add({"loss": 0.0123})
    reads.add({"loss": 0.01, "decision_probability": 0.4})
    reads.add({"train_runtime": 3.0})
    assert said == [
        "loss 0.25, decision tokens 0.900 → 0.900",
        "loss 0.0123",
        "loss 0.01, decision tokens 0.900 → 0.400",
    ]


def test_a_critic_says_questions_tokens_and_money():
    class Named:
        name = "llm"

    usage = Usage(requests=2, prompt_tokens=1500, completion_tokens=500)
    answer = Critique(trace_id="t", verdict="none", usage=usage)
    unpriced, priced = CriticSection(), CriticSection.model_validate({"llm": {"price": [2.0, 10.0]}})
    assert Meter(unpriced, Named()).add(answer) == "2 questions, 2,000 tokens"
    meter = Meter(priced, Named())
    assert meter.add(answer) == "2 questions, 2,000 tokens, cost 0.0080"
    assert meter.add(ServiceError("gone")) == "2 questions, 2,000 tokens, cost 0.0080"
    assert Meter(priced, RulesCritic(())).add(Critique(trace_id="t", verdict="none")) is None
