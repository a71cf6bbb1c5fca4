"""A headless Chromium for the tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium(*arguments: str) -> Iterator[Browser]:
    """The system's Chromium, or the one that Playwright installed; without either, the test is skipped."""
    with sync_playwright() as started:
        installed = next(filter(None, map(shutil.which, NAMES)), started.chromium.executable_path)
        if not Path(installed).exists():
            pytest.skip("needs Chromium: apt-get install chromium, or playwright install chromium")
        browser = started.chromium.launch(executable_path=installed, args=["--no-sandbox", *arguments])
        yield browser
        browser.close()
