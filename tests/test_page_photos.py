"""Photos a user brings to the page, and photos that are open while the server is away."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest
from browser import Browser
from serving import data_uri, picture, serving
from test_page import LOADED, SHOWN, address, ask, corpus, ids, index, page, server, window  # noqa: F401

from mmgem import MMGEM
from mmgem.serve.routes import photos as photo_routes


def test_words_beside_a_dropped_photo_count(page: Browser, server) -> None:  # noqa: F811
    client, _ = server
    mine = picture(99, (120, 90))
    page.open(address(client))
    page.until("$('#wall-rows .tile')")
    page.drop(mine)
    alone = ids(ask(client, "/search", image=data_uri(mine), k=24))
    page.until(f"{SHOWN}.length === 24")
    assert page.js(SHOWN) == alone
    page.type("#words", "a red dog")
    page.until("location.hash.includes('q=a+red+dog') && $('#progress').hidden")
    both = ids(ask(client, "/search", terms=[{"text": "a red dog"}, {"image": data_uri(mine)}], k=24))
    assert both != alone
    page.until(f"JSON.stringify({SHOWN}) === JSON.stringify({both})".replace("'", '"'))
    page.click("#unchip")
    words = ids(ask(client, "/search", text="a red dog", k=24))
    page.until(f"JSON.stringify({SHOWN}) === JSON.stringify({words})".replace("'", '"'))
    assert page.js("location.hash") == "#q=a+red+dog"


def test_a_reload_keeps_a_dropped_photo(page: Browser, server) -> None:  # noqa: F811
    client, _ = server
    mine = picture(98, (120, 90))
    page.open(address(client))
    page.until("$('#wall-rows .tile')")
    for _ in range(14):  # the last twelve are kept
        before = page.js("location.hash")
        page.drop(mine, "boat.png")
        page.until(f"location.hash !== {before!r} && {SHOWN}.length === 24")
    page.driver.refresh()
    page.until(f"{SHOWN}.length === 24 && $('#chip img')?.naturalWidth === 120")
    assert page.js(SHOWN) == ids(ask(client, "/search", image=data_uri(mine), k=24))
    page.click("#chip")
    page.until(LOADED)
    assert page.js("$('#photo-name').textContent") == "boat.png"
    kept = """(async () => {
      const { kept } = await import("/static/uploads.js");
      window.kept = (await kept()).length;
    })()"""
    page.js(f"{kept}, 0")
    page.until("window.kept === 12")


def test_a_file_that_is_no_photo_is_refused(page: Browser, server) -> None:  # noqa: F811
    client, _ = server
    page.open(address(client))
    page.until("$('#wall-rows .tile')")
    page.drop(b"words", "notes.txt", "text/plain")
    page.until("$('#notice').textContent.startsWith('notes.txt is no photo')")
    assert page.js("location.hash") == ""
    page.click("#notice button")
    page.until("$('#notice').hidden")


def test_what_is_said_over_a_photo_stays_on_a_phones_screen(page: Browser, server) -> None:  # noqa: F811
    client, _ = server
    page.screen(390, 844)
    try:
        page.open(address(client, "q=a+red+dog"))
        page.until(f"{SHOWN}.length === 24")
        page.js("$('#results .photo').click()")
        page.until(LOADED)
        for start, end in (((0.6, 0.1), (0.98, 0.5)), ((0.02, 0.1), (0.3, 0.98)), ((0.5, 0.5), (0.98, 0.98))):
            page.drag("#frame", start, end)
            page.js("$('#describe-box').click()")
            page.until("!$('#bubble').hidden")
            page.js("$('#bubble').textContent = 'a long sentence about what is in the box '.repeat(3), 0")
            page.js("dispatchEvent(new Event('resize'))")
            edges = page.js(
                "(({left, right, top}) => [left, right, top])($('#bubble').getBoundingClientRect())"
            )
            assert edges[0] >= 0 and edges[1] <= 390 and edges[2] >= 0
            page.js("$('#remove-box').click()")
    finally:
        page.screen(1280, 800)


def test_a_photo_keeps_its_name_while_the_server_is_away(
    page: Browser,  # noqa: F811
    model: MMGEM,
    index: Path,  # noqa: F811
) -> None:
    with serving(model, index) as (client, _):
        page.open(address(client, "q=a+red+dog&k=12"))
        page.until(f"{SHOWN}.length === 12")
        photo = page.js(SHOWN)[5]
        name = client.get(f"/photos/{photo}/info").json()["name"]
    page.js(f"location.hash = 'view={photo}', 0")  # not from the hits: the wall is behind it
    page.until("$('#viewer').open && $('#notice').textContent.includes('The server does not answer')")
    assert page.js("$('#photo-name').textContent") == name
    page.open("about:blank")
    assert any("ERR_CONNECTION_REFUSED" in line for line in page.complaints())


def test_on_its_own_machine_a_path_is_copied_and_a_folder_opened(
    page: Browser,  # noqa: F811
    model: MMGEM,
    index: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened: list[Path] = []
    monkeypatch.setattr(photo_routes, "reveal", opened.append)
    with serving(model, index, local=True) as (client, _):
        photo = _first(client)
        page.open(address(client, f"view={photo['id']}"))
        page.until("!$('#file-tool').hidden")
        page.js("navigator.clipboard.writeText = async (text) => { window.copied = text; }, 0")
        page.click("#copy-path")
        path = index.parent / "photos" / photo["name"]
        page.until(f"window.copied === {str(path)!r}")
        page.click("#open-folder")
        page.until("$('#file-said').textContent.includes('open')")
        assert opened == [path]
        page.leave()


def _first(client: httpx.Client) -> dict[str, str]:
    photo: dict[str, str] = client.get("/photos?limit=1").json()["photos"][0]
    return photo
