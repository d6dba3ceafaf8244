"""Everybody can read the page: without scripts, in print, on a phone, in the dark, with a screen reader; and hostile text stays text."""

from __future__ import annotations

import json

import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import PAGES
from playwright.sync_api import Page, expect

FINDINGS = json.loads((PAGES / "report.json").read_text(encoding="utf-8"))["findings"]
WIDE = "document.documentElement.scrollWidth"


def opened(page: Page) -> Page:
    """The page with its first finding open."""
    page.keyboard.press("j")
    page.locator(".detail .step").first.wait_for()
    return page


def serious(page: Page) -> list[str]:
    """What axe-core finds serious or critical, as rule and element."""
    found = Axe().run(page).response["violations"]
    return [
        f"{v['id']}: {node['html'][:200]} {node['failureSummary'][:300]}"
        for v in found
        if v["impact"] in ("serious", "critical")
        for node in v["nodes"][:3]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_nothing_serious(visit, scheme, width):
    # axe adds its script to the page, which the page's own policy forbids
    page = opened(visit("report.html", color_scheme=scheme, width=width, bypass_csp=True))
    if page.locator("button.pill").count():
        page.locator("button.pill").first.click()
    page.locator(".detail details").first.evaluate_all("found => found.forEach((d) => { d.open = true; })")
    assert serious(page) == []


def test_axe_finds_nothing_serious_without_scripts(visit):
    page = visit("report.html", bypass_csp=True)
    page.evaluate("document.documentElement.classList.remove('js'); document.getElementById('app').remove()")
    assert serious(page) == []


def test_landmarks_and_table_scopes(visit):
    page = visit("report.html")
    for role in ("main", "banner", "navigation", "contentinfo", "search"):
        assert page.get_by_role(role).count() == 1, role
    assert page.locator("th:not([scope])").count() == 0 and page.locator("table").count() > 3
    assert page.locator("h1").count() == 1


def test_a_phone_needs_no_sideways_scrolling(visit):
    for name in ("report.html", "long.html", "report-share.html"):
        page = visit(name, width=390, height=800)
        assert page.evaluate(WIDE) <= 390, name
        opened(page)
        page.locator(".detail details").evaluate_all("found => found.forEach((d) => { d.open = true; })")
        assert page.evaluate(WIDE) <= 390, f"{name} with a finding"


def test_a_tap_shows_the_numbers_of_a_token(visit):
    page = opened(visit("report.html", width=390, height=800, has_touch=True))
    page.locator(".tok").first.tap()
    expect(page.locator(".told").first).to_contain_text("before ")


def test_without_scripts_the_verdict_the_tables_and_the_worst_are_there(visit):
    page = visit("report.html", java_script_enabled=False)
    assert page.locator("#verdict").is_visible() and page.locator("#funnel table").is_visible()
    worst = page.locator("#static article")
    expect(worst).to_have_count(min(50, len(FINDINGS)))
    assert worst.first.is_visible() and "before" in worst.first.inner_text() and not page.locator("#app").is_visible()
    narrow = visit("report.html", width=390, java_script_enabled=False)
    assert narrow.locator("#static article").first.bounding_box()["width"] <= 390


def test_fifty_are_static_where_there_are_more(visit):
    page = visit("toolworld.html", java_script_enabled=False)
    expect(page.locator("#static article")).to_have_count(50)
    assert "The 50 findings whose error is most probable" in page.locator("#static").inner_text()


def test_print_shows_the_same_as_no_script(visit):
    page = visit("report.html")
    assert not page.locator("#static").is_visible()
    page.emulate_media(media="print")
    assert page.locator("#verdict").is_visible() and page.locator("#static article").first.is_visible()
    assert not page.locator("#app").is_visible() and not page.locator("nav").is_visible()


def test_dark_mode_is_dark(visit):
    colour = "getComputedStyle(document.body).backgroundColor"
    light, dark = (visit("report.html", color_scheme=s).evaluate(colour) for s in ("light", "dark"))
    total = [sum(map(int, c.removeprefix("rgb(").removesuffix(")").split(","))) for c in (light, dark)]
    assert total[0] > 600 and total[1] < 120


def test_drawings_are_drawn_and_described(visit):
    # a drawing of matplotlib styles itself, which the page's policy allows inside an image alone
    page = visit("drawn.html")
    drawings = page.locator("img.drawing")
    assert drawings.count() >= 1
    assert all(n > 0 for n in drawings.evaluate_all("found => found.map((i) => i.naturalWidth)"))
    assert all(drawings.evaluate_all("found => found.map((i) => i.alt)"))
    colour = """async (image) => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [100, 50];
        const drawn = canvas.getContext("2d", { willReadFrequently: true });
        drawn.drawImage(image, 0, 0);
        return [25, 75].map((x) => [...drawn.getImageData(x, 25, 1, 1).data].slice(0, 3));
    }"""
    assert drawings.last.evaluate(colour) == [[0, 128, 0], [0, 0, 128]]
    assert page.title() == "hintdistill report"


def test_hostile_text_is_inert(visit):
    page = visit("hostile.html")
    page.locator("#search").fill("owned")
    expect(page.locator(".tools [role=status]")).to_contain_text("findings")
    page.locator("#list").focus()
    page.keyboard.press("ArrowDown")
    page.locator(".detail .step").first.wait_for()
    for pill in page.locator("button.pill").all():
        pill.click()
    page.locator(".detail details").evaluate_all("found => found.forEach((d) => { d.open = true; })")
    assert page.title() == "hintdistill report"
    assert (
        page.locator("img:not(.drawing)").count() == 0
        and page.locator("body script:not([type]):not([id])").count() == 1
    )
    text = page.locator("body").inner_text()
    assert "<script>document.title='owned'</script>" in text and "\\u001b[2J\\u202e" in text
    assert "\x1b" not in text and "\u202e" not in text


def test_the_policy_stops_a_script_that_is_not_the_pages_own(visit, browser):
    page = browser.new_context().new_page()
    breaches: list[str] = []
    page.on("console", lambda message: breaches.append(message.text))
    page.goto((PAGES / "report.html").as_uri())
    page.evaluate(
        "const s = document.createElement('script'); s.textContent = 'window.owned = 1'; document.body.append(s)"
    )
    assert page.evaluate("window.owned") is None and "Content Security Policy" in breaches[0]
    page.context.close()
