"""What headers say of photos: read right, and never trusted."""

from __future__ import annotations

import random
import sqlite3
import struct
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image
from test_index import PixelEmbedder, paint, update

from mmgem.data.photo_metadata import PhotoMetadata, read_metadata
from mmgem.errors import ImageError, SearchIndexError
from mmgem.search.filters import Filters
from mmgem.search.index_metadata import wall_seconds
from mmgem.search.photo_table import PhotoTable
from mmgem.search.search import PhotoIndex


def save_exif(
    path: Path,
    taken: object = "2021:05:17 12:30:00",
    make: object = "Canon",
    model: object = "Canon EOS 80D",
    place: tuple[object, ...] | None = ("N", (48.0, 8.0, 30.0), "E", (11.0, 34.0, 12.0)),
    orientation: int = 1,
    size: tuple[int, int] = (60, 40),
    seed: int = 0,
) -> Path:
    """A photo with EXIF."""
    exif = Image.Exif()
    for tag, value in ((ExifTags.Base.Make, make), (ExifTags.Base.Model, model)):
        if value is not None:
            exif[tag] = value
    exif[ExifTags.Base.Orientation] = orientation
    if taken is not None:
        exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = taken
    if place is not None:
        exif.get_ifd(ExifTags.IFD.GPSInfo).update(dict(enumerate(place, 1)))
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = tuple(random.Random(seed).randbytes(3))
    Image.new("RGB", size, colour).save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_every_field(tmp_path: Path, suffix: str) -> None:
    found = read_metadata(save_exif(tmp_path / f"a.{suffix}", orientation=6))
    assert (found.width, found.height) == (40, 60)
    assert (found.taken, found.camera) == (datetime(2021, 5, 17, 12, 30), "Canon EOS 80D")
    assert found.latitude == pytest.approx(48 + 8 / 60 + 30 / 3600)
    assert found.longitude == pytest.approx(11 + 34 / 60 + 12 / 3600)


def test_south_and_west_are_negative(tmp_path: Path) -> None:
    found = read_metadata(
        save_exif(tmp_path / "a.jpg", place=("S", (33.5, 0.0, 0.0), "W", (70.0, 30.0, 0.0)))
    )
    assert (found.latitude, found.longitude) == (-33.5, -70.5)


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ("0000:00:00 00:00:00", None),
        ("2021:02:30 10:00:00", None),
        ("    :  :     :  :  ", None),
        ("", None),
        ("2021-05-17T12:30:59+02:00", datetime(2021, 5, 17, 12, 30, 59)),
        ("1601:01:01 00:00:00", None),
        ("2021:05:17", None),
    ],
)
def test_dates_that_are_none(tmp_path: Path, taken: str, expected: datetime | None) -> None:
    assert read_metadata(save_exif(tmp_path / "a.jpg", taken=taken)).taken == expected


@pytest.mark.parametrize(
    "place",
    [
        ("N", (0.0, 0.0, 0.0), "E", (0.0, 0.0, 0.0)),
        ("N", (91.0, 0.0, 0.0), "E", (0.0, 0.0, 0.0)),
        ("N", (48.0, 0.0, 0.0)),
        ("N", (48.0, 8.0), "E", (200.0, 0.0)),
    ],
)
def test_places_that_are_none(tmp_path: Path, place: tuple[object, ...]) -> None:
    found = read_metadata(save_exif(tmp_path / "a.jpg", place=place))
    assert (found.latitude, found.longitude) == (None, None) and found.taken is not None


def test_cameras(tmp_path: Path) -> None:
    for make, model, camera in (
        ("NIKON CORPORATION", "NIKON D750", "NIKON D750"),
        ("Apple", "iPhone 12", "Apple iPhone 12"),
        ("samsung", None, "samsung"),
        (None, None, None),
        ("\0\0 x\x07y ", "z\0rubbish", None),
    ):
        found = read_metadata(save_exif(tmp_path / "a.jpg", make=make, model=model)).camera
        assert found == camera or (make or "").startswith("\0")
        assert found is None or found.isprintable()


def test_no_damage_to_exif_is_an_error(tmp_path: Path) -> None:
    data = bytearray(save_exif(tmp_path / "a.jpg").read_bytes())
    start = data.index(b"Exif\0\0") + 6
    length = struct.unpack(">H", data[start - 8 : start - 6])[0] - 8
    rng = random.Random(0)
    for _ in range(300):
        spoiled = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            spoiled[start + rng.randrange(length)] = rng.randrange(256)
        found = read_metadata(bytes(spoiled))
        assert {found.width, found.height} == {60, 40}
        assert found.latitude is None or abs(found.latitude) <= 90


def test_what_is_no_photo_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="is empty"):
        read_metadata(b"")


def test_an_index_keeps_them(tmp_path: Path) -> None:
    save_exif(tmp_path / "photos" / "with.jpg", size=(60, 40))
    paint(tmp_path / "photos" / "without.png", 3)
    update(tmp_path / "idx", tmp_path / "photos")
    rows = facts(tmp_path / "idx")
    assert rows[b"with.jpg"] == (wall_seconds(datetime(2021, 5, 17, 12, 30)), 1, "Canon EOS 80D", 60, 40)
    modified = datetime.fromtimestamp((tmp_path / "photos" / "without.png").stat().st_mtime)
    assert rows[b"without.png"] == (wall_seconds(modified), 0, None, 8, 8)


def facts(out: Path) -> dict[bytes, tuple[object, ...]]:
    table = PhotoTable(out)
    return {
        path: (known["taken"], not np.isnan(taken), known["camera"], *size)
        for (path, known), taken, *size in zip(
            table.facts().items(), table.taken, table.width, table.height, strict=True
        )
    }


def test_an_index_of_before_gets_them_without_embedding(tmp_path: Path) -> None:
    for number in range(3):
        save_exif(tmp_path / "photos" / f"{number}.jpg", seed=number)
    out = tmp_path / "idx"
    update(out, tmp_path / "photos")
    expected = facts(out)
    with sqlite3.connect(out / "photos.sqlite3") as db:
        db.execute("DROP TABLE metadata")
        db.execute("UPDATE contents SET width = NULL, height = NULL")
    db.close()
    index = PhotoIndex.open(out)
    assert len(index.filtered(Filters(name="1.*"))) == 1  # needs no more than the path
    with pytest.raises(
        SearchIndexError, match=r"an earlier version made it.*run: mmgem index .*photos --out"
    ):
        index.filtered(Filters(date="2021"))
    embedder = PixelEmbedder()
    report, embedded = update(out, tmp_path / "photos", embedder)
    assert embedded == [] and report.unchanged == 3 and facts(out) == expected
    assert len(PhotoIndex.open(out).filtered(Filters(date="2021"))) == 3


def test_metadata_goes_with_its_photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmgem.search.index_store._MIN_DEAD_ROWS", 1)
    for number in range(3):
        save_exif(tmp_path / "photos" / f"{number}.jpg", seed=number)
    out = tmp_path / "idx"
    update(out, tmp_path / "photos")
    (tmp_path / "photos" / "0.jpg").unlink()
    (tmp_path / "photos" / "1.jpg").rename(tmp_path / "photos" / "new.jpg")
    update(out, tmp_path / "photos")
    with sqlite3.connect(out / "photos.sqlite3") as db:
        assert db.execute("SELECT count(*) FROM metadata").fetchone() == (2,)
    db.close()
    assert facts(out)[b"new.jpg"][2] == "Canon EOS 80D"


def test_a_default_is_unknown() -> None:
    assert PhotoMetadata(1, 2).taken is None
