"""A real browser: Chromium, driven by playwright. Tests that need it are skipped where either is absent."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra dev), which is absent")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium (apt-get install chromium), which is not on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


class Page:
    """A file or a site in the browser, with everything that went wrong on it and every request that it made.

    Of a site, the requests below its address pass; all others are stopped.
    """

    def __init__(
        self, browser: Any, place: Path | str, width: int = 1280, scheme: str = "light", **context_options: Any
    ) -> None:
        address = place if isinstance(place, str) else place.as_uri()
        self.said: list[str] = []
        self.asked: list[str] = []
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **context_options)
        context.set_default_timeout(20_000)
        self.tab = context.new_page()
        self.tab.on("console", lambda message: self.said.append(message.text))
        self.tab.on("pageerror", lambda error: self.said.append(str(error)))
        self.tab.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))

        def route(request: Any) -> None:
            self.asked.append(request.request.url)
            url = request.request.url
            passes = url.startswith(address) if isinstance(place, str) else url == address
            (request.continue_ if passes else request.abort)()

        self.tab.route("**/*", route)
        self.tab.goto(address)

    def shown(self, selector: str) -> int:
        """How many elements of a kind can be seen."""
        return int(self.tab.locator(f"{selector}:visible").count())

    def count(self) -> str:
        """What the page says of its filters."""
        return str(self.tab.evaluate("document.getElementById('f-count').value"))
