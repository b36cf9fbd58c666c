"""Filters: alone and two together they find what brute force finds."""

from __future__ import annotations

import fnmatch
import math
import os
import random
import sqlite3
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_hnsw import units

from mmgem.data.photo_metadata import PhotoMetadata
from mmgem.errors import UsageError
from mmgem.search.filters import EARTH_RADIUS, Filters, parse_near, parse_period
from mmgem.search.index_store import HashedFile, IndexStore, NewContent
from mmgem.search.search import PhotoIndex
from mmgem.search.stores import open_store
from mmgem.search.stores.base import search_store
from mmgem.search.stores.push import push

COUNT = 400
FOLDERS = ("", "2021/", "2021/summer/", "2021/summer_2/", "2021/summer/sea/", "Été %_'/", "z\udce9/")
NAMES = (
    "IMG_{}.jpg",
    "img_{}.JPG",
    "DSC{}.jpeg",
    "Ähre {}.png",
    "100%_{}.gif",
    "a*b[{}].jpg",
    "\udce9{}.jpg",
)
CAMERAS = (None, "Canon EOS 80D", "NIKON D750", "Apple iPhone 12", "50% _'\\ cam")
PLACES = ((48.1, 11.5), (48.2, 11.6), (-33.9, 151.2), (89.9, 10.0), (0.1, 179.95), (0.1, -179.95))

Photo = tuple[str, PhotoMetadata, float]


def made_photos(count: int, rng: random.Random) -> list[Photo]:
    """Paths, metadata and times of modification (seconds) of so many photos, all kinds of them."""
    photos: list[Photo] = []
    for number in range(count):
        path = rng.choice(FOLDERS) + rng.choice(NAMES).format(number % 1000 if count < 2000 else number)
        moment = datetime(2019, 1, 1) + timedelta(seconds=rng.randrange(3 * 365 * 86400))
        place = rng.choice(PLACES) if rng.random() < 0.7 else None
        latitude, longitude = (None, None)
        if place is not None:
            latitude = max(-90.0, min(90.0, place[0] + rng.gauss(0, 0.1)))
            longitude = (place[1] + rng.gauss(0, 0.1) + 180) % 360 - 180
        size = rng.choice(((4000, 3000), (3000, 4000), (1000, 1000), (640, 480), (1920, 1080)))
        taken = moment if rng.random() < 0.6 else None
        metadata = PhotoMetadata(*size, taken, rng.choice(CAMERAS), latitude, longitude)
        photos.append((path, metadata, (moment + timedelta(days=rng.randrange(400))).timestamp()))
    return list({path: (path, *rest) for path, *rest in photos}.values())  # type: ignore[misc]


def write_index(out: Path, photos: list[Photo], vectors: np.ndarray) -> None:
    """An index of photos that are no files."""
    with IndexStore(out, "f") as store:
        store.set_source(Path("/photos"), "tiny")
        contents, files = [], []
        for number, ((path, metadata, modified), vector) in enumerate(zip(photos, vectors, strict=True)):
            digest = number.to_bytes(32, "big")
            size = metadata.width, metadata.height
            contents.append(NewContent(digest, vector[None], (None,), size=size, metadata=metadata))
            files.append(HashedFile(path, 1, int(modified * 1e9), digest))
        store.record(contents, files)


@cache
def stocked() -> tuple[PhotoIndex, list[Photo], np.ndarray]:
    import tempfile

    photos = made_photos(COUNT, random.Random(0))
    vectors = units(len(photos))
    out = Path(tempfile.mkdtemp()) / "idx"
    write_index(out, photos, vectors)
    return PhotoIndex.open(out), photos, vectors


