"""Debian's Chromium, driven by Playwright; tests that need it are skipped where one of the two is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser. Not for a whole session: while it lives, this thread has a running event loop."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if FOUND is None:
        pytest.skip("no Chromium is installed")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=FOUND, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Any, **context: Any) -> Iterator[Any]:
    """A page of its own profile."""
    profile = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context})
    with tab_of(profile) as page:
        yield page
    profile.close()


@contextmanager
def tab_of(profile: Any) -> Iterator[Any]:
    """A page; a script's error or a refusal of the page's policy fails the test."""
    page, wrong = profile.new_page(), list[str]()
    page.set_default_timeout(20_000)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if "Content Security Policy" in said.text else None)
    yield page
    page.close()
    assert not wrong, wrong
