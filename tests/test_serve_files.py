"""What the server tells of files: a filtered list, what there is to filter by, facts; folders it opens."""

from __future__ import annotations

import os
from pathlib import Path

import films
import httpx
import pytest
from PIL import ExifTags, Image
from serving import serving
from test_serve_routes import ok, refused
from tiny import save_photo

from mmgem import MMGEM
from mmgem.search.filters import Filters
from mmgem.search.index import update_index
from mmgem.search.search import PhotoIndex
from mmgem.serve import reveal as reveal_module
from mmgem.serve.errors import APIError
from mmgem.serve.reveal import reveal


@pytest.fixture(scope="module")
def index(model: MMGEM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for n in range(6):
        photo = save_photo(folder / "photos" / ("a" if n < 2 else "a/b" if n < 4 else "c") / f"{n}.png", n)
        os.utime(photo, (1.6e9, 1.6e9))
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "Pixel 7"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2021:05:17 10:11:12"
    place = {1: "S", 2: (33.0, 30.0, 0.0), 3: "E", 4: (151.0, 0.0, 0.0)}
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(place)
    with Image.open(folder / "photos" / "c" / "5.png") as photo:
        photo.save(folder / "photos" / "c" / "5.png", exif=exif)
    films.save_gif(folder / "photos" / "c" / "film.gif", (1, 2, 3))
    update_index(folder / "idx", folder / "photos", lambda: model, model.fingerprint)
    return folder / "idx"


def test_the_list_passes_filters_as_a_search_does(client: httpx.Client, index: Path) -> None:
    opened = PhotoIndex.open(index)
    for given in (
        {"folder": "a"},
        {"name": "?.png", "date": "2020"},
        {"camera": "pixel"},
        {"lacks": "place"},
    ):
        filters = Filters(**given)  # type: ignore[arg-type]
        expected = opened.filtered(filters)
        reply = ok(client.get("/photos", params=given))
        names = [row["name"] for row in reply["photos"]]
        assert names == sorted(expected.names[entry] for entry in expected.photos)
        assert reply["total"] == len(names) > 0
        pages = [
            ok(client.get("/photos", params={**given, "limit": 1, "offset": n})) for n in range(len(names))
        ]
        assert [page["photos"][0]["name"] for page in pages] == names and pages[-1]["next"] is None
    assert refused(client.get("/photos?min_width=0")) == (422, "invalid_value")
    assert refused(client.get("/photos?near=here")) == (422, "invalid_value")
    assert refused(client.get("/photos?floder=a")) == (422, "invalid_value")


def test_what_there_is_to_filter_by(client: httpx.Client) -> None:
    values = ok(client.get("/filters"))
    told = {kind: [(row["value"], row["photos"]) for row in rows] for kind, rows in values.items()}
    assert told == {"folders": [("a", 4), ("a/b", 2), ("c", 3)], "cameras": [("Pixel 7", 1)]}
    for folder, count in told["folders"]:
        names = {row["name"] for row in ok(client.get("/photos", params={"folder": folder}))["photos"]}
        assert len(names) == count


def test_facts_of_a_photo_and_the_shots_of_a_clip(client: httpx.Client, index: Path) -> None:
    rows = ok(client.get("/photos"))["photos"]
    by_name = {row["name"]: row["id"] for row in rows}
    facts = ok(client.get(f"/photos/{by_name['c/5.png']}/info"))
    assert (facts["date"], facts["dated"], facts["camera"]) == ("2021-05-17T10:11:12", True, "Pixel 7")
    assert (facts["latitude"], facts["longitude"]) == pytest.approx((-33.5, 151))
    assert (facts["width"], facts["height"], facts["path"], facts["shots"]) == (48, 36, None, [])
    assert facts["bytes"] == (index.parent / "photos" / "c" / "5.png").stat().st_size
    plain = ok(client.get(f"/photos/{by_name['a/0.png']}/info"))
    assert (plain["dated"], plain["camera"], plain["date"][:4]) == (False, None, "2020")
    shots = [row for row in rows if row["name"] == "c/film.gif"]
    assert len(shots) == 3
    for shot in shots:
        told = ok(client.get(f"/photos/{shot['id']}/info"))
        assert told["shots"] == shots and told["start"] == shot["start"]
    assert refused(client.get("/photos/0123456789abcdef/info")) == (404, "not_found")


def test_only_its_own_machine_sees_paths_and_opens_folders(
    client: httpx.Client,
    model: MMGEM,
    index: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    photo = ok(client.get("/photos?limit=1"))["photos"][0]
    assert refused(client.post(f"/photos/{photo['id']}/reveal")) == (403, "not_local")
    assert ok(client.get("/info"))["local"] is False
    commands: list[list[str]] = []
    monkeypatch.setattr(reveal_module, "_command", lambda path: commands.append([str(path)]) or ["true"])
    with serving(model, index, local=True) as (own, _):
        assert ok(own.get("/info"))["local"] is True
        path = str(index.parent / "photos" / photo["name"])
        assert ok(own.get(f"/photos/{photo['id']}/info"))["path"] == path
        assert ok(own.post(f"/photos/{photo['id']}/reveal")) == {"status": "opened"}
        assert commands == [[path]]


def test_a_folder_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(APIError, match="the folder is gone"):
        reveal(tmp_path / "gone" / "a.png")
    for command in (["false"], [str(tmp_path / "no such program")]):
        monkeypatch.setattr(reveal_module, "_command", lambda _, command=command: command)
        with pytest.raises(APIError, match="no file manager"):
            reveal(tmp_path / "a.png")
