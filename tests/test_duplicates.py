"""Copies: which are found, how they are folded into results, and what is listed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from test_index import update

from mmgem.cli.main import main
from mmgem.search.duplicates import are_copies, find_duplicates, fold_copies
from mmgem.search.search import PhotoIndex


def picture(seed: int) -> Image.Image:
    """Blobs of many sizes, as photos have."""
    rng = np.random.default_rng(seed)
    layers = [
        Image.fromarray(rng.integers(0, 256, (side * 3, side * 4, 3), np.uint8)).resize((320, 240), 3)
        for side in (1, 2, 4)
    ]
    return Image.blend(Image.blend(layers[0], layers[1], 0.4), layers[2], 0.3)


def copies(folder: Path, image: Image.Image, name: str) -> list[Path]:
    made = {
        "a": image,
        "small": image.resize((160, 120)),
        "bright": ImageEnhance.Brightness(image).enhance(1.05),
        "cropped": image.crop((8, 6, 312, 234)),
    }
    folder.mkdir(exist_ok=True)
    for kind, version in made.items():
        version.save(folder / f"{name}-{kind}.jpg", quality=70)
    return [folder / f"{name}-{kind}.jpg" for kind in made]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for number in range(3):
        copies(folder, picture(number), str(number))
    shutil.copy(folder / "0-a.jpg", folder / "same.jpg")
    picture(9).save(folder / "alone.jpg")
    return folder


def test_copies_are_known_and_others_are_not(tmp_path: Path) -> None:
    one, two = copies(tmp_path / "p", picture(0), "0"), copies(tmp_path / "p", picture(1), "1")
    for path in one[1:]:
        assert are_copies(one[0], path) and are_copies(path, one[0])
        assert not are_copies(path, two[0])
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    assert not are_copies(one[0], tmp_path / "bad.jpg")


def test_groups(photos: Path, tmp_path: Path) -> None:
    update(tmp_path / "idx", photos)
    index = PhotoIndex.open(tmp_path / "idx")
    groups = find_duplicates(index)
    assert [len(group.paths) for group in groups] == [5, 4, 4]
    assert {path.name[0] for path in groups[0].paths} == {"0", "s"}
    sizes = [path.stat().st_size for path in groups[1].paths]
    assert sizes == sorted(sizes, reverse=True)
    (same,) = find_duplicates(index, near=False)
    assert {path.name for path in same.paths} == {"0-a.jpg", "same.jpg"} and all(same.exact)
    assert sum(groups[0].exact) == 2 and not any(groups[1].exact)


def test_results_are_folded(photos: Path, tmp_path: Path) -> None:
    update(tmp_path / "idx", photos)
    index = PhotoIndex.open(tmp_path / "idx")
    query = index.vector_of("1-a.jpg")
    for k in (1, 2, 3, 4, 9):
        hits = fold_copies(index, lambda count: index.search(query, count), k)
        assert len(hits) == min(k, 4)
        assert hits[0].path.name == "1-a.jpg"
        assert len({hit.path.name[0].replace("s", "0") for hit in hits}) == len(hits)
    assert sorted(hit.copies for hit in hits) == [0, 3, 3, 4]


def test_commands(
    photos: Path, tmp_path: Path, tiny_model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    idx = str(tmp_path / "idx")
    assert main(["index", str(photos), "-o", idx, "-m", str(tiny_model_folder)]) == 0
    capfd.readouterr()
    assert main(["duplicates", idx]) == 0
    out, err = capfd.readouterr()
    assert [len(group.splitlines()) for group in out.split("\n\n")] == [5, 4, 4]
    assert out.count("same\t") == 2 and "mmgem: 10 copies in 3 groups, of 14 photos" in err
    assert main(["duplicates", idx, "--spare", "-0"]) == 0
    assert len(capfd.readouterr().out.split("\0")) == 11
    assert main(["duplicates", idx, "--exact", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert [len(group) for group in told["groups"]] == [2] and told["photos"] == 14

    def found(*options: str) -> list[dict[str, object]]:
        assert main(["search", idx, "a dog", "--json", "-k", "20", *options]) == 0
        hits: list[dict[str, object]] = json.loads(capfd.readouterr().out)["hits"]
        return hits

    assert len(found("--all")) == 14
    folded = found()
    assert len(folded) == 4 and sorted(int(str(hit["copies"])) for hit in folded) == [0, 3, 3, 4]
    assert main(["search", idx, "a dog", "-k", "1", "--rerank"]) == 0
    assert main(["search", idx, "a dog", "-k", "4"]) == 0
    assert "\t4 copies\n" in capfd.readouterr().out
