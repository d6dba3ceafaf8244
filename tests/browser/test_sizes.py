"""Many findings: bounds on the size of the file, and a page that holds only the rows in sight."""

from __future__ import annotations

import pytest
from conftest import PAGES
from playwright.sync_api import expect

MB = 1_000_000


@pytest.mark.parametrize(("name", "n", "bound"), [("toolworld", 5000, 10 * MB), ("long", 1000, 25 * MB)])
def test_all_findings_are_in_one_small_file(visit, name, n, bound):
    assert (PAGES / f"{name}.html").stat().st_size <= bound
    page = visit(f"{name}.html")
    count = page.locator(".tools [role=status]")
    expect(count).to_have_text(f"{n} findings")
    page.locator("#list").focus()
    page.keyboard.press("End")
    page.wait_for_selector(f'.line[data-at="{n - 1}"][aria-selected="true"]')
    page.locator(".detail .trace .here").wait_for()
    assert page.locator(".line").count() < 60, "rows out of sight are not in the page"
    page.locator("#search").fill("hintdistill" if name == "long" else "requests with tools")
    expect(count).not_to_have_text("searching …")
    assert page.locator(".line").count() > 0
