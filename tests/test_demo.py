"""The demo: one command, one page, whatever the photos are."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import save_photo, save_photos, save_tiny_model

from mmgem import MMGEM, open_index
from mmgem.checkpoints import download as pull
from mmgem.cli.main import main
from mmgem.demo import CLASSES, SAMPLE_QUERIES
from mmgem.errors import DownloadError
from mmgem.evaluate.classify import class_embeddings, classify, fill_prompt
from mmgem.search.clusters import cluster_photos
from mmgem.search.search import PhotoIndex


@pytest.fixture
def demo(tiny_model_folder, tmp_path, capfd):
    """Run the demo into ``tmp_path / "out"``; returns its page and what it said on standard error."""

    def run(*argv: object, model: Path = tiny_model_folder) -> tuple[str, str]:
        out = tmp_path / "out"
        capfd.readouterr()
        assert main(["demo", *map(str, argv), "--out", str(out), "--model", str(model)]) == 0
        printed, stderr = capfd.readouterr()
        assert printed == f"{out / 'report.html'}\n"
        with Image.open(out / "sheet.png") as sheet:
            assert sheet.width == 1280
        return (out / "report.html").read_text(), stderr

    return run


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """A cache that holds the sample photos already."""
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    for seed, part in enumerate(pull.SETS["photos"]):
        folder = pull.cache_folder(part)
        for i in range(5):
            save_photo(folder / f"{part}-{i}.jpg", seed=10 * seed + i)


def section(page: str, key: str) -> str:
    match = re.search(rf'<section id="{key}".*?</section>', page, re.DOTALL)
    return match[0] if match else ""


def test_sample_photos(demo, samples, tmp_path):
    page, stderr = demo()
    assert [text for text in SAMPLE_QUERIES if f'<h3 class="query">{text}</h3>' not in page] == []
    assert section(page, "photos").count('class="card large"') == 10
    assert section(page, "search").count('class="match"') == 4 * len(SAMPLE_QUERIES)
    assert 1 <= section(page, "similar").count('class="source"') <= 3
    assert "scikit-image" in page and "CC BY 2.0" in page and "mmgem demo --out out" in page
    assert str(tmp_path) not in page, "a page can be given away"
    assert len(PhotoIndex.open(tmp_path / "out" / "index").photos) == 10
    assert f' search {tmp_path / "out" / "index"} "a dog"' in stderr
    assert main(["search", str(tmp_path / "out" / "index"), "a dog"]) == 0


def test_a_second_run_embeds_nothing(demo, samples, monkeypatch):
    demo()
    monkeypatch.setattr("mmgem.api.MMGEM.embed_images", None)
    demo()


def test_without_the_samples_it_says_what_to_do(tiny_model_folder, tmp_path, monkeypatch, capfd):
    def offline(*_: object) -> Path:
        raise DownloadError("scikit-image==0.26.0: pip download failed: no route")

    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pull, "download_wheel", offline)
    assert main(["demo", "--out", str(tmp_path / "out"), "--model", str(tiny_model_folder)]) == 1
    assert "give your own: --photos DIR" in capfd.readouterr().err.splitlines()[-1]


def test_one_photo(demo, tmp_path):
    save_photo(tmp_path / "mine" / "one.png")
    page, _ = demo("--photos", tmp_path / "mine")
    assert section(page, "photos").count('class="card large"') == 1
    assert section(page, "search").count('class="match"') >= 4
    assert section(page, "similar") == ""
    assert "mmgem demo --photos mine" in page and "scikit" not in page


def test_own_photos_are_searched_for_what_they_show(demo, tiny_model_folder, tmp_path):
    save_photos(tmp_path / "mine", 12)
    page, _ = demo("--photos", tmp_path / "mine")
    asked = re.findall(r'<h3 class="query">(.*?)</h3>', section(page, "search"))
    model, index = MMGEM.from_pretrained(tiny_model_folder), open_index(tmp_path / "out" / "index")
    shares = classify(
        index.vectors[list(index.photos)], class_embeddings(model.embed_texts, CLASSES), model.temperature
    )
    best = np.sort(shares, axis=1)[:, -3:-2]
    most = np.argsort(-np.where(shares >= best, shares, 0).sum(0))[:4]
    groups = [group.name for group in cluster_photos(index, model, 4)]
    expected = [fill_prompt("a {}", CLASSES[i]) for i in most] + groups
    assert [html.unescape(text) for text in asked] == list(dict.fromkeys(expected))


def test_bad_photos_are_left_out_and_listed(demo, tmp_path):
    photos = save_photos(tmp_path / "mine", 4)
    photos[2].write_bytes(b"")
    page, stderr = demo("--photos", tmp_path / "mine")
    assert section(page, "photos").count('class="card large"') == 3
    assert "1, left out" in page
    assert f"mmgem: skipped {photos[2]}: is empty" in stderr


def test_many_photos_are_all_searched_but_not_all_shown(demo, tmp_path):
    save_photos(tmp_path / "mine", 60)
    page, _ = demo("--photos", tmp_path / "mine")
    assert section(page, "photos").count('class="card large"') == 40
    assert "40 of 60 photos" in page
    assert len(PhotoIndex.open(tmp_path / "out" / "index").photos) == 60


def test_the_same_copies_are_no_neighbours(demo, tmp_path):
    for name in "abc":
        save_photo(tmp_path / "mine" / f"{name}.png", seed=1)
    page, _ = demo("--photos", tmp_path / "mine")
    assert section(page, "similar") == ""


def test_other_photos_and_other_models_replace_the_index(demo, samples, tmp_path):
    demo()
    save_photos(tmp_path / "mine", 3)
    demo("--photos", tmp_path / "mine")
    demo("--photos", tmp_path / "mine", model=save_tiny_model(tmp_path / "other", seed=1))
    index = PhotoIndex.open(tmp_path / "out" / "index")
    assert (
        len(index.photos) == 3
        and index.folder == tmp_path / "mine"
        and index.model == str(tmp_path / "other")
    )


def test_a_folder_without_photos_leaves_nothing_behind(tiny_model_folder, tmp_path, capfd):
    (tmp_path / "mine").mkdir()
    argv = ["demo", "--photos", tmp_path / "mine", "--out", tmp_path / "out", "--model", tiny_model_folder]
    assert main([str(arg) for arg in argv]) == 2
    assert "no photos in this folder" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_only_bad_photos_are_an_error(tiny_model_folder, tmp_path, capfd):
    (tmp_path / "a.jpg").write_bytes(b"")
    argv = ["demo", "--photos", tmp_path, "--out", tmp_path / "out", "--model", tiny_model_folder]
    assert main([str(arg) for arg in argv]) == 1
    assert "none of the 1 photos could be read: is empty" in capfd.readouterr().err


def test_class_names_are_different():
    assert len(set(CLASSES)) == len(CLASSES)
