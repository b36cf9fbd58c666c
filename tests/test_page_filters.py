"""Filters and albums on the page: in the address, in the form, as tags; and what they let through."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Browser
from PIL import ExifTags, Image
from selenium.webdriver.common.keys import Keys
from serving import serving
from test_page import SHOWN, address, ask, ids, page, window  # noqa: F401 - fixtures
from tiny import save_photo

from mmgem import MMGEM
from mmgem.search.index import update_index

WALL = "$$('#wall-rows .tile').map((t) => t.dataset.id)"
TAGS = "$$('#tags .tag span').map((s) => s.textContent)"
READY = "$$('#wall-rows img').length > 0 && $('#wall-end').childElementCount === 0"


def save_told_photo(
    path: Path, seed: int, size: tuple[int, int], year: int, camera: str, north: float
) -> None:
    """A photo whose header says when, with what and where it was taken."""
    save_photo(path, seed, size)
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = camera
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = f"{year}:06:15 12:00:00"
    place = {1: "N", 2: (north, 0.0, 0.0), 3: "E", 4: (11.0, 0.0, 0.0)}
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(place)
    with Image.open(path) as photo:
        photo.save(path, exif=exif)


@pytest.fixture(scope="module")
def client(model: MMGEM, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("filters")
    for n in range(6):
        photo = folder / "photos" / ("sea" if n < 3 else "home/garden") / f"IMG_{n}.png"
        size = (120, 90) if n % 2 else (90, 120)
        save_told_photo(photo, n, size, 2019 + n // 2, ("Canon A", "Pixel 7")[n % 2], 48.0 + n)
    os.utime(save_photo(folder / "photos" / "plain.png", 9), (1.6e9, 1.6e9))
    update_index(folder / "idx", folder / "photos", lambda: model, model.fingerprint, regions=2)
    with serving(model, folder / "idx") as (client, _):
        yield client


def listed(client: httpx.Client, **filters: Any) -> list[str]:
    return [photo["id"] for photo in client.get("/photos", params=filters).json()["photos"]]


def test_filters_of_the_address_are_those_of_the_api(page: Browser, client: httpx.Client) -> None:  # noqa: F811
    given = {"folder": "home", "date": "2020..", "orientation": "landscape", "near": "51,11,1km"}
    page.open(address(client, "&".join(f"{name}={value}" for name, value in given.items())))
    page.until(READY)
    assert page.js(WALL) == listed(client, **given) and len(page.js(WALL)) == 1
    assert page.js(TAGS) == ["In home", "Taken from 2020", "Landscape", "Within 1 km of 51,11"]
    page.type("#words", "a red dog")
    page.until(f"{SHOWN}.length === 1")
    assert page.js(SHOWN) == ids(ask(client, "/search", text="a red dog", filters=given))
    assert page.js("$('#found').textContent").startswith("best 1 of 1 photos")
    page.click("#tags .tag[aria-label*='Within']")
    page.click("#tags .tag[aria-label*='Landscape']")
    page.until(f"{SHOWN}.length === 3")
    assert page.js("location.hash") == "#q=a+red+dog&folder=home&date=2020.."
    assert page.js("document.activeElement.className") == "tag"
    page.click("#no-filters")
    page.until(f"{SHOWN}.length === 7 && !$('#tags li') && location.hash === '#q=a+red+dog'")
    page.driver.back()
    page.until(f"{SHOWN}.length === 3 && $$('#tags li').length === 2")


def test_the_form_sets_filters(page: Browser, client: httpx.Client) -> None:  # noqa: F811
    page.open(address(client))
    page.until(READY)
    page.click("#filter-open")
    page.until("$$('#folders option').length === 3 && document.activeElement.name === 'folder'")
    assert page.js("$$('#folders option').map((o) => o.value)") == ["home", "home/garden", "sea"]
    assert page.js("$$('#cameras option').map((o) => o.value)") == ["Canon A", "Pixel 7"]
    page.type("[name=from]", "2019" + Keys.TAB)
    page.until("location.hash === '#date=2019..'")
    page.type("[name=to]", "2020" + Keys.TAB)
    page.type("[name=camera]", "canon" + Keys.ENTER)
    page.until(f"{TAGS}.length === 2 && {READY}")
    assert page.js("location.hash") == "#date=2019..2020&camera=canon"
    assert page.js(WALL) == listed(client, date="2019..2020", camera="canon")
    page.type("[name=place]", "48, 11" + Keys.TAB)
    page.js("$('[name=within]').value = '200km', $('#filters').dispatchEvent(new Event('change'))")
    page.until("location.hash === '#date=2019..2020&camera=canon&near=48,11,200km'")
    page.until(f"{READY} && {WALL}.length === 1")
    page.js("$('[name=min_width]').value = '500', $('#filters').dispatchEvent(new Event('change'))")
    page.until("$('#wall-end').textContent === 'No photo passes the filters.'")
    page.type("[name=from]", "last summer" + Keys.TAB)
    assert not page.js("$('#filters').checkValidity()") and "summer" not in page.js("location.hash")
    page.press(Keys.ESCAPE)
    page.until("$('#filters').hidden && document.activeElement.id === 'filter-open'")


def test_what_is_no_filter_is_said(page: Browser, client: httpx.Client) -> None:  # noqa: F811
    page.open(address(client, "near=here"))
    told = page.until("$('#wall-end .problem-card p')?.textContent")
    assert told == client.get("/photos?near=here").json()["error"]["message"]
    page.open(address(client, "q=dog&min_width=wide"))
    assert "min_width" in page.until("$('#results .problem-card p')?.textContent")
    assert all("422" in line for line in page.complaints())


def test_albums_are_searches_with_filters(page: Browser, client: httpx.Client) -> None:  # noqa: F811
    page.open(address(client))
    page.js("localStorage.clear()")
    page.until(READY)
    page.click("#album-open")
    assert page.js("$('#album-form').hidden && $('#album-why').textContent !== ''")
    page.click("#album-close")
    page.open(address(client, "q=a+red+dog&folder=sea"))
    page.until(f"{SHOWN}.length === 3")
    page.click("#album-open")
    assert page.js("$('#album-what').textContent") == "“a red dog” · In sea"
    page.type("#album-name", "Dogs by the sea" + Keys.ENTER)
    page.until("$('#album-list b')?.textContent === 'Dogs by the sea'")
    assert page.js("$('#album-open').textContent") == "Dogs by the sea"
    link = "$('#album-list a').href"
    assert page.js(link) == f"{client.base_url}/#q=a+red+dog&folder=sea"
    page.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }, 0")
    page.click("#album-list .round")
    page.until(f"window.copied === {link}")
    page.press(Keys.ESCAPE)
    page.open(address(client))
    page.until(READY)
    page.click("#ideas a")
    page.until(f"{SHOWN}.length === 3 && document.title.startsWith('Dogs by the sea')")
    page.click("#album-open")
    page.click("#album-list [aria-label^=Remove]")
    page.until("!$('#album-list li') && localStorage.getItem('mmgem.albums') === '[]'")
    page.press(Keys.ESCAPE)


def test_facts_of_a_file_lead_to_what_shares_them(page: Browser, client: httpx.Client) -> None:  # noqa: F811
    page.open(address(client))
    page.until(READY)
    photo = page.js(WALL)[0]
    page.open(address(client, f"view={photo}"))
    page.until("!$('#file-tool').hidden")
    facts = page.js("$$('#facts div').map((d) => [...d.children].map((c) => c.textContent))")
    info = client.get(f"/photos/{photo}/info").json()
    size = f"120 × 90, {-(-info['bytes'] // 1000)} kB"
    assert facts == [
        ["Folder", "home/garden"],
        ["Taken", "2020-06-15 12:00"],
        ["Camera", "Pixel 7"],
        ["Place", "51.0000, 11.0000"],
        ["Size", size],
    ]
    assert page.js("$('#open-folder').hidden && $('#copy-path').textContent === 'Copy name'")
    page.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }, 0")
    page.click("#copy-path")
    page.until("window.copied === 'home/garden/IMG_3.png' && $('#file-said').textContent === 'Copied.'")
    page.js("$$('#facts a')[2].click()")
    page.until(f"!$('#viewer').open && location.hash === '#camera=Pixel+7' && {READY}")
    page.until(f"{WALL}.length === 3")
    assert page.js(WALL) == listed(client, camera="Pixel 7")
