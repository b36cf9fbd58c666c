"""An index with regions: each found with its box, restricted to a place, kept up to date like photos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_index import PixelEmbedder, paint, vector

from mmgem.data.images import open_image
from mmgem.errors import SearchIndexError, UsageError
from mmgem.search.index import update_index
from mmgem.search.search import PhotoIndex
from mmgem.search.spatial_filter import parse_spatial_filter


class RegionEmbedder(PixelEmbedder):
    """Also finds the quarters of a photo."""

    def find_regions(self, images: Sequence[Path], count: int) -> list[tuple[list[Any], np.ndarray]]:
        found = []
        for path in images:
            image = open_image(path)
            half = image.width // 2
            boxes = [(x, y, x + half, y + half) for y in (0, half) for x in (0, half)][:count]
            thumbs = [np.asarray(image.crop(b).resize((4, 4)), np.float32).ravel() - 127.5 for b in boxes]
            found.append((boxes, np.stack([t / np.linalg.norm(t) for t in thumbs])))
        return found


def test_regions_are_found_with_their_boxes(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for seed in range(6):
        paint(photos / f"{seed}.png", seed)
    embedder = RegionEmbedder()
    update_index(tmp_path / "idx", photos, lambda: embedder, embedder.fingerprint, regions=4)
    index = PhotoIndex.open(tmp_path / "idx")
    assert (index.regions, len(index)) == (4, 30)
    boxes, vectors = embedder.find_regions([photos / "3.png"], 4)[0]
    for box, query in zip(boxes, vectors, strict=True):
        hits = index.search_regions(query, 3)
        assert len({hit.path for hit in hits}) == len(hits) == 3
        assert (hits[0].path.name, hits[0].box) == ("3.png", tuple(box))
        assert hits[0].score == pytest.approx(1, abs=1e-5)
    corner = index.search_regions(vectors[0], 6, parse_spatial_filter("bottom-right"))
    assert {hit.box for hit in corner} == {(4, 4, 8, 8)}
    assert len(corner) == 6
    # Whole photos are found as ever, and adding a photo embeds that photo.
    assert all(hit.box is None for hit in index.search(embedder.embed_images([photos / "1.png"])[0], 10))
    paint(photos / "new.png", 9)
    report = update_index(tmp_path / "idx", photos, lambda: embedder, embedder.fingerprint)
    assert (report.embedded, report.unchanged) == (1, 6)
    assert len(PhotoIndex.open(tmp_path / "idx")) == 35
    with pytest.raises(SearchIndexError, match="made with 4 regions a photo, not 3"):
        update_index(tmp_path / "idx", photos, lambda: embedder, embedder.fingerprint, regions=3)


def test_an_index_without_regions_says_so(tmp_path: Path) -> None:
    paint(tmp_path / "photos" / "0.png", 0)
    embedder = PixelEmbedder()
    update_index(tmp_path / "idx", tmp_path / "photos", lambda: embedder, embedder.fingerprint)
    with pytest.raises(UsageError, match="has no regions"):
        PhotoIndex.open(tmp_path / "idx").search_regions(vector(0))


def test_many_regions_of_an_earlier_version_become_short_without_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "idx"
    for seed in range(12):
        paint(photos / f"{seed}.png", seed)
    embedder = RegionEmbedder()

    def update() -> tuple[int, bool]:
        report = update_index(out, photos, lambda: embedder, embedder.fingerprint, regions=4)
        return report.embedded, report.shortened

    assert update() == (12, False)
    boxes, vectors = embedder.find_regions([photos / "3.png"], 4)[0]
    before = [PhotoIndex.open(out).search_regions(query, 1)[0] for query in vectors]
    monkeypatch.setattr("mmgem.search.region_rows.SHORT_FROM", 50)
    assert update() == (0, True)
    assert update() == (0, False)
    index = PhotoIndex.open(out)
    assert len(index) == 12 and index.boxes_of(photos / "3.png") == boxes
    for query, hit in zip(vectors, before, strict=True):
        (found,) = index.search_regions(query, 1)
        assert (found.path, found.box) == (hit.path, hit.box)
        assert found.score == pytest.approx(hit.score, abs=0.02)
