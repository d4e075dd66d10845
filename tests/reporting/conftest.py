"""A headless Chromium, to look at pages as a reader would."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import skip_or_fail


@dataclass
class Browser:
    """Opens files. `driver` is selenium's."""

    driver: Any

    def open(self, page: Path, width: int, dark: bool = False) -> list[str]:
        """Show a page at a width in CSS pixels; returns what stands on the console."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(page.resolve().as_uri())
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression on the page."""
        return self.driver.execute_script(f"return {expression}")


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    yield chromium
    chromium.driver.get("about:blank")  # a scene that plays on takes time from other tests


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    programs = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    program = next((found for found in programs if found), None)
    chromedriver = shutil.which("chromedriver")
    if not program or not chromedriver:
        skip_or_fail("there is no chromium and chromedriver (apt-get install chromium-driver)")
    try:
        from selenium import webdriver
    except ImportError:
        skip_or_fail("selenium is not installed (extra `test`)")
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    driver.set_page_load_timeout(120)
    yield Browser(driver)
    driver.quit()
