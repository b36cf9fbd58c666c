"""What a search writes beside its lines: all hits, pages and contact sheets, of any kind of query."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tiny import save_photos

from mmgem.cli.main import main


@pytest.fixture(scope="module")
def idx(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("output")
    save_photos(folder / "photos", 14)
    out = folder / "idx"
    assert main(["index", str(folder / "photos"), "--out", str(out), "-m", str(tiny_model_folder)]) == 0
    return out


def lines(capfd: pytest.CaptureFixture[str], *argv: object) -> list[str]:
    capfd.readouterr()
    assert main(["search", *map(str, argv)]) == 0
    return capfd.readouterr().out.splitlines()


def test_zero_is_all(idx: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert len(lines(capfd, idx, "the dog", "--all")) == 10
    assert len(lines(capfd, idx, "the dog", "--all", "-k", 0)) == 14
    assert len(lines(capfd, idx, "--by-date", "-k", 0)) == 14
    assert len(lines(capfd, idx, "--by-date", "-k", 0, "--name", "000?.png")) == 10
    assert main(["search", str(idx), "the dog", "-k", "-1"]) == 2


def test_pages_and_sheets_of_every_query(
    idx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    photo = idx.parent / "photos" / "0000.png"
    for number, query in enumerate(
        (["the dog"], ["--image", photo], ["the dog", "--by-date"], ["--by-date"])
    ):
        page, sheet = tmp_path / f"{number}.html", tmp_path / f"{number}.jpg"
        assert len(lines(capfd, idx, *query, "-k", 9, "--html", page, "--sheet", sheet)) == 9
        text = page.read_text()
        assert text.count("<img") >= 9 and ">nan" not in text
        with Image.open(sheet) as picture:
            assert picture.size[0] == 1280 and picture.size[1] > 200
    assert main(["search", str(idx), "the dog", "--sheet", str(tmp_path / "a.pdf")]) == 2
    assert "must end in .jpg" in capfd.readouterr().err