def passes(photo: Photo, filters: Filters) -> bool:
    """What the docs say a filter is, one photo at a time."""
    path, found, modified = photo
    folder, _, name = path.rpartition("/")
    if filters.folder is not None:
        wanted = os.path.normpath(filters.folder).removeprefix("/photos").strip("/")
        if wanted not in ("", ".") and not (folder + "/").startswith(wanted + "/"):
            return False
    if filters.name is not None:
        text, pattern = (
            name.encode("utf-8", "surrogateescape").decode("utf-8", "replace").casefold(),
            filters.name.casefold(),
        )
        if not fnmatch.fnmatchcase(text, pattern.replace("[", "[[]")):
            return False
    if filters.date is not None:
        start, end = parse_period(filters.date)
        moment = found.taken or datetime.fromtimestamp(int(modified))
        if (start and moment < start) or (end and moment >= end):
            return False
    if filters.changed is not None:
        start, end = parse_period(filters.changed)
        moment = datetime.fromtimestamp(int(modified))
        if (start and moment < start) or (end and moment >= end):
            return False
    known = {"place": found.latitude, "camera": found.camera, "date": found.taken}
    if filters.lacks is not None and known[filters.lacks] is not None:
        return False
    if filters.camera is not None and filters.camera.lower() not in (found.camera or "\0").lower():
        return False
    ratio = {"landscape": found.width > found.height, "portrait": found.width < found.height}
    if filters.orientation is not None and not ratio.get(filters.orientation, found.width == found.height):
        return False
    if found.width < (filters.min_width or 0) or found.height < (filters.min_height or 0):
        return False
    if filters.near is not None:
        if found.latitude is None or found.longitude is None:
            return False
        latitude, longitude, distance = parse_near(filters.near)
        return abs(arc(latitude, longitude, found.latitude, found.longitude)) <= distance
    return True


def arc(lat0: float, lon0: float, lat1: float, lon1: float) -> float:
    """Metres along a great circle, by vectors."""
    points = []
    for latitude, longitude in ((lat0, lon0), (lat1, lon1)):
        a, b = math.radians(latitude), math.radians(longitude)
        points.append(np.array([math.cos(a) * math.cos(b), math.cos(a) * math.sin(b), math.sin(a)]))
    across = float(np.linalg.norm(np.cross(*points)))
    return EARTH_RADIUS * math.atan2(across, float(points[0] @ points[1]))


def spelled(day: datetime, form: str) -> str:
    return day.strftime(form)


days = st.datetimes(datetime(2018, 6, 1), datetime(2022, 6, 1))
dates = st.builds(spelled, days, st.sampled_from(("%Y", "%Y-%m", "%Y-%m-%d")))
spans = st.tuples(dates, dates).map(sorted).map("..".join).filter(lambda text: text.split("..")[0] != "")
CHOICES = {
    "folder": st.sampled_from(
        (
            "2021",
            "2021/summer",
            "2021/summer/",
            "./2021",
            "2021/../2021",
            ".",
            "no",
            "Été %_'",
            "z\udce9",
            "/photos/2021/summer",
            "/photos",
            "/elsewhere",
        )
    ),
    "name": st.sampled_from(
        ("IMG_*", "img_1?.jpg", "*.JPG", "*1*2*", "ä*", "100%*", "100%_?.gif", "a*[*", "*", "?1.jpg", "*\\*")
    ),
    "date": dates | spans | dates.map("..{}".format) | dates.map("{}..".format),
    "changed": dates | spans | dates.map("..{}".format) | dates.map("{}..".format),
    "lacks": st.sampled_from(("place", "camera", "date")),
    "camera": st.sampled_from(("canon", "IPHONE", "80", "50% _'\\", "%", "_", "leica")),
    "orientation": st.sampled_from(("landscape", "portrait", "square")),
    "min_width": st.sampled_from((1, 1000, 1920, 5000)),
    "min_height": st.sampled_from((480, 1001, 3000)),
    "near": st.builds(
        lambda place, radius: f"{place[0]},{place[1]},{radius}",
        st.sampled_from(PLACES),
        st.sampled_from(("1km", "7.5km", "15km", "9000m", "300km", "15000km", "30000km")),
    ),
}


@settings(max_examples=300, deadline=None)
@given(data=st.data(), names=st.lists(st.sampled_from(sorted(CHOICES)), min_size=1, max_size=2, unique=True))
def test_filters_find_what_brute_force_finds(data: st.DataObject, names: list[str]) -> None:
    index, photos, vectors = stocked()
    filters = Filters(**{name: data.draw(CHOICES[name]) for name in names})
    expected = {number for number, photo in enumerate(photos) if passes(photo, filters)}
    view = index.filtered(filters)
    assert {os.fsencode(path) for path in view.names} == {os.fsencode(photos[n][0]) for n in expected}
    query = units(1, seed=5)[0]
    ranked = sorted(expected, key=lambda n: (-float(vectors[n] @ query), os.fsencode(photos[n][0])))
    hits = view.search(query, 10)
    assert [hit.path for hit in hits] == [Path("/photos") / photos[n][0] for n in ranked[:10]]


