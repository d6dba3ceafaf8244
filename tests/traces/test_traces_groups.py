"""Traces of one task are one group, and a group is trained on or held out, never both."""

from __future__ import annotations

from conftest import TIME, WEATHER, real_file
from hypothesis import given
from hypothesis import strategies as st

from hintdistill.config import RunConfig
from hintdistill.core.types import Message, Trace
from hintdistill.pipeline.context import RunContext
from hintdistill.pipeline.progress import Console
from hintdistill.pipeline.store import RunDir
from hintdistill.traces.groups import SIMILAR, _digest, _minhash, _overlap, group_traces
from hintdistill.traces.reading import read_traces

LONG = "Please cancel the reservation of Maria Lopez from Oslo to Madrid on the third of May and refund the two bags she paid for"


def trace(text: str, task: str | None = None, tools: tuple = (WEATHER,)) -> Trace:
    return Trace(
        id=text[:9] + str(task),
        task_id=task,
        tools=tools,
        messages=(
            Message(role="system", content="s"),
            Message(role="user", content=text),
            Message(role="assistant", content="a"),
        ),
    )


def test_a_named_task_is_its_group_whatever_it_says():
    assert group_traces([trace("a", "1"), trace("b", "1"), trace("a", "2")]) == ["task:1", "task:1", "task:2"]


def test_without_a_name_tools_and_first_message_decide():
    a, b, c = group_traces(
        [trace("Weather in Oslo?"), trace("Weather in Oslo?"), trace("Weather in Oslo?", tools=(TIME,))]
    )
    assert a == b != c


def test_near_duplicates_are_merged_and_others_are_not():
    near = [LONG, LONG.upper() + "  !", LONG.replace("two bags", "two  bags")]
    far = [
        "Book a flight from Rome to Paris for one adult and a child in the first week of June, with two bags each please",
        "Weather in Oslo?",
        "Weather in Rome?",
    ]
    groups = group_traces([trace(t) for t in near + far])
    assert len(set(groups[:3])) == 1 and len(set(groups)) == 4
    assert groups == group_traces([trace(t) for t in reversed(near + far)])[::-1], (
        "the order of reading does not matter"
    )


def test_a_template_shared_by_all_tasks_does_not_make_them_one():
    template = " ".join(f"rule{i} of the house is to answer briefly and well" for i in range(40))
    texts = [
        f"{template} Question: {q}"
        for q in (
            "who wrote Hamlet in which year",
            "what is the boiling point of neon",
            "how far is the moon from here",
            "why did the bridge fall down",
        )
    ]
    assert len(set(group_traces([trace(t) for t in texts]))) == 4


@given(st.sets(st.text(max_size=4), min_size=1, max_size=30), st.sets(st.text(max_size=4), max_size=30))
def test_minhash_estimates_the_overlap(a, extra):
    """Equal sets always meet; the share of equal hashes is the overlap within sampling error (96 hashes, 5 sigma)."""
    one, two = frozenset(map(_digest, a)), frozenset(map(_digest, a | extra))
    assert _minhash(one) == _minhash(frozenset(map(_digest, list(a))))
    same = sum(x == y for x, y in zip(_minhash(one), _minhash(two), strict=True)) / 96
    overlap = _overlap(one, two)
    assert abs(same - overlap) <= 5 * (overlap * (1 - overlap) / 96) ** 0.5 + 1e-9


def test_no_task_stands_on_both_sides_of_the_split():
    traces = [
        t for t in read_traces([real_file("openai_chat", "tau_bench_airline_gpt4o.json")]) if isinstance(t, Trace)
    ]
    unnamed = [t.model_copy(update={"task_id": None}) for t in traces]
    config = RunConfig.model_validate({"run": {"model": "m"}, "traces": {"path": ["x"], "holdout": 0.3}})
    ctx = RunContext(config, RunDir("x"), Console(quiet=True))
    for some in (traces, unnamed):
        groups = group_traces(some)
        sides: dict[str, set[str]] = {}
        for group in groups:
            sides.setdefault(group, set()).add(ctx.split_of(group))
        assert all(len(s) == 1 for s in sides.values()) and {next(iter(s)) for s in sides.values()} == {
            "train",
            "holdout",
        }
    assert SIMILAR < 1 and len(set(group_traces(unnamed))) > 90
