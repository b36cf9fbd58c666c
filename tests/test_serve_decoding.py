"""The server decodes as everything else does: phones' photos of several pictures, and very large ones."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import data_uri, serving
from test_decoding import encode

from mmgem import MMGEM
from mmgem.search.index import update_index

SIZE = (1600, 1200)


def jpegs() -> tuple[bytes, bytes]:
    """A photo as a plain JPEG, and the same pixels as the first of an MPO."""
    colours = np.random.default_rng(3).integers(0, 256, (3, 4, 3), np.uint8)
    image = Image.fromarray(colours).resize(SIZE, Image.Resampling.NEAREST)
    second = Image.new("RGB", SIZE, "white")
    mpo = encode(image, "MPO", save_all=True, append_images=[second], quality=90)
    return encode(image, "JPEG", quality=90), mpo


@pytest.fixture(scope="module")
def client(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    model, folder = MMGEM.from_pretrained(tiny_model_folder), tmp_path_factory.mktemp("phones")
    (folder / "photos").mkdir()
    (folder / "photos" / "mpo.jpg").write_bytes(jpegs()[1])
    update_index(folder / "idx", folder / "photos", lambda: model, model.fingerprint)
    with serving(model, folder / "idx", megapixels=5) as (client, _):
        yield client


def test_boxes_of_an_mpo_are_those_of_its_first_picture(client: httpx.Client) -> None:
    plain, mpo = (
        client.post("/regions", json={"image": data_uri(data), "count": 4}).raise_for_status().json()
        for data in jpegs()
    )
    assert Image.open(io.BytesIO(jpegs()[1])).format == "MPO"
    assert [row["box"] for row in mpo["regions"]] == [row["box"] for row in plain["regions"]]
    assert max(row["box"][2] for row in mpo["regions"]) > SIZE[0] / 2  # pixels of the photo as it is stored
    box = [SIZE[0] - 300, SIZE[1] - 300, SIZE[0], SIZE[1]]  # outside of any smaller copy
    replies = [client.post("/caption", json={"image": data_uri(d), "boxes": [box]}) for d in jpegs()]
    texts = [reply.raise_for_status().json() for reply in replies]
    assert texts[0]["captions"] == texts[1]["captions"]


def test_an_mpo_is_served_as_a_jpeg(client: httpx.Client) -> None:
    (photo,) = client.get("/photos").json()["photos"]
    reply = client.get(f"/photos/{photo['id']}")
    assert reply.headers["content-type"] == "image/jpeg"


def test_the_limit_of_megapixels_is_of_what_is_decoded(client: httpx.Client) -> None:
    large = Image.new("L", (4200, 4100), 90)  # 17 megapixels, of which a quarter is decoded
    as_jpeg = {"image": ("a.jpg", encode(large, "JPEG", quality=30))}
    assert client.post("/caption", files=as_jpeg).status_code == 200
    for data in (encode(large, "PNG"), encode(large, "JPEG", quality=30, progressive=True)):
        reply = client.post("/caption", files={"image": ("a", data)})
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "too_many_pixels")
    huge = encode(Image.new("L", (6600, 6600), 90), "JPEG", quality=30)  # over 8 times the limit
    assert client.post("/caption", files={"image": ("a.jpg", huge)}).status_code == 413
