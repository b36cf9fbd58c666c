"""Moments over HTTP: hits with seconds, their frames, and the clip itself in ranges."""

from __future__ import annotations

import io
from pathlib import Path

import films
import httpx
import pytest
from PIL import Image
from serving import serving
from test_clips import near
from test_serve_routes import ok
from tiny import save_photos

from mmgem import MMGEM
from mmgem.search.index import update_index
from mmgem.search.search import PhotoIndex


@pytest.fixture(scope="module")
def index(model: MMGEM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    save_photos(folder / "photos", 2)
    films.save_film(folder / "photos" / "film.mp4", (1, 2, 3))
    update_index(folder / "idx", folder / "photos", lambda: model, model.fingerprint)
    return folder / "idx"


def test_the_wall_has_a_photo_a_moment(client: httpx.Client, index: Path) -> None:
    body = ok(client.get("/photos"))
    rows = body["photos"]
    assert body["total"] == len(rows) == len({row["id"] for row in rows}) == 5
    moments = [(row["start"], row["end"]) for row in rows if row["name"] == "film.mp4"]
    opened = PhotoIndex.open(index)
    assert moments == sorted(moment for moment in opened.moments if moment is not None)
    assert [row["start"] for row in rows if row["name"] != "film.mp4"] == [None, None]


def test_hits_tell_seconds_as_the_library_does(client: httpx.Client, index: Path, model: MMGEM) -> None:
    hits = ok(client.post("/search", json={"text": "a dog", "k": 5}))["hits"]
    expected = PhotoIndex.open(index).search(model.embed_texts(["a dog"])[0], 5)
    assert [(h["name"], h["start"], h["end"]) for h in hits] == [
        (h.path.name, h.start, h.end) for h in expected
    ]
    assert all((h["width"], h["height"]) == films.SIZE for h in hits if h["start"] is not None)


def test_a_moment_is_looked_at_by_its_middle_frame(client: httpx.Client) -> None:
    row = next(r for r in ok(client.get("/photos"))["photos"] if r["start"] and r["start"] < 3)
    thumb = client.get(f"/photos/{row['id']}/thumb?side=80")
    assert near(Image.open(io.BytesIO(thumb.content)), films.scene(2, 0.5))
    body = ok(client.post("/caption", json={"photo": row["id"], "boxes": [[0, 0, 80, 96]]}))
    assert (body["width"], body["height"]) == films.SIZE and len(body["captions"]) == 1
    assert ok(client.get(f"/regions?photo={row['id']}"))["width"] == films.SIZE[0]
    hits = ok(client.post("/search", json={"photo": row["id"], "k": 9}))["hits"]
    assert len(hits) == 4 and row["id"] not in {hit["id"] for hit in hits}
    assert ok(client.post("/search", json={"photo": row["id"], "box": [0, 0, 80, 96], "k": 9}))["hits"]


def test_ranges_of_a_clip(client: httpx.Client, index: Path) -> None:
    row = next(r for r in ok(client.get("/photos"))["photos"] if r["start"] is not None)
    data = (index.parent / "photos" / "film.mp4").read_bytes()
    whole = client.get(f"/photos/{row['id']}")
    assert whole.status_code == 200 and whole.content == data
    assert whole.headers["content-type"] == "video/mp4" and whole.headers["accept-ranges"] == "bytes"
    part = client.get(f"/photos/{row['id']}", headers={"Range": "bytes=100-199"})
    assert part.status_code == 206 and part.content == data[100:200]
    assert part.headers["content-range"] == f"bytes 100-199/{len(data)}"
    tail = client.get(f"/photos/{row['id']}", headers={"Range": "bytes=-50"})
    assert tail.status_code == 206 and tail.content == data[-50:]
    beyond = client.get(f"/photos/{row['id']}", headers={"Range": f"bytes={len(data)}-"})
    assert beyond.status_code == 416
    assert "media-src 'self'" in client.get("/").headers["content-security-policy"]


def test_clips_are_behind_the_token_as_photos_are(model: MMGEM, index: Path) -> None:
    with serving(model, index, token="secret") as (client, _):
        headers = {"Authorization": "Bearer secret"}
        row = next(r for r in ok(client.get("/photos", headers=headers))["photos"] if r["start"] is not None)
        assert client.get(f"/photos/{row['id']}", headers={"Range": "bytes=0-9"}).status_code == 401
        reply = client.get(f"/photos/{row['id']}", headers={**headers, "Range": "bytes=0-9"})
        assert reply.status_code == 206 and len(reply.content) == 10


def test_a_clip_that_is_gone(model: MMGEM, tmp_path: Path) -> None:
    films.save_film(tmp_path / "photos" / "film.mp4", (1,))
    update_index(tmp_path / "idx", tmp_path / "photos", lambda: model, model.fingerprint)
    with serving(model, tmp_path / "idx") as (client, _):
        (row,) = ok(client.get("/photos"))["photos"]
        (tmp_path / "photos" / "film.mp4").unlink()
        for path in (f"/photos/{row['id']}", f"/photos/{row['id']}/thumb"):
            assert client.get(path).status_code == 404
        assert ok(client.post("/search", json={"text": "a dog"}))["hits"][0]["width"] is None
