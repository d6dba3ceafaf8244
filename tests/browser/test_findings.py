"""What a reader does with the findings: sort, filter, search, move by keys, open by a link, copy, and read one."""

from __future__ import annotations

import json

import pytest
from conftest import PAGES
from playwright.sync_api import Page, expect

DOCUMENT = json.loads((PAGES / "report.json").read_text(encoding="utf-8"))
FINDINGS = DOCUMENT["findings"]
COUNT = ".tools [role=status]"


def left(finding: dict) -> float:
    """The probability of the error that is left."""
    decision = finding["decision"]
    return -1.0 if not decision else decision["before"] if decision["after"] is None else decision["after"]


def chosen(page: Page) -> str | None:
    """The key of the finding that is selected."""
    row = page.locator('.line[aria-selected="true"]')
    return row.get_attribute("id").removeprefix("row-") if row.count() else None


def first_key(page: Page) -> str:
    """The key of the first row."""
    return page.locator('.line[data-at="0"]').get_attribute("id").removeprefix("row-")


def pick(page: Page, name: str, label: str) -> None:
    """Choose an option of a tool by the beginning of its text."""
    select = page.locator(f'select[data-name="{name}"]')
    texts = select.locator("option").all_inner_texts()
    select.select_option(index=next(i for i, text in enumerate(texts) if text.startswith(label)))


def test_the_worst_is_first_and_sorting_changes_the_order(visit):
    page = visit("report.html")
    expect(page.locator(COUNT)).to_have_text(f"{len(FINDINGS)} findings")
    by_key = {f["key"]: f for f in FINDINGS}
    assert left(by_key[first_key(page)]) == max(map(left, FINDINGS))
    pick(page, "sort by", "odds")
    odds = {f["key"]: (f["decision"] or {}).get("odds_nats") for f in FINDINGS}
    assert odds[first_key(page)] == max(o for o in odds.values() if o is not None)
    pick(page, "sort by", "class")
    assert by_key[first_key(page)]["error_class"] == min(f["error_class"] for f in FINDINGS)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class", lambda f: f["error_class"]),
        ("reason", lambda f: "accepted" if f["accepted"] else f["reasons"][0]),
        ("critic", lambda f: f["critic"]),
        ("split", lambda f: f["split"]),
        ("trained", lambda f: "trained" if f["trained"] else "not trained"),
        ("level", lambda f: str(f["level"])),
        ("placement", lambda f: f["placement"]),
        ("twin", lambda f: "kept" if any(t["accepted"] for t in f["twins"]) else "dropped" if f["twins"] else "none"),
    ],
)
def test_each_filter_shows_those_that_have_the_value(visit, name, value):
    page = visit("report.html")
    wanted = value(FINDINGS[-1])
    n = sum(
        wanted in f["reasons"] if name == "reason" and wanted != "accepted" else value(f) == wanted for f in FINDINGS
    )
    pick(page, name, f"{wanted} (")
    said = f"{n} of {len(FINDINGS)} findings" if n < len(FINDINGS) else f"{n} findings"
    expect(page.locator(COUNT)).to_have_text(said)
    page.get_by_role("button", name="Reset").click()
    expect(page.locator(COUNT)).to_have_text(f"{len(FINDINGS)} findings")


def test_search_reads_hints_steps_and_whole_traces(visit):
    page = visit("report.html")
    last = FINDINGS[-1]
    for words in (last["hint"][:30].upper(), last["trace"]):
        page.locator("#search").fill(words)
        expect(page.locator(COUNT)).to_contain_text(" of ")
        assert int(page.locator(COUNT).inner_text().split()[0]) >= 1
    # words of a trace that stand in none of its finding's own texts
    page.locator("#search").fill("You answer requests with tools")
    expect(page.locator(COUNT)).to_have_text(f"{len(FINDINGS)} findings")
    page.locator("#search").fill("no such words anywhere")
    expect(page.locator(COUNT)).to_have_text(f"0 of {len(FINDINGS)} findings")
    page.keyboard.press("Escape")
    expect(page.locator(COUNT)).to_have_text(f"{len(FINDINGS)} findings")


def test_keys_move_read_and_go_back(visit):
    page = visit("report.html")
    page.keyboard.press("j")
    one = chosen(page)
    page.keyboard.press("j")
    two = chosen(page)
    assert None not in (one, two) and one != two
    page.keyboard.press("k")
    assert chosen(page) == one and page.url.endswith(f"#f-{one}")
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "list"
    page.keyboard.press("ArrowDown")
    assert chosen(page) == two
    page.keyboard.press("Enter")
    page.wait_for_function("document.activeElement.className === 'detail'")
    page.keyboard.press("Escape")
    page.keyboard.press("End")
    page.wait_for_selector(f'.line[data-at="{len(FINDINGS) - 1}"][aria-selected="true"]')
    page.keyboard.press("/")
    page.keyboard.type("jk")
    assert page.locator("#search").input_value() == "jk", "letters that are typed are text"


