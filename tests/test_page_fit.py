"""The page on a desktop and a phone, light and dark: nothing is cut off, all can be read and has a name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from browser import Browser
from selenium.webdriver import ActionChains
from selenium.webdriver.common.keys import Keys
from test_page import LOADED, SHOWN, address, corpus, index, page, server, window  # noqa: F401 - fixtures

FILTERS = (
    "folder=a/rather/long/folder/name/of/many/parts&name=*.png&date=2001-02..2999&orientation=landscape"
    "&near=48,11,5km"
)
LEFT_OUT = ".photo, .shot, .stage-side, svg, .unseen, option, :disabled"

# What is wider than its place. Rows that scroll by themselves are no fault.
OVERFLOWING = """(() => {
  const places = [document.documentElement, ...$$("dialog.small, .panel")].filter((p) => p.checkVisibility());
  return places.filter((p) => p.scrollWidth > p.clientWidth + 1).map((p) => p.className);
})()"""

# Texts with less contrast than WCAG's AA: 4.5, large ones 3. Those over photos have shadows and are left out.
PALE = """(() => {
  const dot = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const over = (under, colours) => {
    dot.fillStyle = under;
    dot.fillRect(0, 0, 1, 1);
    for (const colour of colours) { dot.fillStyle = colour; dot.fillRect(0, 0, 1, 1); }
    return [...dot.getImageData(0, 0, 1, 1).data].slice(0, 3);
  };
  const light = (rgb) => rgb.map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    const colours = [];
    for (let at = node; at; at = at.parentElement) colours.unshift(getComputedStyle(at).backgroundColor);
    return colours;
  };
  const contrast = (node, colour) => {
    const behind = ground(node);
    const [a, b] = [light(over("white", behind)), light(over("white", [...behind, colour]))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  };
  const scope = $("dialog[open]") ?? document.body;
  const pale = [];
  for (const node of scope.querySelectorAll("*")) {
    if (!node.checkVisibility() || node.closest("LEFT OUT")) continue;
    const style = getComputedStyle(node);
    const size = parseFloat(style.fontSize);
    const wanted = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    const words = [...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
    const colours = words || node.value ? [style.color] : [];
    if (node.placeholder) colours.push(getComputedStyle(node, "::placeholder").color);
    for (const colour of colours) {
      const found = contrast(node, colour);
      if (found < wanted) pale.push(`${found.toFixed(2)}: ${node.outerHTML.slice(0, 90)}`);
    }
  }
  return pale;
})()""".replace("LEFT OUT", LEFT_OUT)

# Controls whose purpose nothing tells, and pictures without a text.
NAMELESS = """(() => {
  const text = (node) => node?.textContent ?? "";
  const nameless = (node) => {
    const told = node.getAttribute("aria-labelledby") ?? "";
    const by = told.split(" ").map((id) => document.getElementById(id));
    const names = [node.getAttribute("aria-label"), ...[...by, ...(node.labels ?? []), node].map(text)];
    return !names.some((name) => name?.trim());
  };
  const controls = $$("button, a[href], input, select, textarea, dialog").filter((n) => n.checkVisibility());
  return [...controls.filter(nameless), ...$$("img:not([alt])")].map((node) => node.outerHTML.slice(0, 90));
})()"""


@pytest.fixture(params=[(1280, 800, False), (1280, 800, True), (390, 844, False), (390, 844, True)])
def fitted(request: pytest.FixtureRequest, page: Browser) -> Iterator[Browser]:  # noqa: F811
    page.screen(*request.param)
    yield page
    page.screen(1280, 800)


def assert_fits(page: Browser) -> None:  # noqa: F811
    assert page.js(OVERFLOWING) == []
    assert page.js(PALE) == []
    assert page.js(NAMELESS) == []


def test_every_part_of_the_page(fitted: Browser, server: Any) -> None:  # noqa: F811
    client, _ = server
    fitted.open(address(client, FILTERS))
    fitted.until("$('#wall-end').textContent === 'No photo passes the filters.'")
    fitted.js("$('#filter-open').click()")
    assert_fits(fitted)
    fitted.js("$('#album-open').click()")
    album = '[{"name": "An album with a rather long name of many words", "hash": "q=a+dog&' + FILTERS + '"}]'
    fitted.js(
        f"localStorage.setItem('mmgem.albums', '{album}'), $('#albums').close(), $('#album-open').click()"
    )
    fitted.until("$('#albums').open && $('#album-list li')")
    assert_fits(fitted)
    fitted.js("localStorage.clear()")
    fitted.open(address(client, "q=a+red+dog"))
    fitted.until(f"{SHOWN}.length === 24")
    assert_fits(fitted)
    fitted.js("$('#results .photo').click()")
    fitted.until(f"{LOADED} && !$('#file-tool').hidden")
    fitted.js("$('#find-parts').click()")
    fitted.until("$$('.part-row').length > 0")
    assert_fits(fitted)
    fitted.open(address(client, "tab=texts&question=dog"))
    fitted.until("$$('.passage-text').length > 0")
    assert_fits(fitted)
    fitted.open(address(client, "q=dog&near=here"))
    fitted.until("$('.problem-card')")
    fitted.drop(b"words", "notes.txt", "text/plain")
    fitted.until("!$('#notice').hidden")
    assert_fits(fitted)
    assert any("422" in line for line in fitted.complaints())


def test_what_has_the_focus_is_seen(page: Browser, server: Any) -> None:  # noqa: F811
    client, _ = server
    page.open(address(client, "q=a+red+dog&folder=."))
    page.until(f"{SHOWN}.length === 24")
    page.js("$('#filter-open').click(), $('#skip').focus()")
    seen: list[str] = []
    while True:
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        if page.js("document.activeElement === document.body"):
            break  # past the end
        marks = "[at, at.nextElementSibling, at.closest('.search, .pick')].filter(Boolean)"
        styles = f"((at) => {marks}.map((m) => getComputedStyle(m)))(document.activeElement)"
        shown = page.js(f"{styles}.some((s) => s.outlineStyle !== 'none' || s.boxShadow !== 'none')")
        assert shown, page.js("document.activeElement.outerHTML")
        seen.append(page.js("document.activeElement.id || document.activeElement.name"))
        assert len(seen) < 60
    assert {"words", "filter-open", "album-open", "folder", "camera", "k"} <= {*seen}
