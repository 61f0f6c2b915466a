"""Debian's Chromium, driven by Selenium, without a screen."""
from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


CHROMIUM, DRIVER = "chromium", "chromedriver"

# Seconds until a page has to be there. Slow machines are slow.
PATIENCE = 60


def why_not() -> str:
    """Return why there is no Chromium here, or an empty str."""
    missing = [name for name in (CHROMIUM, DRIVER) if shutil.which(name) is None]
    return f"{' and '.join(missing)} is missing" if missing else ""


@contextmanager
def browsing(width: int = 1280, *, dark: bool = False) -> Iterator[Any]:
    """Yield a driver whose window has this `width`, and an own profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(shutil.which(CHROMIUM))
    for argument in (
        "--headless=new",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        f"--window-size={width},900",
    ):
        options.add_argument(argument)
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")  # its own sandbox refuses root
    driver = webdriver.Chrome(
        options=options, service=Service(str(shutil.which(DRIVER)))
    )
    try:
        driver.set_page_load_timeout(PATIENCE)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        yield driver
    finally:
        driver.quit()


def whole_page(driver: Any) -> bytes:
    """Return a screenshot of the whole page as PNG."""
    shot = driver.execute_cdp_cmd(
        "Page.captureScreenshot", {"captureBeyondViewport": True}
    )
    return base64.b64decode(shot["data"])
