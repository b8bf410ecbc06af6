"""The operating system's Chromium, driven by Playwright, for tests of pages."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = Path("/usr/bin/chromium")


@contextmanager
def open_browser() -> Iterator["Browser"]:
    """Yield a headless browser. The test is skipped if Playwright or Chromium is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install .[test])")
    if not CHROMIUM.is_file():
        pytest.skip(f"Chromium is not at {CHROMIUM} (apt-get install --no-install-recommends chromium)")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM)
        yield browser
        browser.close()
