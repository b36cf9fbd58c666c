"""``mmgem eval`` and the data made for it, on a tiny random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toys
from tiny import save_photos


@pytest.fixture
def dataset(tmp_path):
    return toys.photos(tmp_path / "set", train=4, dev=8)


def test_eval_retrieval(run, dataset):
    out, err = run("eval", "retrieval", "--data", dataset, "--split", "dev", "--json")
    told = json.loads(out)
    assert set(told) == {"i2t", "t2i", "images", "texts", "skipped"}
    assert set(told["i2t"]) == set(told["t2i"]) == {"R@1", "R@5", "R@10"}
    assert (told["images"], told["texts"], told["skipped"]) == (8, 24, 0)
    assert told["t2i"]["R@10"] == 100 and err == ""
    lines = run("eval", "retrieval", "--data", dataset, "--split", "dev")[0].splitlines()
    assert lines[0] == "i2t" and lines[-1].split() == ["texts", "24"]


def test_eval_caption(run, dataset):
    out, _ = run("eval", "caption", "--data", dataset, "--beams", 1, "--json")
    told = json.loads(out)
    assert set(told) == {*(f"BLEU@{n}" for n in range(1, 5)), "ROUGE_L", "CIDEr", "images", "skipped"}
    assert told["images"] == 12


def test_eval_leaves_bad_photos_out_and_says_so(run, dataset):
    (dataset.parent / "images" / "5.png").write_bytes(b"")
    with dataset.open("a") as file:
        file.write('{"image": "images/1.png", "split": "dev"}\n')
    out, err = run("eval", "retrieval", "--data", dataset, "--split", "dev", "--json")
    told = json.loads(out)
    assert (told["images"], told["texts"], told["skipped"]) == (7, 21, 1)
    assert (
        "1 of 9 records have no captions" in err
        and "5.png: is empty" in err
        and "1 of 8 photos left out" in err
    )


def test_eval_classify(run, tmp_path):
    for name in ("dog", "cat", "red_house"):
        save_photos(tmp_path / name, 2)
    told = json.loads(run("eval", "classify", "--data", tmp_path, "--json")[0])
    assert set(told) == {"top1", "top5", "mean_per_class", "images", "skipped"}
    assert (told["top5"], told["images"]) == (100, 6)
    assert (
        json.loads(run("eval", "classify", "--preset", "class-folders", "--root", tmp_path, "--json")[0])
        == told
    )


def test_eval_preset_by_domain(run, tmp_path):
    save_photos(tmp_path / "validation", 3)
    images = [
        {"id": i, "file_name": f"{i:04}.png", "domain": domain}
        for i, domain in enumerate(("in-domain", "out-domain", "out-domain"))
    ]
    captions = [{"id": i, "image_id": i, "caption": "a dog"} for i in range(3)]
    (tmp_path / "nocaps_val_4500_captions.json").write_text(
        json.dumps({"images": images, "annotations": captions})
    )
    out, err = run("eval", "caption", "--preset", "nocaps", "--root", tmp_path, "--json")
    told = json.loads(out)
    assert set(told) == {"in-domain", "out-domain", "all", "skipped"} and told["all"]["images"] == 3
    assert "not comparable" in err


def test_mosaics_are_evaluated_as_regions(run, dataset, tmp_path):
    out, _ = run("mosaic", dataset, "--out", tmp_path / "m", "--split", "dev", "--count", 6, model=None)
    path = Path(out.strip())
    assert path == tmp_path / "m" / "mosaics.jsonl"
    again = run("mosaic", dataset, "-o", tmp_path / "m", "--split", "dev", "--count", 6, "--json", model=None)
    made = json.loads(again[0])
    told = json.loads(run("eval", "region", "--data", path, "--captions", "--pointing", "--json")[0])
    assert (told["regions"], told["skipped"]) == (made["regions"], 0)
    assert {"r2t", "t2r", "CIDEr", "BLEU@4", "pointing", "chance"} <= set(told)
    assert 5 < told["chance"] < 45
    plain = json.loads(run("eval", "region", "--data", path, "--json")[0])
    assert plain["r2t"] == told["r2t"] and "CIDEr" not in plain


def test_eval_place(run, dataset, tmp_path):
    argv = ("--count", 8, "--side", 64, "--twins")
    run("mosaic", dataset, "--out", tmp_path / "m", *argv, model=None)
    told = json.loads(run("eval", "place", "--data", tmp_path / "m" / "mosaics.jsonl", "--json")[0])
    assert 0 <= told["place"] <= 100
    assert told["questions"] > 0
    assert told["questions"] % 2 == 0  # each is asked of both twins


def test_eval_longtext(run, dataset):
    told = json.loads(run("eval", "longtext", "--data", dataset, "--split", "dev", "--json")[0])
    assert (told["images"], told["texts"], told["shortened"]) == (8, 8, 0)
    assert set(told["ways"]) == {"mean", "joined", "first"}
    assert told["ways"]["mean"] == {"i2t": told["i2t"], "t2i": told["t2i"]}


def test_eval_longtext_of_a_sentence_over_the_limit(run, dataset, tmp_path):
    rows = [json.loads(line) for line in dataset.read_text().splitlines()]
    for row in rows:
        row |= {"image": str(dataset.parent / row["image"]), "captions": ["a dog " * 99]}
    path = tmp_path / "run-on.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, err = run("eval", "longtext", "--data", path, "--json")
    assert set(json.loads(out)["ways"]) == {"mean", "first"}
    assert "left out the way 'joined'" in err
