"""Critic strategy `last_step`: one question, about the last step of a record."""

from hintdistill.core.extensions import STRATEGIES, Strategy
from hintdistill.critics.strategies import Judgement, asked_of_step, one_step


def last_step(asker, record, vote):
    finding = yield from one_step(asker, record, record.steps[-1], vote)
    return Judgement("none") if finding is None else Judgement("findings", (finding,))


def asked(asker, record):
    return [asked_of_step(asker, record, record.steps[-1])]


STRATEGIES.register(Strategy("last_step", last_step, prompts={"step_prompt": "critic/step.jinja"}, asked=asked))
