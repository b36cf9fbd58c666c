"""The page in a real browser, on a real server of a toy model: what a user does, and what comes of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import toys
from browser import Browser, chromium
from selenium.webdriver.common.keys import Keys
from serving import data_uri, picture, serving
from tiny import save_photo

from mmgem import MMGEM
from mmgem.inference.calibration import Background, MatchCalibration, MatchWeights
from mmgem.search.index import update_index
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.model import SelfRetrieval
from mmgem.self_retrieval.prompts import Prompts
from mmgem.serve.errors import APIError
from mmgem.serve.service import Service

SIZES = [(160, 120), (90, 120), (240, 120)]
PHOTOS, DISTINCT = 52, 15  # more than the wall asks for at once; copies cost the index nothing

SHOWN = "$$('#results .tile:not(.skeleton)').map((tile) => tile.dataset.id)"
LOADED = "$('#large').naturalWidth && !$('#frame.loading')"


@pytest.fixture(scope="module")
def index(model: MMGEM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    for n in range(PHOTOS):
        save_photo(folder / "photos" / f"{n:03}.png", n % DISTINCT, SIZES[n % 3])
    update_index(folder / "idx", folder / "photos", lambda: model, model.fingerprint, regions=4)
    return folder / "idx"


@pytest.fixture(scope="module")
def corpus() -> SelfRetrieval:
    network, tokenizer = toys.network(encoder="none"), toys.tokenizer()
    return SelfRetrieval(network, tokenizer, Corpus.build(toys.passages(), Prompts(tokenizer)))


@pytest.fixture(scope="module")
def server(model: MMGEM, index: Path, corpus: SelfRetrieval) -> Iterator[tuple[httpx.Client, Service]]:
    with serving(model, index, corpus=corpus) as served:
        yield served


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(window: Browser) -> Iterator[Browser]:
    """The browser; nothing may be wrong in its console in the end but what a test has asked for."""
    yield window
    assert window.complaints() == []


def address(client: httpx.Client, state: str = "") -> str:
    return f"{client.base_url}#{state}"


def ask(client: httpx.Client, path: str, **fields: Any) -> dict[str, Any]:
    reply = client.post(path, json=fields)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def ids(answer: dict[str, Any]) -> list[str]:
    return [hit["id"] for hit in answer["hits"]]


def test_the_wall_holds_every_photo_in_its_shape(page: Browser, server) -> None:
    client, _ = server
    page.open(address(client))
    page.until("$$('#wall-rows .tile').length >= 48")
    page.js("scrollTo(0, document.body.scrollHeight)")
    page.until(f"$$('#wall-rows .tile').length === {PHOTOS} && $('#wall-end').childElementCount === 0")
    listed = client.get("/photos?limit=500").json()["photos"]
    assert page.js("$$('#wall-rows .tile').map((t) => t.dataset.id)") == [photo["id"] for photo in listed]
    shapes = page.js(
        "$$('#wall-rows img').map((i) => [i.clientWidth / i.clientHeight, i.naturalWidth / i.naturalHeight])"
    )
    assert all(shown == pytest.approx(own, abs=0.05) for shown, own in shapes)
    assert page.js("$('#total').textContent") == f"{PHOTOS} photos"


def test_words_are_searched_while_they_are_typed(page: Browser, server) -> None:
    client, _ = server
    page.open(address(client))
    page.press("/")
    page.press("a red dog")
    wanted = ask(client, "/search", text="a red dog", k=24)
    page.until(f"{SHOWN}.length === 24")
    assert page.js(SHOWN) == ids(wanted)
    scores = page.js("$$('#results .score b').map((b) => b.textContent)")
    assert scores == [f"{hit['score']:.3f}" for hit in wanted["hits"]]
    assert page.js("location.hash") == "#q=a+red+dog"
    page.js("$('#k').value = '12', $('#k').dispatchEvent(new Event('change'))")
    page.until(f"{SHOWN}.length === 12")
    page.click("#rerank")
    page.until("location.hash.includes('rerank=1') && $('#results .score').title.includes('log P')")
    page.driver.back()
    page.driver.back()
    page.until(f"{SHOWN}.length === 24")
    page.driver.back()
    page.until("$('#wall').checkVisibility() && $('#words').value === ''")


def test_what_is_probably_no_match_says_so(page: Browser, server, monkeypatch: pytest.MonkeyPatch) -> None:
    client, service = server
    background = Background(np.zeros(service.model.dim, np.float32), np.zeros((service.model.dim, 1)), 1.0)
    cosines = sorted(hit["score"] for hit in ask(client, "/search", text="a boat", k=24)["hits"])
    for middle in ((cosines[0] + cosines[-1]) / 2, 2.0):  # between the hits' cosines; above them all
        weights = MatchWeights(100.0, 0.0, 0.0, 0.0, -100 * middle)
        monkeypatch.setattr(service.model, "calibration", MatchCalibration(background, weights, weights))
        doubtful = [hit["match"] < 0.5 for hit in ask(client, "/search", text="a boat", k=24)["hits"]]
        page.open("about:blank")
        page.open(address(client, "q=a+boat"))
        page.until(f"{SHOWN}.length === 24")
        assert page.js("$$('#results .tile').map((t) => t.matches('.doubtful'))") == doubtful
        labels = page.js("$$('#results .photo').map((b) => b.getAttribute('aria-label'))")
        assert [label.endswith(", probably no match") for label in labels] == doubtful
        assert page.js("$$('#results .score em').length") == sum(doubtful)
        assert page.js("$('#found').textContent").startswith("Probably no match") is all(doubtful)
        page.click("#results .photo")
        page.until("$('#viewer').open")
        page.js("$('#classes').value = 'dog, boat', $('#classes-form').requestSubmit()")
        page.until("$('#classes-said li')")
        if all(doubtful):
            assert "Probably none of these (100%)" in page.js("$('#classes-said').textContent")
    assert all(doubtful)


def test_regions_show_their_boxes_and_place_words_count(page: Browser, server) -> None:
    client, _ = server
    page.open(address(client, "q=a+dog+at+the+left"))
    page.click("#hint button")
    page.until("$$('#results .hit-box').length > 0")
    wanted = ask(client, "/search", text="a dog at the left", k=24, regions=True)
    assert page.js(SHOWN) == ids(wanted)
    assert page.js("$('#hint').textContent") == "Looking for a dog in the left of each photo"
    page.click("#results .photo")
    page.until("!$('#box').hidden")
    box, width = wanted["hits"][0]["box"], wanted["hits"][0]["width"]
    assert page.js("parseFloat($('#box').style.left)") == pytest.approx(100 * box[0] / width, abs=0.01)


def test_a_dropped_photo_is_searched_by_and_looked_into(page: Browser, server) -> None:
    client, _ = server
    mine = picture(99, (120, 90))
    page.open(address(client))
    page.until("$('#wall-rows .tile')")
    page.drop(mine)
    page.until(f"{SHOWN}.length === 24")
    assert page.js(SHOWN) == ids(ask(client, "/search", image=data_uri(mine), k=24))
    page.click("#chip")
    page.until(LOADED)
    page.click("#describe")
    said = page.until("$('#said .quote')?.textContent")
    assert said == ask(client, "/caption", image=data_uri(mine))["captions"][0]["text"]


def test_what_is_no_photo_is_said_in_the_servers_words(page: Browser, server) -> None:
    client, _ = server
    page.open(address(client))
    page.until("$('#wall-rows .tile')")
    page.drop(b"no photo")
    told = page.until("$('.problem-card p')?.textContent")
    assert told == client.post("/search", files={"image": b"no photo"}).json()["error"]["message"]
    assert any("422" in line for line in page.complaints())


def test_a_box_is_drawn_captioned_and_searched_by(page: Browser, server) -> None:
    client, _ = server
    page.open(address(client, "q=a+red+dog"))
    page.click("#results .photo")
    page.until(LOADED)
    page.drag("#frame", (0.2, 0.25), (0.7, 0.75))
    page.click("#describe-box")
    page.until("!$('#bubble').hidden")
    hit = ask(client, "/search", text="a red dog")["hits"][0]
    edges = page.js("['left', 'top', 'width', 'height'].map((e) => parseFloat($('#box').style[e]) / 100)")
    assert edges == pytest.approx([0.2, 0.25, 0.5, 0.5], abs=0.01)
    x0, y0, across, down = edges
    shares = (x0, y0, x0 + across, y0 + down)
    sides = (hit["width"], hit["height"]) * 2
    box = [round(share * side, 1) for share, side in zip(shares, sides, strict=True)]
    (wanted,) = ask(client, "/caption", photo=hit["id"], boxes=[box])["captions"]
    assert page.js("$('#bubble').textContent") == wanted["text"]
    page.click("#search-box")
    page.until("location.hash.includes('box=') && !$('#viewer').open")
    page.until(f"{SHOWN}.length === 24 && !{SHOWN}.includes('{hit['id']}')")
    page.until("$('#chip .hit-box')")


def test_the_viewer_by_keyboard(page: Browser, server) -> None:
    client, _ = server
    page.open(address(client))
    page.until("$$('#wall-rows .tile').length >= 48")
    page.js("$('#wall-rows .photo').focus()")
    page.press(Keys.ARROW_RIGHT)
    page.press(Keys.ENTER)
    _, second, third = page.js("$$('#wall-rows .tile').slice(0, 3).map((t) => t.dataset.id)")
    page.until(LOADED)
    assert page.js("location.hash") == f"#view={second}"
    page.press("b")
    before = page.until("$('#box').getAttribute('aria-label')")
    page.press(Keys.ARROW_LEFT)
    page.press(Keys.SHIFT + Keys.ARROW_DOWN)
    assert page.js("$('#box').getAttribute('aria-label')") != before
    page.press(Keys.ENTER)
    page.until("$('#box-said').textContent !== '' && !$('#bubble').hidden")
    page.press(Keys.DELETE)
    page.until("$('#box').hidden && document.activeElement.id === 'frame'")
    page.press(Keys.ARROW_RIGHT)
    page.until(f"location.hash === '#view={third}'")
    for _ in range(30):
        page.press(Keys.TAB)
        assert page.js("[document.body, ...$$('#viewer *, #viewer')].includes(document.activeElement)")
    page.press(Keys.ESCAPE)
    page.until("!$('#viewer').open && location.hash === ''")
    page.until(f"document.activeElement.closest('.tile')?.dataset.id === '{third}'")


def test_heat_regions_and_classes(page: Browser, server) -> None:
    client, _ = server
    page.open(address(client, "q=a+red+dog"))
    page.click("#results .photo")
    page.until(LOADED)
    photo = page.js("$('#results .tile').dataset.id")
    page.click("#heat-form button")
    page.until("!$('#peak').hidden && !$('#heat').hidden && $('#heat').width === 28")
    wanted = ask(client, "/heatmap", photo=photo, text="a red dog")
    assert page.js("parseFloat($('#peak').style.left)") == pytest.approx(
        100 * wanted["peak"][0] / wanted["width"], abs=0.01
    )
    page.click("#find-parts")
    regions = ask(client, "/regions", photo=photo, count=6, captions=True)["regions"]
    page.until("$$('.part-row').length > 0 && $('#heat').hidden")
    told = page.js("$$('.part-row span').map((s) => s.textContent)")
    assert told == [region["caption"] for region in regions]
    page.type("#classes", "dog, cat, boat" + Keys.ENTER)
    page.until("$$('.guesses li').length === 3")
    guesses = ask(client, "/classify", photo=photo, classes=["dog", "cat", "boat"])["guesses"]
    assert page.js("$$('.guesses li span:first-child').map((s) => s.textContent)") == [
        guess["class"] for guess in guesses
    ]


def test_a_busy_server_is_asked_again(page: Browser, server, monkeypatch: pytest.MonkeyPatch) -> None:
    client, service = server
    search, refused = service.search, threading.Event()

    async def busy_once(*arguments: Any) -> Any:
        if refused.is_set():
            return await search(*arguments)
        refused.set()
        raise APIError(429, "queue_full", "busy; try again later", retry_after=1)

    monkeypatch.setattr(service, "search", busy_once)
    page.open(address(client, "q=a+red+dog"))
    page.until("$('#notice').textContent.includes('The server is busy. Trying again in 1 s.')")
    page.until(f"{SHOWN}.length === 24 && $('#notice').hidden")
    assert any("429" in line for line in page.complaints())


def test_errors_are_said_and_a_server_that_is_gone(page: Browser, model: MMGEM, index: Path) -> None:
    with serving(model, index) as (client, _):
        page.open(address(client, "q=a+red+dog&k=900"))
        assert "200" in page.until("$('.problem-card p')?.textContent")
        assert any("422" in line for line in page.complaints())
        page.open(address(client))
        page.until("$('#wall-rows .tile')")
        assert page.js("$('#tabs').hidden")
    page.type("#words", "a red dog")
    page.until("$('#notice').textContent.includes('The server does not answer')")
    page.until("$$('#results .skeleton').length > 0")
    page.open("about:blank")
    assert any("ERR_CONNECTION_REFUSED" in line for line in page.complaints())


def test_a_token_is_asked_for_and_photos_come_with_it(page: Browser, model: MMGEM, index: Path) -> None:
    with serving(model, index, token="secret") as (client, _):
        page.open(address(client))
        page.until("$('#token').open")
        page.type("#token-value", "guess" + Keys.ENTER)
        page.until("$('#token-problem').textContent !== ''")
        page.type("#token-value", "secret" + Keys.ENTER)
        page.until("$$('#wall-rows img').length >= 48 && !$('#token').open")
        assert page.js("$$('#wall-rows img').every((i) => i.src.startsWith('blob:') && i.naturalWidth > 0)")
        page.driver.refresh()
        page.until("$('#wall-rows .tile')")
        page.js("sessionStorage.clear()")
        assert all("401" in line for line in page.complaints())


def test_texts_are_asked(page: Browser, server) -> None:
    client, _ = server
    page.open(address(client))
    page.click("#tab-texts")
    page.type("#question", "dog near the boat" + Keys.ENTER)
    page.until("$$('.passage-text').length > 0")
    wanted = ask(client, "/corpus/ask", query="dog near the boat", k=5)
    assert page.js("$$('.passage-text').map((p) => p.textContent)") == [hit["text"] for hit in wanted["hits"]]
    assert page.js("$('.answer').textContent") == (wanted["answer"] or "No answer")
    assert page.js("location.hash") == "#tab=texts&question=dog+near+the+boat"


def test_without_an_index_a_single_photo_can_be_looked_into(page: Browser, model: MMGEM) -> None:
    with serving(model) as (client, _):
        page.open(address(client))
        assert "mmgem serve photos.idx" in page.until("$('#nothing pre')?.textContent")
        page.drop(picture(1))
        page.until(LOADED)
        page.click("#describe")
        assert page.until("$('#said .quote')?.textContent")
        assert not page.js("$('#alike').checkVisibility()")
