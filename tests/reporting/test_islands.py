"""The data of the page: every finding and every trace once, in islands; and its numbers as the document has them."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from support.many_findings import golden, toolworld
from support.page import taken_apart
from support.stored_targets import make_target

from hintdistill.reporting import islands
from hintdistill.reporting.findings import After, finding_entry
from hintdistill.reporting.html import html_pieces, render_html
from hintdistill.reporting.islands import detail, trace_page
from hintdistill.reporting.reasons import REASONS, explained
from hintdistill.reporting.schema import _GATE
from hintdistill.reporting.sections import SECTIONS
from hintdistill.reporting.templates import ROWS, moved, moved_tokens, picture, text


@pytest.fixture(scope="module")
def many():
    """Forty findings, each of a trace of its own."""
    return toolworld(40)


def test_every_finding_and_trace_is_in_the_page_once(many, monkeypatch):
    monkeypatch.setattr(islands, "CHUNK", 5000)
    document, pages = many
    page = taken_apart(render_html(document, 5000, pages))
    index = page.islands["index"]
    assert sorted(f["key"] for f in index["findings"]) == sorted(f["key"] for f in document["findings"])
    by_key = {f["key"]: f for f in document["findings"]}
    for row, told in zip(index["findings"], page.details, strict=True):
        f = by_key[row["key"]]
        assert (
            index["traces"][row["trace"]] == f["trace"]
            and told["hint"] == f["hint"]
            and told["block"] == f["hint_block"]
        )
        assert told["tokens"]["text"] == [t["text"] for t in f["tokens"]]
        assert told["tokens"]["hinted"] == [round(t["hinted"], 4) for t in f["tokens"]]
        assert {int(i): t for i, t in told["tokens"]["instead"].items()} == {
            i: t["instead"] for i, t in enumerate(f["tokens"]) if t["instead"] != t["text"]
        }
        chunk, at = index["places"][row["trace"]]
        assert page.islands[f"t{chunk}"][at] == pages[f["trace"]]
    chunks = [name for name in page.islands if name != "index"]
    assert len(chunks) > 8 and sum(len(page.islands[n]) for n in chunks if n.startswith("t")) == len(pages)


def test_findings_beyond_the_bound_are_left_out_with_their_traces(many):
    document, pages = many
    page = taken_apart(render_html(document, 7, pages))
    shown = page.islands["index"]["findings"]
    assert len(shown) == 7 == sum(len(v) for n, v in page.islands.items() if n.startswith("t"))
    assert "7 of 40 findings are in this page" in page.static and page.static.count("<article") == 7
    none = taken_apart(render_html(document, 0, pages))
    assert none.islands["index"]["findings"] == [] and set(none.islands) == {"index"}


def test_without_traces_a_finding_keeps_its_context_whole(many):
    document, _ = many
    finding = max(document["findings"], key=lambda f: len(f["context_above"]))
    assert len(finding["context_above"]) > islands.AROUND
    assert detail(finding, with_trace=False)["above"] == finding["context_above"]
    cut = detail(finding, with_trace=True)["above"]
    assert cut.startswith("…") and finding["context_above"].endswith(cut[1:]) and len(cut) <= islands.AROUND + 1
    wide = finding | {"context_below": "a" * 400 + "b" * 1000 + "c" * 400}
    below = detail(wide, with_trace=True)["below"]
    assert "1480 characters" in below and below.startswith("a" * 160) and below.endswith("c" * 160)


def test_a_trace_page_has_the_messages_the_tools_and_every_critics_answer():
    _, traces = golden()
    trace = next(t for t in traces.values() if t.get("tools"))
    said = {"verdict": "none", "raw_answer": "I see nothing.", "notes": ["a repair round"]}
    page = trace_page(
        trace,
        [
            {"critic": "llm", "critique": said},
            {"critic": "rules", "critique": {"verdict": "findings", "findings": [{"step": 1}]}},
            {"critic": "strong", "failure": {"reason": "unreadable", "raw_answer": "{"}},
        ],
    )
    assert [m["role"] for m in page["messages"]] == [m["role"] for m in trace["messages"]]
    assert len(page["tools"]) == len(trace["tools"]) and "token_ids" not in json.dumps(page["messages"])
    assert [(s["critic"], s["verdict"]) for s in page["said"]] == [
        ("llm", "none"),
        ("rules", "findings"),
        ("strong", "unreadable"),
    ]
    assert (
        page["said"][0]["text"] == "I see nothing."
        and '"step": 1' in page["said"][1]["text"]
        and page["said"][2]["text"] == "{"
    )
    calls = [c for m in page["messages"] for c in m.get("calls", ())]
    assert calls == [[c["name"], c["arguments_raw"]] for m in trace["messages"] for c in m.get("tool_calls", ())]


def test_a_lone_surrogate_does_not_end_the_page(many):
    document, _ = many
    bad = copy.deepcopy(document)
    bad["findings"] = bad["findings"][:1]
    bad["findings"][0]["hint"] = "a \udc80 b"
    assert taken_apart(render_html(bad, 10)).details[0]["hint"] == "a ? b"


def test_the_likeliest_continuations_of_each_view_are_named():
    target = make_target(accepted=True, reasons=())
    names = {1: "one", 8: "eight", 9: "nine", 4: "four"}
    entry = finding_entry(
        target,
        None,
        ("", ""),
        After(np.array([-1.0, -2.0]), 1, [(8, -0.5), (4, -2.0), (1, -3.0), (9, -4.0)]),
        [False],
        True,
        lambda ids: " ".join(names.get(i, str(i)) for i in ids),
    )
    top = entry["decision"]["top"]
    # by the target's own columns: support [4, 9, pad] at the decision token
    assert [t["text"] for t in top["before"]] == ["four", "nine"] and top["before"][0]["p"] == pytest.approx(
        np.exp(-0.5)
    )
    assert [t["text"] for t in top["hinted"]] == ["four", "nine"] and top["hinted"][1]["p"] == pytest.approx(np.exp(-2))
    assert [t["text"] for t in top["after"]] == ["eight", "four", "one"] and entry["hint_block"] == "3 3"
    elsewhere = finding_entry(target, None, ("", ""), After(np.array([-1.0, -2.0]), 0, [(8, -0.5)]), [False], True, str)
    assert elsewhere["decision"]["top"]["after"] is None, "of another position"
    bare = finding_entry(target, None, ("", ""), None, [False], False)
    assert "top" not in bare["decision"] and bare["hint_block"] is None


def test_every_reason_of_the_gate_is_explained():
    assert set(REASONS) == _GATE and all(len(said) > 40 for said in REASONS.values())
    assert "No explanation" in explained("a_plug_ins_own")


def test_the_steps_of_a_change():
    assert (
        moved(0.5, 0.51) == ""
        and moved(0.5, 0.4) == "down1"
        and moved(0.5, 0.7) == "up2"
        and moved(0.9, 0.1) == "down3"
    )
    assert moved(None, 0.5) == moved(0.5, None) == ""


def test_of_many_tokens_those_that_moved_most_are_listed(many):
    finding = copy.deepcopy(many[0]["findings"][0])
    token = finding["tokens"][0] | {"quoted": False, "before": 0.5, "after": None}
    finding["tokens"] = [token | {"hinted": 0.5 + i / 400} for i in range(120)]
    finding["decision"] |= {"position": 3}
    rows, left = moved_tokens(finding)
    numbers = [i for i, _ in rows]
    assert len(rows) == ROWS and numbers == sorted(numbers) and 3 in numbers and numbers[-1] == 119
    assert left == 120 - 2 + 0 - ROWS, "tokens 0 and 1 did not move"


def test_a_picture_is_an_image_and_text_is_escaped():
    drawn = picture('<svg xmlns="http://www.w3.org/2000/svg"><style>*{}</style></svg>', 'loss "by" step')
    assert drawn.startswith("<img ") and "<style" not in drawn and 'alt="loss &#34;by&#34; step"' in drawn
    assert text("<b>\x1b") == "&lt;b&gt;\\u001b"


def test_each_section_has_a_place_of_its_own(many):
    anchors = [s.anchor for s in SECTIONS]
    assert len(set(anchors)) == len(anchors) and [s.anchor for s in SECTIONS if s.body is None] == ["findings"]
    page = taken_apart(render_html(many[0], 3))
    for anchor in ("overview", "funnel", "classes", "environment", "findings"):
        assert page.static.count(f'<section id="{anchor}"') == 1 and f'href="#{anchor}"' in page.static


def test_the_page_comes_in_pieces_and_holds_one_island_at_a_time(many, monkeypatch):
    """Findings and traces may be on disk: each is taken when its island is made."""
    monkeypatch.setattr(islands, "CHUNK", 5000)
    document, pages = many
    pieces = list(html_pieces(document, 5000, pages))
    assert "".join(pieces) == render_html(document, 5000, pages) and len(pieces) > 100
    opened = 0
    walk = islands.pack(document["findings"], [], CountedPages(pages))
    for name, _ in walk:
        opened = CountedPages.taken
        if name.startswith("t"):
            break
    assert 0 < opened < len(pages), "no trace is read before its island"


class CountedPages(dict):
    """Pages that count how often one is taken."""

    taken = 0

    def __getitem__(self, name):
        CountedPages.taken += 1
        return super().__getitem__(name)
