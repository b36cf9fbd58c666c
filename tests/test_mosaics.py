"""Mosaics: photos pasted where the boxes say, without touching, the same on every run, all used evenly."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgem.data.mosaics import make_mosaics, scatter
from mmgem.data.records import Record, read_jsonl
from mmgem.errors import DataError, UsageError


def flat_photos(folder: Path, count: int = 12, size: tuple[int, int] = (40, 30)) -> list[Record]:
    """Photos of one colour each, far apart, so that a pixel says which photo it is of."""
    folder.mkdir(exist_ok=True)
    made = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.new("RGB", size, colour(i)).save(path)
        made.append(Record(path, (f"photo {i}", f"picture {i}"), split="dev"))
    return made


def colour(i: int) -> tuple[int, int, int]:
    return (20 + 200 * (i % 2), 20 + 50 * (i // 2 % 5), 20 + 80 * (i // 10))


def test_boxes_hold_their_photos(tmp_path: Path) -> None:
    photos = flat_photos(tmp_path / "photos")
    path, problems = make_mosaics(photos, tmp_path / "out", 30, side=128)
    records = read_jsonl(path, split="dev")
    assert len(records) == 30
    assert not problems
    for record in records:
        assert record.captions == ()
        assert 2 <= len(record.regions) <= 4
        canvas = np.asarray(Image.open(record.image)).astype(int)
        assert canvas.shape == (128, 128, 3)
        for region in record.regions:
            x0, y0, x1, y1 = map(int, region.box)
            assert 0 <= x0 < x1 <= 128
            assert 0 <= y0 < y1 <= 128
            assert (x1 - x0) / (y1 - y0) == pytest.approx(4 / 3, rel=0.1)
            number = int(Path(region.meta["photo"]).stem)
            assert region.captions == (f"photo {number}", f"picture {number}")
            inside = canvas[y0 + 4 : y1 - 4, x0 + 4 : x1 - 4]
            assert np.abs(inside - colour(number)).max() < 24


def test_the_same_command_gives_the_same_set(tmp_path: Path) -> None:
    photos = flat_photos(tmp_path / "photos")
    one, two = (make_mosaics(photos, tmp_path / name, 6, seed=5)[0] for name in "ab")
    assert one.read_text() == two.read_text()
    for image in sorted((tmp_path / "a" / "images").iterdir()):
        assert image.read_bytes() == (tmp_path / "b" / "images" / image.name).read_bytes()
    other, _ = make_mosaics(photos, tmp_path / "c", 6, seed=6)
    assert other.read_text() != one.read_text()


def test_photos_are_used_evenly_and_once_a_canvas(tmp_path: Path) -> None:
    path, _ = make_mosaics(flat_photos(tmp_path / "photos", 7), tmp_path / "out", 40, side=64)
    used: Counter[str] = Counter()
    for record in read_jsonl(path):
        names = [region.meta["photo"] for region in record.regions]
        assert len(set(names)) == len(names)
        used.update(names)
    assert max(used.values()) - min(used.values()) <= 2


def test_twins_hold_the_same_photos_elsewhere(tmp_path: Path) -> None:
    path, _ = make_mosaics(flat_photos(tmp_path / "photos"), tmp_path / "out", 20, twins=True)
    records = read_jsonl(path)
    for one, two in zip(records[::2], records[1::2], strict=True):
        assert [r.meta["photo"] for r in one.regions] == [r.meta["photo"] for r in two.regions]
        assert all(a.box != b.box for a, b in zip(one.regions, two.regions, strict=True))


@pytest.mark.parametrize("count", [2, 3, 4])
def test_places_do_not_touch(count: int) -> None:
    rng = np.random.default_rng(count)
    for _ in range(50):
        boxes = scatter(rng, rng.uniform(0.3, 3, count).tolist())
        for i, (ax0, ay0, ax1, ay1) in enumerate(boxes):
            assert 0 <= ax0 < ax1 <= 1
            assert 0 <= ay0 < ay1 <= 1
            for bx0, by0, bx1, by1 in boxes[:i]:
                assert ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0


def test_photos_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    photos = flat_photos(tmp_path / "photos")
    photos[3].image.write_bytes(b"not a photo")
    path, problems = make_mosaics(photos, tmp_path / "out", 12)
    assert len(problems) == 1
    assert "3.png" in problems[0]
    assert all("3.png" not in r.meta["photo"] for record in read_jsonl(path) for r in record.regions)


def test_bad_arguments(tmp_path: Path) -> None:
    photos = flat_photos(tmp_path / "photos", 2)
    with pytest.raises(UsageError, match="1 captioned photos are too few"):
        make_mosaics([photos[0], Record(photos[1].image)], tmp_path, 1)
    with pytest.raises(UsageError, match="count must be at least 1"):
        make_mosaics(photos, tmp_path, 0)
    for photo in photos:
        photo.image.unlink()
    with pytest.raises(DataError, match="no mosaic can be made"):
        make_mosaics(photos, tmp_path / "out", 2)


def test_what_is_no_mosaic_is_not_replaced(tmp_path: Path) -> None:
    photos = flat_photos(tmp_path / "photos")
    out = tmp_path / "own"
    (out / "images").mkdir(parents=True)
    (out / "images" / "000000.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="own: holds other things than mosaics"):
        make_mosaics(photos, out, 4)
    assert (out / "images" / "000000.jpg").read_bytes() == b"mine"
    (out / "images" / "000000.jpg").unlink()
    (out / "images").rmdir()
    make_mosaics(photos, out, 8)
    path, _ = make_mosaics(photos, out, 4, seed=1)
    assert len(read_jsonl(path)) == 4 == len(list((out / "images").iterdir()))
