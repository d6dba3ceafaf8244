"""A real Chromium for the pages that make_pages.py made; every page that complains, or asks for anything from elsewhere, fails its test."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

PAGES = Path(os.environ.get("HINTDISTILL_PAGES", "build/pages")).resolve()
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
PATIENCE = 150_000
"""Milliseconds that a busy machine may take to show something; a bound against hanging, no measure of speed."""
expect.set_options(timeout=PATIENCE)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test of this folder."""
    for item in items:
        item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium without a window."""
    assert CHROMIUM, "test-browser needs chromium: apt-get install chromium, or CHROMIUM=/path/to/it"
    assert (PAGES / "report.html").is_file(), f"{PAGES} has no pages: make test-browser makes them"
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open a page by its name; settings are those of a browser context (`viewport`, `color_scheme`, ...)."""
    contexts, said = [], []

    def open_page(name: str, fragment: str = "", *, width: int = 1280, height: int = 900, **settings: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda asked: None if asked.url.startswith(("file:", "data:")) else said.append(asked.url))
        page.goto((PAGES / name).as_uri() + fragment)
        if settings.get("java_script_enabled", True):
            page.wait_for_selector(".js #app .tools")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == [], "the page is quiet: no error, no breach of its policy, no request"
