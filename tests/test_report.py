"""The HTML report and the contact sheet: self-contained, safe to show, right about boxes and scores."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from mmgem.errors import UsageError
from mmgem.report.contact_sheet import contact_sheet
from mmgem.report.data import (
    HeatmapCard,
    LabelledValue,
    Match,
    PhotoCard,
    QueryRow,
    Region,
    RegionCard,
    Report,
    SimilarRow,
)
from mmgem.report.html import write_report

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """The tags of a page with their attributes; fails on tags that are not closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text("utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        """Attributes of each ``tag``, of those with class ``kind`` if given."""
        return [
            a for t, a in self.tags if t == tag and (kind is None or kind in (a.get("class") or "").split())
        ]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    exif = Image.Exif()
    exif[ExifTags.Base.Make] = "SECRETCAMERA"
    exif[ExifTags.Base.Orientation] = 6
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(noise).resize((1200, 800)).save(tmp_path / "IMG_1.jpg", exif=exif)  # upright: 800 x 1200
    return tmp_path / "IMG_1.jpg"


def full_report(photo: Path) -> Report:
    match = Match(photo, 0.4, caption="a cat")
    return Report(
        title="A title",
        lead="A lead",
        figures=[LabelledValue("photos", "12")],
        details=[LabelledValue("encoder", "an encoder")],
        queries=[QueryRow("cats", [match, Match(photo, 0.1, box=(80, 120, 400, 600))])],
        similar=[SimilarRow(photo, [match])],
        regions=[
            RegionCard(photo, [Region((0, 0, 400, 300), "an ear", 0.25), Region((5, 5, 9, 9), "a nose")])
        ],
        region_queries=[QueryRow("an ear at the top", [Match(photo, 0.3, box=(0, 0, 90, 90))])],
        heatmaps=[HeatmapCard(photo, "an ear", np.random.default_rng(1).random((7, 7)))],
        photos=[PhotoCard(photo, f"caption {n}", [("cat", 0.62)], "IMG_1.jpg") for n in range(9)],
        commands=['mmgem search idx "cats & dogs"'],
        note="The end.",
    )


def test_the_page_needs_nothing_else(photo: Path, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "report.html"
    assert write_report(out, full_report(photo)) == []
    page = Page(out)
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "srcset"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    assert not re.search(r"https?:|@import|url\(|fetch\(", page.source)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:")


def test_nothing_private_travels_with_the_page(photo: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", full_report(photo))
    page = Page(tmp_path / "r.html")
    assert str(tmp_path) not in page.source
    for image in page.all("img"):
        data = base64.b64decode((image["src"] or "").removeprefix("data:image/jpeg;base64,"))
        assert b"SECRETCAMERA" not in data
        decoded = Image.open(io.BytesIO(data))
        assert decoded.format == "JPEG"
        assert decoded.width < decoded.height <= 760


def test_every_photo_has_a_text_and_links_lead_somewhere(photo: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", full_report(photo))
    page = Page(tmp_path / "r.html")
    assert all(image["alt"] for image in page.all("img") if "data-photo" in image)
    assert sum(image["alt"] == "" for image in page.all("img")) == 9  # the decoration in an aria-hidden part
    ids = {a["id"] for _, a in page.tags if "id" in a}
    assert {(a["href"] or "")[1:] for a in page.all("a")} == {
        "search",
        "places",
        "similar",
        "regions",
        "heat",
        "photos",
        "made",
    }
    assert {"search", "places", "similar", "regions", "heat", "photos", "made"} <= ids


def test_what_is_not_given_is_not_there(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", Report(title="Nothing yet"))
    page = Page(tmp_path / "r.html")
    assert not [tag for tag, _ in page.tags if tag in ("section", "nav", "footer", "dl", "img", "pre")]


def test_text_is_never_markup(photo: Path, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"' & \udcff"
    report = Report(
        title=evil,
        lead=evil,
        details=[LabelledValue(evil, evil)],
        queries=[QueryRow(evil, [Match(photo, 0.1, caption=evil)])],
        regions=[RegionCard(photo, [Region((0, 0, 1, 1), evil)], evil)],
        photos=[PhotoCard(photo, evil, [(evil, 0.5)], evil)],
        commands=[evil],
        note=evil,
    )
    write_report(tmp_path / "r.html", report)
    page = Page(tmp_path / "r.html")
    assert len(page.all("script")) == 1
    shown = "<script>alert(1)</script>\"' & ?"
    assert page.words.count(shown) == 11
    assert {image["alt"] for image in page.all("img")} == {shown}


def test_boxes_are_in_pixels_of_the_upright_photo(photo: Path, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", full_report(photo))
    page = Page(tmp_path / "r.html")
    views = [svg["viewbox"] for svg in page.all("svg", "boxes")]
    assert views == ["0 0 800 1200"] * 3
    first = page.all("rect", "edge")[0]
    assert [first[name] for name in ("x", "y", "width", "height")] == ["80", "120", "320", "480"]
    tags = [tag["style"] for tag in page.all("span", "tag") if tag["style"]]
    assert tags == ["left:0.00%;top:0.00%", "left:0.62%;top:0.42%"]


def test_results_are_a_wall_with_names_and_dates(photo: Path, tmp_path: Path) -> None:
    matches = [
        Match(photo, 0.4 - n / 100, None, match=1 - n / 40, name=f"IMG_{n}.jpg", date="2021-05-17 10:11")
        for n in range(40)
    ]
    report = Report(title="a cat & a dog", results=QueryRow("a cat & a dog", matches))
    assert write_report(tmp_path / "r.html", report) == []
    page = Page(tmp_path / "r.html")
    assert page.words.count("a cat & a dog") == 2  # of the tab and of the page
    assert len(page.all("div", "results")) == 1 and not page.all("div", "strip") and not page.all("nav")
    names = [word for word in page.words if re.fullmatch(r"IMG_\d+\.jpg", word)]
    assert names == [match.name for match in matches] == [image["alt"] for image in page.all("img")]
    assert page.words.count("2021-05-17 10:11") == 40 and page.words.count("0.400") == 1
    assert len(page.all("figure", "doubtful")) == page.words.count("probably no match") == 19


def test_results_of_a_photo_begin_with_it_and_dates_have_no_scores(photo: Path, tmp_path: Path) -> None:
    match = Match(photo, float("nan"), name="IMG_1.jpg", date="2021-05-17 10:11")
    row = SimilarRow(photo, [match], box=(80, 120, 400, 600))
    write_report(tmp_path / "r.html", Report(title="Photos like IMG_1.jpg", results=row))
    page = Page(tmp_path / "r.html")
    assert [figure["class"] for figure in page.all("figure")] == ["source", "match"]
    assert len(page.all("svg", "boxes")) == 1 and "nan" not in page.words
    assert "1 results." not in page.words and "1 result." in page.words


def test_bars_of_a_section_share_one_scale(photo: Path, tmp_path: Path) -> None:
    rows = [QueryRow("a", [Match(photo, 0.4), Match(photo, 0.2)]), QueryRow("b", [Match(photo, -0.1)])]
    write_report(tmp_path / "r.html", Report(title="t", queries=rows))
    page = Page(tmp_path / "r.html")
    assert [bar["style"] for bar in page.all("i")] == ["width:100.0%", "width:50.0%", "width:0.0%"]
    assert [word for word in page.words if re.fullmatch(r"-?0\.\d{3}", word)] == ["0.400", "0.200", "-0.100"]


def test_a_photo_that_cannot_be_read_leaves_a_blank(photo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a photo")
    cards = [PhotoCard(bad, "a lost photo"), PhotoCard(photo, "a photo")]
    rows = [QueryRow("q", [Match(bad, 0.1)])]
    problems = write_report(tmp_path / "r.html", Report(title="t", photos=cards, queries=rows))
    assert len(problems) == 1
    assert problems[0].startswith(str(bad))
    page = Page(tmp_path / "r.html")
    assert len(page.all("img")) == 1
    assert len(page.all("div", "gone")) == 2


def test_images_of_any_kind(photo: Path, tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    cards = [
        PhotoCard(image) for image in (photo, str(photo), photo.read_bytes(), pixels, Image.new("L", (4, 4)))
    ]
    assert write_report(tmp_path / "r.html", Report(title="t", photos=cards)) == []
    keys = [image["data-photo"] for image in Page(tmp_path / "r.html").all("img")]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"file/r\.html"):
        write_report(tmp_path / "file" / "r.html", Report(title="t"))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_contact_sheet_is_as_wide_as_asked(photo: Path, tmp_path: Path, suffix: str) -> None:
    row = QueryRow("a very long query " * 30, [Match(photo, 0.3)] * 6)
    assert (
        contact_sheet(
            tmp_path / "new" / f"sheet{suffix}", [row, SimilarRow(photo, [Match(photo, 0.9)])], width=640
        )
        == []
    )
    with Image.open(tmp_path / "new" / f"sheet{suffix}") as sheet:
        assert sheet.width == 640
        assert 200 < sheet.height < 400
    assert len(list((tmp_path / "new").iterdir())) == 1


def test_the_photos_of_a_row_fill_it_at_one_height(tmp_path: Path) -> None:
    reds = [Image.new("RGB", size, "red") for size in ((300, 100), (100, 100), (100, 200), (400, 100))]
    contact_sheet(tmp_path / "s.png", [QueryRow("red", [Match(image, 0.5) for image in reds])])
    pixels = np.asarray(Image.open(tmp_path / "s.png"))
    red = (pixels == [255, 0, 0]).all(-1)
    columns = np.flatnonzero(red.any(0))
    assert (columns[0], columns[-1]) == (40, 1239)
    assert len(set(red.sum(0)[columns])) == 1
    assert 1200 - len(columns) == pytest.approx(3 * 10, abs=3)


def test_a_contact_sheet_draws_the_box(tmp_path: Path) -> None:
    black = Image.new("RGB", (1000, 1000))
    contact_sheet(tmp_path / "s.png", [QueryRow("q", [Match(black, 0.5, box=(500, 500, 1000, 1000))])])
    pixels = np.asarray(Image.open(tmp_path / "s.png")).astype(int)
    yellow = np.argwhere((abs(pixels - [255, 209, 102]) < 3).all(-1))
    assert yellow[:, 1].min() == pytest.approx(40 + 115, abs=3)
    assert yellow[:, 1].max() == pytest.approx(40 + 230, abs=3)


def test_a_contact_sheet_of_what_cannot_be_drawn(photo: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not a photo")
    rows = [QueryRow("q", [Match(bad, 0.1), Match(photo, 0.1), Match(bad, 0.0)])]
    problems = contact_sheet(tmp_path / "s.png", rows)
    assert [problem.split(":")[0] for problem in problems] == [str(bad)]
    with pytest.raises(UsageError, match="is one of"):
        contact_sheet(tmp_path / "s.gif", rows)
    with pytest.raises(UsageError, match="no rows"):
        contact_sheet(tmp_path / "s.png", [])
    with pytest.raises(UsageError, match=r"bad\.jpg: not a font"):
        contact_sheet(tmp_path / "s.png", rows, font=bad)
