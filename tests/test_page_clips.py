"""Clips on the page: tiles tell when a moment is, the viewer plays it from there, or says that it cannot."""

from __future__ import annotations

from pathlib import Path

import films
import httpx
import pytest
from browser import Browser
from selenium.webdriver.common.keys import Keys
from test_page import LOADED, address, page, window  # noqa: F401 - fixtures

from mmgem import MMGEM
from mmgem.search.index import update_index


@pytest.fixture(scope="module")
def index(model: MMGEM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    (folder / "photos").mkdir()
    films.scene(9).save(folder / "photos" / "a.png")
    films.save_film(folder / "photos" / "b.webm", (1, 2), 2, codec="libvpx")
    films.save_film(folder / "photos" / "c.avi", (3,), 2, codec="mpeg4")
    films.save_gif(folder / "photos" / "d.gif", (4,))
    update_index(folder / "idx", folder / "photos", lambda: model, model.fingerprint)
    return folder / "idx"


def test_tiles_tell_when_a_moment_is(page: Browser, client: httpx.Client) -> None:  # noqa: F811
    page.open(address(client))
    page.until("$$('#wall-rows .tile img').length === 5")
    times = page.js("$$('#wall-rows .tile').map((t) => t.querySelector('.time')?.textContent ?? '')")
    assert times == ["", "▶ 0:00–0:02", "▶ 0:02–0:04", "▶ 0:00–0:02", "▶ 0:00–0:01"]


def test_a_moment_is_played_from_its_second(page: Browser, client: httpx.Client) -> None:  # noqa: F811
    ids = [row["id"] for row in client.get("/photos").json()["photos"]]
    page.open(address(client))
    page.until("$$('#wall-rows .tile img').length === 5")
    page.js(f"$('[data-id=\"{ids[2]}\"] button').click()")
    page.until(f"$('#viewer').open && {LOADED}")
    assert page.js("$('#play').textContent") == "Play 0:02–0:04"
    assert page.js("$('#original').href").endswith(f"photos/{ids[2]}#t=2,4")
    page.click("#play")
    page.until("$('video.player')?.currentTime >= 2 && $('video.player').videoWidth === 160")
    page.press(Keys.ARROW_LEFT)
    page.until("!$('.player')")
    page.js("document.activeElement.blur()")
    page.open(address(client, f"view={ids[0]}"))
    page.until(f"$('#viewer').open && {LOADED}")
    assert not page.js("$('#play').checkVisibility()")
    page.open(address(client, f"view={ids[4]}"))
    page.until(f"$('#viewer').open && {LOADED} && $('#play').checkVisibility()")
    page.click("#play")
    page.until("$('img.player').naturalWidth === 160")


def test_what_the_browser_cannot_play_is_shown_as_a_frame(page: Browser, client: httpx.Client) -> None:  # noqa: F811
    ids = [row["id"] for row in client.get("/photos").json()["photos"]]
    page.open(address(client, f"view={ids[3]}"))
    page.until(f"$('#viewer').open && {LOADED} && $('#play').checkVisibility()")
    page.click("#play")
    page.until("$('#play-said').checkVisibility()")
    assert "cannot play files of this kind" in page.js("$('#play-said').textContent")
    assert page.js("!$('.player') && $('#large').naturalWidth > 0")


def test_the_viewer_steps_through_the_shots_of_a_clip(page: Browser, client: httpx.Client) -> None:  # noqa: F811
    rows = client.get("/photos").json()["photos"]
    first, second = (row["id"] for row in rows[1:3])
    page.open(address(client, "q=a+dog"))
    page.until("$$('#results .tile:not(.skeleton)').length === 5")
    page.js(f"$('#results [data-id=\"{first}\"] button').click()")
    page.until(f"{LOADED} && $$('.shot').length === 2")
    assert page.js("$$('.shot span').map((s) => s.textContent)") == ["0:00", "0:02"]
    assert page.js("$$('.shot').map((s) => s.matches('[aria-current]'))") == [True, False]
    page.click("#play")
    page.until("$('video.player')?.currentTime < 2")
    page.js("$$('.shot')[1].click()")
    page.until(f"location.hash.includes('view={second}') && $('video.player')?.currentTime >= 2")
    page.until("$$('.shot')[1]?.matches('[aria-current]')")
    page.js("$('#frame').focus()")
    page.press(Keys.ARROW_UP)
    page.until(f"location.hash.includes('view={first}') && {LOADED} && $$('.shot').length === 2")
    page.press(Keys.ESCAPE)
    page.until("!$('#viewer').open && location.hash === '#q=a+dog'")


def test_a_shot_that_was_not_found_knows_its_neighbours(page: Browser, client: httpx.Client) -> None:  # noqa: F811
    clip = [row["id"] for row in client.get("/photos").json()["photos"][1:3]]
    hits = [hit["id"] for hit in client.post("/search", json={"text": "a dog"}).json()["hits"]]
    count = min(map(hits.index, clip)) + 1  # the better shot is the last hit, the other is none
    other = next(shot for shot in clip if shot not in hits[:count])
    page.open(address(client, f"q=a+dog&k={count}"))
    page.until(f"$$('#results .tile:not(.skeleton)').length === {count}")
    page.js("$$('#results .photo').at(-1).click()")
    page.until(f"{LOADED} && $$('.shot').length === 2")
    before = page.js("[$('#previous').disabled, $('#next').disabled]")
    assert before == [count == 1, True]
    page.js("$('.shot:not([aria-current])').click()")
    page.until(f"location.hash.includes('view={other}') && {LOADED}")
    assert page.js("[$('#previous').disabled, $('#next').disabled]") == before