@pytest.mark.parametrize("name", sorted(CHOICES))
def test_every_filter_lets_some_through_and_not_all(name: str) -> None:
    index, photos, _ = stocked()
    value: object = {
        "folder": "2021",
        "name": "img*",
        "date": "2020",
        "camera": "canon",
        "changed": "2020",
        "lacks": "place",
        "orientation": "portrait",
        "min_width": 1920,
        "min_height": 1000,
        "near": "48.1,11.5,20km",
    }[name]
    assert 10 < len(index.filtered(Filters(**{name: value}))) < len(photos)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("date", "yes", "date 'yes': must be 2021, 2021-05,"),
        ("date", "2021-13", "must be 2021"),
        ("date", "2021..2020", "must be 2021"),
        ("date", "..", "must be 2021"),
        ("near", "48,11", "near '48,11': must be latitude, longitude and a distance like"),
        ("near", "95,11,3km", "must be latitude"),
        ("near", "4.5.6,11,3km", "must be latitude"),
        ("orientation", "flat", "orientation 'flat': must be one of landscape, portrait, square"),
        ("name", "*a*b*c*d*", r"at most 4 \* can be in a pattern"),
        ("camera", " ", "camera ' ': must be some text"),
        ("changed", "soon", "changed 'soon': must be 2021, 2021-05,"),
        ("lacks", "colour", "lacks 'colour': must be one of place, camera, date"),
        ("min_width", 0, "min_width 0: must be pixels, 1 or more"),
    ],
)
def test_what_is_no_filter(field: str, value: object, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Filters(**{field: value})


def test_a_folder_outside(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must lie in the folder that was indexed"):
        stocked()[0].filtered(Filters(folder="../x"))


def test_today_and_yesterday() -> None:
    (start, end), (before, after) = parse_period("today"), parse_period("yesterday")
    assert start == after and start is not None and before is not None and end is not None
    assert start <= datetime.now() < end and before == start - timedelta(days=1)
    assert parse_period("yesterday..today") == (before, end)


@pytest.mark.parametrize("kind", ["lance", "qdrant"])
def test_stores_find_what_the_index_finds(kind: str, tmp_path: Path) -> None:
    photos = [photo for photo in made_photos(150, random.Random(1)) if photo[0].isprintable()]
    write_index(tmp_path / "idx", photos, units(len(photos)))
    index, query = PhotoIndex.open(tmp_path / "idx"), units(1, seed=5)[0]
    with open_store(f"{kind}:{tmp_path / 'store'}", "t", create=True) as store:
        push(tmp_path / "idx", store)
        for options in STORE_FILTERS:
            filters = Filters(**options)
            if not set(options) <= store.filterable:
                with pytest.raises(
                    UsageError, match=r"cannot filter by (name|camera|changed|lacks); mmgem search IDX"
                ):
                    search_store(store, query, 10, filters=filters)
                continue
            expected = index.filtered(filters).search(query, 10)
            hits = search_store(store, query, 10, filters=filters)
            assert [hit.path for hit in hits] == [hit.path for hit in expected], options
            assert expected or options.get("folder") == "no", options


STORE_FILTERS: list[dict[str, Any]] = [
    {"folder": "2021/summer"}, {"folder": "/photos/2021"}, {"folder": "no"}, {"folder": "."},
    {"folder": "Été %_'"}, {"name": "img_*.JPG"}, {"name": "100%_?*.gif"}, {"name": "ä*"},
    {"date": "2020"}, {"date": "2020-06.."}, {"camera": "iphone"}, {"camera": "50% _'\\"},
    {"orientation": "square"}, {"orientation": "landscape"}, {"min_width": 1000, "min_height": 3000},
    {"near": "48.1,11.5,15km"}, {"near": "0,180,40km"}, {"date": "..2020", "near": "48.1,11.5,15km"},
    {"near": "48.1,11.5,30000km"}, {"changed": "2020"}, {"lacks": "place"},
]  # fmt: skip


def test_a_store_that_was_pushed_without_them_says_so(tmp_path: Path) -> None:
    write_index(tmp_path / "idx", made_photos(5, random.Random(2)), units(5))
    with sqlite3.connect(tmp_path / "idx" / "photos.sqlite3") as db:
        db.execute("DROP TABLE metadata")
    db.close()
    with open_store(f"lance:{tmp_path / 'store'}", "t", create=True) as store:
        push(tmp_path / "idx", store)
        with pytest.raises(UsageError, match="was pushed without what filters need"):
            search_store(store, units(1)[0], filters=Filters(date="2020"))


def test_no_filters_are_the_index_itself() -> None:
    index = stocked()[0]
    assert index.filtered(Filters()) is index and not Filters()
