"""The parts of the BFCL example that need none of its data: comparison, schemas, splits by group, rows, packing, acceptance."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import pytest
import torch
from bfcl_accept import Bounds, sign_test, verdict
from bfcl_compare import Said, mismatch, right_calls
from bfcl_data import groups, schema_of, tool_of
from bfcl_packing import answer_weights, loss, pack
from bfcl_rows import PLACEBOS, Mix, RowMaker, apart, usable
from bfcl_suite import DECLINE, finding_of, opening, signature
from support.bfcl import BANK, NUMBERS, entry
from transformers import LlamaConfig, LlamaForCausalLM

from hintdistill.core.types import Message
from hintdistill.rollouts.parsing import parse_hermes

AREA = entry(
    "simple_python_0",
    "The area of a square of side 3, please",
    [NUMBERS],
    [
        {
            "area_of": {
                "figure": ["square"],
                "side": [3, 3.0],
                "digits": [2, ""],
                "tags": [["a b", "c"], ""],
                "parts": [""],
                "about": [""],
            }
        }
    ],
)


def said(**arguments) -> list[Said]:
    return [Said("area_of", {"figure": "square", "side": 3, **arguments})]


@pytest.mark.parametrize(
    ("calls", "error_class"),
    [
        (said(), None),
        (said(figure="Square."), None),
        (said(side=3.0), None),
        (said(digits=2), None),
        (said(tags=["A_B", "c"]), None),
        (said(tags=[]), None),
        (said(parts=[]), None),
        (said(side="3"), "wrong_type"),
        (said(digits=2.0), "wrong_type"),
        (said(digits=True), "wrong_type"),
        (said(side=4), "wrong_value"),
        (said(tags=["c", "a b"]), "wrong_value"),
        (said(tags="c"), "wrong_type"),
        (said(parts=[{"a": 1}]), "wrong_value"),
        (said(parts=["a"]), "wrong_value"),
        (said(about={"unit": "m"}), "wrong_value"),
        (said(surplus=1), "extra_argument"),
        ([Said("area_of", {"figure": "square"})], "missing_argument"),
        ([Said("area", {"figure": "square", "side": 3})], "wrong_tool"),
        ([], "missing_call"),
        (said() * 2, "call_count"),
    ],
)
def test_calls_are_compared_by_the_possible_answers(calls, error_class):
    found = mismatch(AREA, calls)
    assert (found and found.error_class) == error_class


def test_objects_are_compared_key_by_key():
    answer = [{"area_of": {"figure": ["circle"], "side": [1], "about": [{"unit": ["m", "metre"], "by": ["", "x"]}]}}]
    one = entry("simple_python_1", "?", [NUMBERS], answer)
    (right,) = right_calls(one)
    assert right.arguments == {"figure": "circle", "side": 1, "about": {"unit": "m"}}

    def found(**about):
        wrong = mismatch(one, [Said("area_of", {"figure": "circle", "side": 1, "about": about})])
        return wrong and wrong.error_class

    assert [found(unit="Metre"), found(unit="m", by="X"), found(unit="km"), found(by="x"), found(unit="m", of=1)] == [
        None,
        None,
        *["wrong_value"] * 3,
    ]


def test_several_calls_come_in_any_order_and_each_once():
    answer = [{"find_bank": {"city": [c]}} for c in ("Oslo", "Rome")]
    both = entry("parallel_0", "Banks in Oslo and Rome", [BANK], answer, "parallel")
    oslo, rome = Said("find_bank", {"city": "Oslo"}), Said("find_bank", {"city": "Rome"})
    assert mismatch(both, [rome, oslo]) is None and mismatch(both, [oslo, oslo]).error_class == "wrong_value"
    none = entry("irrelevance_0", "Hello", [BANK], [], "irrelevance")
    assert mismatch(none, []) is None and mismatch(none, [oslo]).error_class == "unneeded_call"
    some = entry("live_relevance_0-0-0", "Hello", [BANK], None, "live_relevance")
    assert mismatch(some, [oslo]) is None and mismatch(some, []).error_class == "missing_call"


def test_right_calls_leave_out_what_is_not_asked_for():
    assert [c.arguments for c in right_calls(AREA)] == [{"figure": "square", "side": 3}]
    asked = entry("simple_python_2", "with 2 digits", [NUMBERS], AREA.answer)
    assert right_calls(asked)[0].arguments["digits"] == 2


def test_a_schema_is_json_schema_and_an_argument_called_type_stays_one():
    schema = schema_of(
        {"type": "dict", "properties": {"type": {"type": "any"}, "at": {"type": "tuple", "items": {"type": "float"}}}}
    )
    assert schema == {
        "type": "object",
        "properties": {"type": {}, "at": {"type": "array", "items": {"type": "number"}}},
    }
    assert tool_of(BANK)["function"]["parameters"]["additionalProperties"] is False


def test_tasks_that_share_a_function_or_a_family_stay_together():
    tasks = [
        entry("simple_python_0", "?", [BANK], []),
        entry("multiple_0", "?", [BANK, NUMBERS], []),
        entry("simple_python_1", "?", [{**NUMBERS, "name": "Area.Of"}], []),
        entry("simple_python_2", "?", [{**BANK, "name": "x"}], []),
        entry("live_simple_3-7-0", "?", [{**BANK, "name": "y"}], [], "live_simple"),
        entry("live_simple_4-7-1", "?", [{**BANK, "name": "z"}], [], "live_simple"),
    ]
    found = [sorted(t.id for t in group) for group in groups(tasks)]
    assert found == [
        ["multiple_0", "simple_python_0", "simple_python_1"],
        ["simple_python_2"],
        ["live_simple_3-7-0", "live_simple_4-7-1"],
    ]


def test_a_finding_says_what_would_be_right():
    message = parse_hermes('<tool_call>{"name": "area_of", "arguments": {"figure": "circle", "side": 3}}</tool_call>')
    found = finding_of(AREA, 0, message)
    assert found.error_class == "wrong_value" and found.facts["argument"] == "figure"
    assert (found.facts["expected"], found.facts["wrong"], found.facts["right"]) == ('"square"', "circle", "area_of")
    assert finding_of(AREA, 0, Message(role="assistant", content="<tool_call>{")).error_class == "unparsable_call"
    assert "one of circle, square" in signature(
        NUMBERS
    ) and "- digits (integer, optional): Digits of the result" in signature(NUMBERS)


def pool() -> list:
    cities = [
        entry(f"simple_python_{n}", f"A bank in {c}", [BANK], [{"find_bank": {"city": [c]}}])
        for n, c in enumerate(("Oslo", "Rome"))
    ]
    refused = entry("live_irrelevance_9-1-0", "Sing a song", [{**BANK, "name": "weather.now"}], [], "live_irrelevance")
    return [*cities, AREA, refused]


def test_rows_have_messages_on_both_labels_and_enough_refusals():
    tasks = pool()
    assert all(map(usable, tasks)) and apart(tasks[0], AREA) and not apart(tasks[0], tasks[1])
    rows = [r for sheet in islice(RowMaker(tasks, Mix()).sheets(0), 400) for r in sheet.rows]
    kinds = Counter((r.calls, r.kind) for r in rows)
    refusals = sum(n for (calls, _), n in kinds.items() if not calls) / len(rows)
    assert 0.3 <= refusals <= 0.65
    for calls in (True, False):
        own = {kind: kinds[calls, kind] for kind in ("plain", "hint", "placebo")}
        assert 0.2 < 1 - own["plain"] / sum(own.values()) < 0.6 and min(own.values()) > 30  # equal plain rows are one
    for row in rows:
        found = parse_hermes(row.answer)
        assert bool(found.tool_calls) == row.calls and (row.calls or row.answer == DECLINE)
        assert len(row.said) == 1 + (row.kind != "plain") and (row.kind != "placebo" or row.said[1].content in PLACEBOS)
    again = [r for sheet in islice(RowMaker(tasks, Mix()).sheets(0), 400) for r in sheet.rows]
    assert again == rows
    # refusals under the functions of another task never have one of its own requests
    assert not any(
        "bank" in r.said[0].content and not r.calls
        for s in islice(RowMaker(tasks, Mix()).sheets(1), 200)
        for r in s.rows
        if "find_bank" in s.system.content
    )


def test_a_packed_sheet_is_trained_as_its_rows_would_be_alone():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).eval()
    trunk, rows = [1, 2, 3, 4], [([5, 6], [7, 8, 9]), ([10, 11, 12], [13]), ([5], [14, 15])]
    together = loss(model.model, model.lm_head, pack([(trunk, rows), ([9, 8], [([7], [6, 5])])], 0))
    total = weight = 0.0
    for start, read, answer in [*((trunk, *row) for row in rows), ([9, 8], [7], [6, 5])]:
        ids = torch.tensor([[*start, *read, *answer]])
        logits = model(ids).logits[0, len(start) + len(read) - 1 : -1]
        each = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        total, weight = total + each * len(answer) ** -0.5, weight + len(answer) ** 0.5
    assert torch.allclose(together, total / weight, atol=1e-5)


def tried(**changes):
    plan = {"right": 60, "wrong": 60, "refused": 32, "called": 8, "broken": 3, "hint": 25, "placebo": 3} | changes
    rows = [{"call": True, "error": None, "placebo_right": n >= plan["broken"]} for n in range(plan["right"])]
    rows += [
        {"call": True, "error": "wrong_value", "placebo_right": n < plan["placebo"], "hint_right": n < plan["hint"]}
        for n in range(plan["wrong"])
    ]
    rows += [{"call": False, "error": None, "placebo_right": True}] * plan["refused"]
    rows += [{"call": False, "error": "unneeded_call", "placebo_right": False, "hint_right": True}] * plan["called"]
    return verdict(rows, Bounds())


def test_a_share_of_an_answers_weight_can_be_its_first_tokens():
    assert answer_weights(4, None).tolist() == [0.5] * 4, "the square root of the length in all"
    half = answer_weights(5, 0.5)
    assert half.tolist() == [0.5] + [0.125] * 4 and answer_weights(1, 0.5).tolist() == [1.0]
    parts = [([1, 2], [([3], [4, 5, 6, 0]), ([7], [8, 0])])]
    packed = pack(parts, 0, decision=0.5)
    assert packed.weights[packed.targets == 4].tolist() == packed.weights[packed.targets == 8].tolist() == [0.5]
    assert packed.weights.sum().item() == pytest.approx(2), "the short answer weighs as much as the long one"
    assert (pack(parts, 0).weights != packed.weights).any()


def test_a_student_is_accepted_only_within_every_bound():
    assert tried()["accepted"] and tried()["classes"][0] == {
        "class": "wrong_value",
        "errors": 60,
        "hint": 25,
        "placebo": 3,
        "p": 0.0,
    }
    for changes, reason in (
        ({"wrong": 20, "hint": 20}, "errors 0.25"),
        ({"refused": 39, "called": 1}, "irrelevance 0.97"),
        ({"refused": 20, "called": 20, "hint": 3}, "irrelevance 0.50"),
        ({"broken": 20}, "kept 0.78"),
        ({"hint": 5}, "the hint beats the placebo on no class of enough errors"),
    ):
        found = tried(**changes)
        assert not found["accepted"] and reason in found["reasons"], changes
    plain = [{"call": n < 10, "error": None if n % 2 else "wrong_value"} for n in range(20)]
    found = verdict(plain, Bounds())
    assert (found["accepted"], found["reasons"], found["kept"]) == (False, ["irrelevance 0.50"], None)
    assert sign_test(5, 0) == pytest.approx(1 / 32) and sign_test(0, 0) == 1.0


def test_hints_of_the_example_name_the_answer_of_their_class():
    from conftest import ROOT

    from hintdistill.prompts import PromptLibrary

    library = PromptLibrary(ROOT / "examples" / "bfcl" / "prompts")
    facts = {"right": "area_of", "argument": "figure", "expected": json.dumps("square")}
    assert library.render("hints/wrong_value.jinja", facts) == 'The argument figure must be "square".'
    assert library.render("hints/missing_call.jinja", facts) == "Call area_of."
    assert opening(AREA, as_text=False)[0].content == AREA.request


def test_the_page_shows_the_tries_that_were_made():
    from warm_up import MARKS, PAGE, TRIES, table

    tries = json.loads(TRIES.read_text(encoding="utf-8")) if TRIES.is_file() else {}
    shown = PAGE.read_text(encoding="utf-8").partition(MARKS[0])[2].partition(MARKS[1])[0]
    assert shown.strip() == table(tries).strip(), "run `python examples/bfcl/warm_up.py --docs`"


def test_a_table_of_tries_says_why_a_student_was_refused():
    from warm_up import table

    rows = {"call, plain": 60, "no_call, plain": 40}
    made = {"recipe": {"why": "a reason"}, "trained": {"rows": rows, "tokens": 12_000, "seconds": 90}}
    wrong = {
        "accepted": False,
        "reasons": ["errors 0.90"],
        "errors": 0.9,
        "calls": 120,
        "irrelevance": 0.7,
        "no_calls": 60,
    }
    wrong |= {"right": 54, "kept": None, "classes": None}
    page = table({"a": made | {"validation": wrong}, "b": made | {"validation": {**tried(), "reasons": []}}})
    assert (
        "| a | 100 rows, 40% refusals, 12 k tokens, 90 s | 0.90 (120) | 0.70 (60) | – | – | no: errors 0.90 |" in page
    )
    assert "| wrong_value: 25 / 3 of 60 | yes |" in page and "Try b: a reason." in page