def test_a_link_opens_its_finding_and_another_one_the_next(visit):
    wanted = FINDINGS[len(FINDINGS) // 2]
    page = visit("report.html", f"#f-{wanted['key']}")
    expect(page.locator(".detail h3")).to_have_text(wanted["error_class"])
    assert chosen(page) == wanted["key"]
    page.evaluate(f"location.hash = 'f-{FINDINGS[0]['key']}'")
    expect(page.locator(f"#row-{FINDINGS[0]['key']}")).to_have_attribute("aria-selected", "true")
    page.evaluate("location.hash = 'f-000000'")
    expect(page.locator(".detail")).to_contain_text("is not in this page")


def test_copying_gives_the_link_the_name_and_the_finding(visit):
    finding = FINDINGS[0]
    page = visit("report.html", f"#f-{finding['key']}", permissions=["clipboard-read", "clipboard-write"])
    page.wait_for_selector(".acts")
    read = "navigator.clipboard.readText()"
    page.get_by_role("button", name="Copy link").click()
    expect(page.locator(".acts [role=status]")).to_have_text("link copied")
    assert page.evaluate(read).endswith(f"#f-{finding['key']}")
    page.get_by_role("button", name="Copy name").click()
    expect(page.locator(".acts [role=status]")).to_have_text("name copied")
    assert page.evaluate(read) == f"{finding['trace']}:{finding['step']}"
    page.get_by_role("button", name="Copy finding").click()
    expect(page.locator(".acts [role=status]")).to_have_text("finding copied")
    assert finding["hint"] in page.evaluate(read)


def test_one_finding_is_told_whole(visit):
    finding = next(f for f in FINDINGS if f["trained"] and f["decision"] and f["twins"])
    page = visit("report.html", f"#f-{finding['key']}")
    detail = page.locator(".detail")
    detail.locator(".trace").wait_for()
    # the hint with its wrapper tokens, in the trace, above the step's own tokens
    hint = detail.locator(".here .hint pre")
    assert hint.text_content() == finding["hint_block"] != finding["hint"]
    assert "<|im_start|>" in hint.locator(".wrap").first.text_content()
    assert detail.locator(".turn").count() > 2
    # what the student says: three of each view
    table = detail.get_by_role("region", name="What the student says")
    for when in ("before", "hinted", "after"):
        assert len(finding["decision"]["top"][when]) == 3
        for said in finding["decision"]["top"][when]:
            assert f"{said['text']} " in table.inner_text() or said["text"].isspace()
    # every token that moved has its numbers under it, without hovering
    lines = detail.locator(".step")
    assert lines.count() == 2
    decision = lines.first.locator(".tok.d")
    assert decision.locator("i").inner_text().count("→") == 1 and "down" in decision.get_attribute("class")
    decision.focus()
    told = detail.locator(".told").first
    expect(told).to_contain_text("decision token")
    assert f"before {finding['decision']['before']:.4f}" in told.inner_text()
    assert "".join(t["text"] for t in finding["tokens"]).replace("\n", "") in "".join(
        lines.first.locator(":scope > span, .tok > span").all_text_contents()
    ).replace("\n", "").replace("↵", "")
    detail.get_by_text("tokens with their numbers").click()
    expect(detail.get_by_role("region", name="Tokens").locator("tbody tr")).to_have_count(len(finding["tokens"]))
    # placebos, twins, the critic's own answer
    placebos = detail.get_by_role("region", name="Placebos").locator("tbody tr")
    expect(placebos).to_have_count(len(finding["placebos"]))
    assert finding["twins"][0]["kind"] in detail.inner_text()
    detail.locator("summary", has_text=f"{finding['critic']}: ").click()
    expect(detail).to_contain_text('"verdict"')


def test_reasons_are_explained_when_asked(visit):
    finding = next(f for f in FINDINGS if not f["accepted"])
    page = visit("report.html", f"#f-{finding['key']}")
    button = page.locator("button.pill").first
    button.click()
    expect(button).to_have_attribute("aria-expanded", "true")
    assert len(page.locator(".why").inner_text()) > 60
    button.click()
    expect(page.locator(".why")).to_have_count(0)


def test_without_training_the_page_says_that_after_is_not_known(visit):
    key = next(f["key"] for f in FINDINGS if f["decision"])
    page = visit("scored.html", f"#f-{key}")
    expect(page.locator(".detail")).to_contain_text("After training: not measured")
    assert page.locator(".detail .step").count() == 1


def test_what_does_not_fit_is_counted_worst_first(visit):
    page = visit("few.html")
    expect(page.locator(COUNT)).to_have_text("60 findings")
    assert "60 of 80 findings are in this page" in page.locator("#findings").inner_text()
    cells = page.locator("#findings table").first.locator("tbody td:nth-child(4)").all_inner_texts()
    assert sum(map(int, cells)) == 20


def test_a_shared_page_has_figures_and_no_text(visit):
    page = visit("report-share.html")
    page.keyboard.press("j")
    detail = page.locator(".detail")
    detail.locator(".step").first.wait_for()
    assert detail.locator(".trace").count() == 0 and "▯" in detail.inner_text()
