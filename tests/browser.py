"""A headless Chromium that tests drive. Debian: ``apt-get install chromium chromium-driver``."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, ChromeOptions, ChromeService
from selenium.webdriver.common.keys import Keys

_SECONDS = 30  # for anything to happen

_DROP = """
const [data, name, type] = arguments;
const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
const carried = new DataTransfer();
carried.items.add(new File([bytes], name, { type }));
const options = { dataTransfer: carried, bubbles: true, cancelable: true };
for (const step of ["dragenter", "dragover", "drop"]) {
  document.body.dispatchEvent(new DragEvent(step, options));
}
"""


class Browser:
    """One window, with what the tests do in it. ``driver`` is selenium's."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def screen(self, width: int, height: int, dark: bool = False) -> None:
        """Take the shape and the colours of another screen; below 500 pixels it is a phone's."""
        phone = width < 500
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": phone})
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def open(self, url: str) -> None:
        """A new visit: nothing is kept of earlier ones."""
        self.leave()
        self.driver.get(url)

    def leave(self) -> None:
        """End a visit, with what is still being loaded: before the server stops."""
        self.driver.get("about:blank")

    def js(self, expression: str, *arguments: Any) -> Any:
        """The value of a JavaScript expression; in it, ``$`` finds an element and ``$$`` a list of them."""
        finders = "const $ = (s) => document.querySelector(s), $$ = (s) => [...document.querySelectorAll(s)];"
        return self.driver.execute_script(f"{finders} return {expression}", *arguments)

    def until(self, expression: str) -> Any:
        """The value of a JavaScript expression as soon as it is true."""
        end = time.monotonic() + _SECONDS
        while not (value := self.js(expression)):
            if time.monotonic() > end:
                pytest.fail(f"not within {_SECONDS} s: {expression}; {self.driver.get_log('browser')}")
            time.sleep(0.02)
        return value

    def click(self, selector: str) -> None:
        """Click what a user would see there."""
        self.until(f"$({selector!r}) && $({selector!r}).checkVisibility()")
        self.driver.find_element("css selector", selector).click()

    def type(self, selector: str, text: str) -> None:
        """Type into a field, in place of what is in it."""
        field = self.driver.find_element("css selector", selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(text)

    def press(self, *keys: str) -> None:
        """Press keys where the focus is."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def drag(self, selector: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag the mouse over an element, between two places in shares of its width and height."""
        node = self.driver.find_element("css selector", selector)
        width, height = node.rect["width"], node.rect["height"]
        mouse = ActionChains(self.driver, duration=50)
        mouse.move_to_element_with_offset(
            node, round((start[0] - 0.5) * width), round((start[1] - 0.5) * height)
        )
        across, down = round((end[0] - start[0]) * width), round((end[1] - start[1]) * height)
        mouse.click_and_hold().move_by_offset(across, down).release().perform()

    def drop(self, data: bytes, name: str = "mine.png", kind: str = "image/png") -> None:
        """Drop a file on the page."""
        self.driver.execute_script(_DROP, base64.b64encode(data).decode(), name, kind)

    def complaints(self) -> list[str]:
        """What the browser has logged as an error since it was last asked: exceptions, broken rules of the
        content security policy, requests that failed."""
        return [line["message"] for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the Chromium of this machine. Where there is none the test is left out, but not by CI."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program, chromedriver = next(filter(None, map(shutil.which, names)), None), shutil.which("chromedriver")
    if program is None or chromedriver is None:
        stop = pytest.fail if os.environ.get("CI") else pytest.skip
        stop("the page's tests need a browser: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = program
    # Containers seldom let it make its sandbox, nor give it much shared memory; it only sees our own page.
    options.add_argument("--headless=new")
    options.add_argument("--no-sandbox")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument("--window-size=1280,800")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, ChromeService(chromedriver))
    try:
        yield Browser(driver)
    finally:
        driver.quit()
