"""Every route answers what the Python API says, for photos of the index, data URIs and forms alike."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import toys
from PIL import Image
from serving import data_uri, picture, serving
from tiny import save_photo, save_photos

from mmgem import MMGEM
from mmgem.errors import ImageError
from mmgem.evaluate.classify import class_embeddings, classify
from mmgem.search.duplicates import fold_copies
from mmgem.search.filters import Filters
from mmgem.search.index import update_index
from mmgem.search.query_terms import QueryTerm
from mmgem.search.search import PhotoIndex
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.model import SelfRetrieval
from mmgem.self_retrieval.prompts import Prompts
from mmgem.serve.image_input import PhotoSource


@pytest.fixture(scope="module")
def index(model: MMGEM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    save_photos(folder / "photos", 8)
    out = folder / "idx"
    update_index(out, folder / "photos", lambda: model, model.fingerprint, regions=4)
    return out


@pytest.fixture(scope="module")
def corpus() -> SelfRetrieval:
    network, tokenizer = toys.network(encoder="none"), toys.tokenizer()
    learned = Corpus.build(toys.passages(), Prompts(tokenizer))
    return SelfRetrieval(network, tokenizer, learned)


@pytest.fixture(scope="module")
def client(model: MMGEM, index: Path, corpus: SelfRetrieval) -> Iterator[httpx.Client]:
    with serving(model, index, corpus=corpus) as (client, _):
        yield client


def ok(reply: httpx.Response) -> dict[str, Any]:
    assert reply.status_code == 200, reply.text
    body: dict[str, Any] = reply.json()
    return body


def refused(reply: httpx.Response) -> tuple[int, str]:
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return reply.status_code, error["code"]


def photos(client: httpx.Client) -> dict[str, str]:
    return {row["name"]: row["id"] for row in ok(client.get("/photos"))["photos"]}


def test_the_wall_pages_through_the_index(client: httpx.Client) -> None:
    first = ok(client.get("/photos?limit=5"))
    assert (first["total"], first["next"], len(first["photos"])) == (8, 5, 5)
    rest = ok(client.get("/photos?offset=5&limit=5"))
    assert rest["next"] is None
    names = [row["name"] for row in first["photos"] + rest["photos"]]
    assert names == sorted(names) and len(set(names)) == 8


def test_a_photo_and_its_small_copy_by_id(client: httpx.Client, index: Path) -> None:
    photo = photos(client)["0003.png"]
    full = client.get(f"/photos/{photo}")
    assert full.content == (index.parent / "photos" / "0003.png").read_bytes()
    assert full.headers["content-type"] == "image/png"
    small = client.get(f"/photos/{photo}/thumb?side=20")
    assert Image.open(io.BytesIO(small.content)).size == (20, 15)
    assert refused(client.get("/photos/0123456789abcdef")) == (404, "not_found")


def test_search_by_words_is_the_index_s_own(client: httpx.Client, index: Path, model: MMGEM) -> None:
    expected = PhotoIndex.open(index).search(model.embed_queries(["red dog"])[0], 3)
    hits = ok(client.post("/search", json={"text": "red dog", "k": 3}))["hits"]
    assert [hit["name"] for hit in hits] == [hit.path.name for hit in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-4)
    assert (hits[0]["width"], hits[0]["height"]) == (48, 36)


def test_search_of_regions_knows_place_words(client: httpx.Client, index: Path, model: MMGEM) -> None:
    reply = ok(client.post("/search", json={"text": "a dog at the left", "regions": True}))
    assert reply["query"] == {"text": "a dog", "where": {"across": -1, "down": None}}
    again = ok(client.post("/search", json={"text": "a dog", "regions": True, "where": "left"}))
    assert again["hits"] == reply["hits"]
    assert all((hit["box"][0] + hit["box"][2]) / 2 < hit["width"] / 2 for hit in reply["hits"])


def test_filters_are_the_library_s(client: httpx.Client, index: Path, model: MMGEM) -> None:
    view = PhotoIndex.open(index).filtered(Filters(name="000?.png", date="2020.."))
    vector = model.embed_queries(["red dog"])[0]
    body = {"text": "red dog", "k": 3, "filters": {"name": "000?.png", "date": "2020.."}}
    for _ in range(2):  # the second time from memory
        reply = ok(client.post("/search", json=body))
        assert [hit["name"] for hit in reply["hits"]] == [hit.path.name for hit in view.search(vector, 3)]
        assert reply["photos"] == len(view.photos)
    two = {"name": "0003.*", "orientation": "landscape"}
    for more in ({}, {"rerank": True}, {"regions": True}):
        reply = ok(client.post("/search", json={"text": "dog", "filters": two, **more}))
        assert [hit["name"] for hit in reply["hits"]] == ["0003.png"] and reply["photos"] == 1
    none = ok(client.post("/search", json={"text": "dog", "filters": {"date": "1999"}}))
    assert (none["hits"], none["photos"]) == ([], 0)
    form = {"k": "2", "filters": json.dumps(two)}
    data = (index.parent / "photos" / "0002.png").read_bytes()
    formed = ok(client.post("/search", files={"image": data}, data=form))
    assert [hit["name"] for hit in formed["hits"]] == ["0003.png"]


def test_terms_are_the_library_s(client: httpx.Client, index: Path, model: MMGEM) -> None:
    photo, path = photos(client)["0002.png"], index.parent / "photos" / "0002.png"
    opened = PhotoIndex.open(index)
    opened.load_embedder = lambda: model
    terms = [QueryTerm("red dog", weight=2), QueryTerm(image=path), QueryTerm("sea", weight=-0.5)]
    expected = opened.search_terms(terms, 4)
    body = [{"text": "red dog", "weight": 2}, {"photo": photo}, {"text": "sea", "weight": -0.5}]
    reply = ok(client.post("/search", json={"terms": body, "k": 4}))
    assert [hit["name"] for hit in reply["hits"]] == [hit.path.name for hit in expected]
    assert [hit["score"] for hit in reply["hits"]] == pytest.approx([h.score for h in expected], abs=1e-4)
    body[1] = {"image": data_uri(path.read_bytes())}
    assert ok(client.post("/search", json={"terms": body, "k": 1}))["hits"][0]["match"] is None
    least = expected[1].score
    kept = ok(client.post("/search", json={"terms": body, "min_score": least - 1e-4}))["hits"]
    assert all(hit["score"] >= least - 1e-4 for hit in kept) and kept


def test_copies_are_folded(client: httpx.Client, index: Path, model: MMGEM) -> None:
    opened, vector = PhotoIndex.open(index), model.embed_queries(["red dog"])[0]
    expected = fold_copies(opened, lambda count: opened.search(vector, count), 3)
    hits = ok(client.post("/search", json={"text": "red dog", "k": 3, "fold": True}))["hits"]
    assert [hit["name"] for hit in hits] == [hit.path.name for hit in expected]
    assert all(hit["copies"] >= best.copies for hit, best in zip(hits, expected, strict=True))
    every = ok(client.post("/search", json={"text": "red dog", "k": 8}))["hits"]
    assert {hit["copies"] for hit in every} == {0} and len(every) == 8


def test_rerank_is_the_library_s(client: httpx.Client, index: Path, model: MMGEM) -> None:
    expected = model.rerank(PhotoIndex.open(index), "red dog", 4)
    hits = ok(client.post("/search", json={"text": "red dog", "k": 4, "rerank": True}))["hits"]
    assert [hit["name"] for hit in hits] == [hit.path.name for hit in expected]
    assert [hit["log_prob"] for hit in hits] == pytest.approx([hit.log_prob for hit in expected], abs=1e-3)


@pytest.mark.parametrize("box", [None, [4, 4, 40, 30]])
def test_one_photo_named_in_three_ways_finds_the_same(
    client: httpx.Client, index: Path, box: list[int] | None
) -> None:
    photo = photos(client)["0002.png"]
    data = (index.parent / "photos" / "0002.png").read_bytes()
    mine = ok(client.post("/search", json={"photo": photo, "box": box, "k": 3}))["hits"]
    assert photo not in [hit["id"] for hit in mine]
    sent = ok(client.post("/search", json={"image": data_uri(data), "box": box, "k": 8}))["hits"]
    form = {"k": "8"} | ({"box": json.dumps(box)} if box else {})
    formed = ok(client.post("/search", files={"image": data}, data=form))["hits"]
    for others in (sent, formed):
        others = [hit for hit in others if hit["id"] != photo][:3]
        assert [hit["id"] for hit in others] == [hit["id"] for hit in mine]
        assert [hit["score"] for hit in others] == pytest.approx([hit["score"] for hit in mine], abs=1e-4)


def test_captions_are_the_library_s(client: httpx.Client, index: Path, model: MMGEM) -> None:
    path = index.parent / "photos" / "0001.png"
    boxes = [(0.0, 0.0, 24.0, 18.0), (10.0, 4.0, 48.0, 36.0)]
    whole = ok(client.post("/caption", json={"photo": photos(client)["0001.png"]}))
    (made,) = model.caption_with_confidence([path])
    told = {"box": None, "text": made.text, "log_prob": pytest.approx(made.log_prob, abs=1e-4)}
    assert whole["captions"] == [told | {"confidence": None}]
    assert (whole["width"], whole["height"]) == (48, 36)
    some = ok(client.post("/caption", files={"image": path.read_bytes()}, data={"boxes": json.dumps(boxes)}))
    assert [row["text"] for row in some["captions"]] == model.caption([path, path], boxes)


def test_classes_are_the_library_s(client: httpx.Client, index: Path, model: MMGEM) -> None:
    path, names = index.parent / "photos" / "0001.png", ["dog", "cat", "boat"]
    shares = classify(
        model.embed_images([path]), class_embeddings(model.embed_texts, names), model.temperature
    )
    form = {"classes": json.dumps(names), "top": "3"}
    guesses = ok(client.post("/classify", files={"image": path.read_bytes()}, data=form))["guesses"]
    assert {g["class"]: g["probability"] for g in guesses} == pytest.approx(
        dict(zip(names, shares[0].tolist(), strict=True)), abs=1e-3
    )


def test_regions_come_from_the_index_or_are_found(client: httpx.Client, index: Path, model: MMGEM) -> None:
    path = index.parent / "photos" / "0005.png"
    stored = ok(client.get(f"/regions?photo={photos(client)['0005.png']}&count=3&captions=true"))["regions"]
    boxes, _ = model.find_regions([path], 4)[0]
    assert [tuple(row["box"]) for row in stored] == boxes[:3]
    assert [row["caption"] for row in stored] == model.caption([path] * 3, boxes[:3])
    regions = ok(client.post("/regions", json={"image": data_uri(path.read_bytes()), "count": 3}))["regions"]
    assert [tuple(row["box"]) for row in regions] == boxes[:3]


def test_heat_map_as_numbers_and_as_a_picture(client: httpx.Client, index: Path, model: MMGEM) -> None:
    path, photo = index.parent / "photos" / "0005.png", photos(client)["0005.png"]
    reply = ok(client.post("/heatmap", json={"photo": photo, "text": "red dog", "cells": 7}))
    assert np.array(reply["heat"]) == pytest.approx(model.heatmap(path, ["red dog"], 7)[0], abs=1e-3)
    assert reply["match"] is None  # not calibrated
    drawn = client.post("/heatmap", json={"photo": photo, "text": "red dog", "format": "png", "side": 64})
    assert Image.open(io.BytesIO(drawn.content)).size == (48, 36)


def test_the_corpus_is_searched_and_asked(client: httpx.Client, corpus: SelfRetrieval) -> None:
    (expected,) = corpus.search(["dog near the boat"], 3)
    reply = ok(client.post("/corpus/search", json={"query": "dog near the boat", "k": 3}))
    assert [hit["id"] for hit in reply["hits"]] == [hit.id for hit in expected]
    answer = corpus.ask("dog near the boat")
    answer_reply = ok(client.post("/corpus/ask", json={"query": "dog near the boat"}))
    assert (answer_reply["answer"], answer_reply["source"]) == (answer.text, answer.source)


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/search", {}, 422, "invalid_value"),
        ("/search", {"text": " "}, 422, "invalid_value"),
        ("/search", {"text": "a", "k": 0}, 422, "invalid_value"),
        ("/search", {"text": "a", "k": "3"}, 422, "invalid_value"),
        ("/search", {"text": "a", "unknown": 1}, 422, "invalid_value"),
        ("/search", {"text": "a", "": 1}, 422, "invalid_value"),
        ("/search", {"text": "a", "where": "left"}, 422, "invalid_value"),
        ("/search", {"text": "a", "filters": {"date": "soon"}}, 422, "invalid_value"),
        ("/search", {"text": "a", "filters": {"size": 1}}, 422, "invalid_value"),
        ("/search", {"text": "a", "filters": {"folder": "../x"}}, 422, "invalid_value"),
        ("/search", {"text": "a", "terms": [{"text": "b"}]}, 422, "invalid_value"),
        ("/search", {"terms": [{"text": "b", "weight": -1}]}, 422, "invalid_value"),
        ("/search", {"terms": [{"text": "b"}], "rerank": True}, 422, "invalid_value"),
        ("/search", {"text": "a", "regions": True, "where": "above"}, 422, "invalid_value"),
        ("/search", {"photo": "../../etc/passwd"}, 422, "invalid_value"),
        ("/search", {"photo": "0" * 16}, 404, "not_found"),
        ("/search", {"image": "http://127.0.0.1/a.jpg"}, 422, "bad_image"),
        ("/search", {"image": "file:///etc/passwd"}, 422, "bad_image"),
        ("/caption", {"image": "data:image/png;base64,AAAA"}, 422, "bad_image"),
        ("/caption", {"image": data_uri(picture()), "boxes": [[9, 9, 3, 3]]}, 422, "invalid_value"),
        ("/caption", {"image": data_uri(picture()), "boxes": [[90, 90, 99, 99]]}, 422, "invalid_value"),
        ("/classify", {"image": data_uri(picture()), "classes": ["dog"]}, 422, "invalid_value"),
        ("/v1/embeddings", {"input": "a", "model": "other"}, 404, "model_not_found"),
        ("/v1/embeddings", {"input": "a", "dimensions": 9999}, 422, "invalid_value"),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, 422, "invalid_value"),
    ],
)
def test_what_cannot_be_is_refused(
    client: httpx.Client, path: str, body: dict[str, Any], status: int, code: str
) -> None:
    assert refused(client.post(path, json=body)) == (status, code)


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"input": []}, "input: List should have at least 1 item after validation, not 0", "input"),
        ({"input": 5}, "input: must be a text, a list of texts and parts, or token ids", "input"),
        (
            {"input": ["a", [1, 2, 3]]},
            "input.1: must be a text, or a part of type text or image_url",
            "input.1",
        ),
        ({"input": ["a", ""]}, "input.1: String should have at least 1 character", "input.1"),
        ({"input": [{"type": "text"}]}, "input.0.text: Field required", "input.0.text"),
        ({"messages": [{"role": "user", "content": 5}]}, "must be a text, or a list of parts", None),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content.0.image_url: Field required",
            "messages.0.content.0.image_url",
        ),
    ],
)
def test_what_is_wrong_is_said_of_the_field(
    client: httpx.Client, body: dict[str, Any], message: str, param: str | None
) -> None:
    path = "/v1/embeddings" if "input" in body else "/v1/chat/completions"
    error = client.post(path, json=body).json()["error"]
    assert error["message"].endswith(message) and param in (None, error["param"])


def test_a_photo_that_goes_while_it_is_sent(client: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed(photo: PhotoSource) -> str:
        raise ImageError(f"{photo.data}: No such file or directory")

    photo = next(iter(photos(client).values()))
    monkeypatch.setattr("mmgem.serve.routes.photos.media_type", removed)
    assert refused(client.get(f"/photos/{photo}")) == (404, "not_found")


def test_bodies_that_are_no_json(client: httpx.Client) -> None:
    as_json = {"content-type": "application/json"}
    assert refused(client.post("/search", content=b"{", headers=as_json)) == (400, "bad_json")
    assert refused(client.post("/search", content=b"\xff", headers=as_json))[0] == 400
    assert refused(client.post("/search", content=b"a=1")) == (415, "unsupported_media_type")
    surrogate = b'{"text": "\\ud800", "\\ud800": 1}'
    assert refused(client.post("/search", content=surrogate, headers=as_json))[0] in (400, 422)
    assert refused(client.get("/nowhere")) == (404, "not_found")
    assert refused(client.put("/search")) == (405, "method_not_allowed")


def test_head_is_get_without_a_body(client: httpx.Client) -> None:
    photo = next(iter(photos(client).values()))
    for path in ("/healthz", "/photos", f"/photos/{photo}", f"/photos/{photo}/thumb", "/docs", "/"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"]
    assert client.head("/search").status_code == 405
    assert (
        'mmgem_requests_total{method="HEAD",route="/photos",status="200"} 1.0' in client.get("/metrics").text
    )


def test_any_words_and_names_go_through(model: MMGEM, tmp_path: Path) -> None:
    save_photos(tmp_path / "photos", 1)
    strange = tmp_path / "photos" / "дом \u202e 🐕 \ue000.png"
    (tmp_path / "photos" / "0000.png").rename(strange)
    update_index(tmp_path / "idx", tmp_path / "photos", lambda: model, model.fingerprint)
    with serving(model, tmp_path / "idx") as (client, _):
        assert list(photos(client)) == [strange.name]
        for text in ("собака", "犬 🐕‍🦺", "a\u0000b", "\u202e"):
            reply = ok(client.post("/search", json={"text": text}))
            assert reply["query"]["text"] == text and reply["hits"][0]["name"] == strange.name


def test_what_is_not_served_is_said(model: MMGEM) -> None:
    with serving(model) as (client, _):
        assert refused(client.post("/search", json={"text": "a"})) == (404, "no_index")
        assert refused(client.post("/corpus/ask", json={"query": "a"})) == (404, "no_corpus")
        assert ok(client.get("/info"))["index"] is None


def test_documents_and_figures(client: httpx.Client) -> None:
    openapi = ok(client.get("/openapi.json"))
    assert "/v1/embeddings" in openapi["paths"] and "SearchRequest" in openapi["components"]["schemas"]
    page = client.get("/docs")
    assert "POST /heatmap" in page.text and "<script" not in page.text
    for header in ("content-security-policy", "x-content-type-options"):
        assert header in page.headers
    ok(client.post("/search", json={"text": "a red dog"}))
    figures = client.get("/metrics").text
    assert 'mmgem_requests_total{method="POST",route="/search",status="200"}' in figures
    assert "mmgem_index_photos 8.0" in figures


def test_the_index_grows_while_it_is_served(
    model: MMGEM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mmgem.serve.index_watcher._POLL_SECONDS", 0.05)
    save_photos(tmp_path / "photos", 3)

    def grow() -> None:
        update_index(tmp_path / "idx", tmp_path / "photos", lambda: model, model.fingerprint)

    grow()
    with serving(model, tmp_path / "idx") as (client, _):
        before = photos(client)
        save_photo(tmp_path / "photos" / "new.png", seed=99)
        grow()
        ends = time.monotonic() + 10
        while len(after := photos(client)) == 3 and time.monotonic() < ends:
            time.sleep(0.05)
        assert set(after) == {*before, "new.png"} and before.items() <= after.items()
        hits = ok(client.post("/search", json={"image": data_uri(picture(99)), "k": 1}))["hits"]
        assert hits[0]["name"] == "new.png"
        (tmp_path / "photos" / "new.png").unlink()
        assert refused(client.get(f"/photos/{after['new.png']}")) == (404, "not_found")
