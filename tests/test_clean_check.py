"""The check of a data set: what it finds, that a photo is decoded once, and that a kill changes nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_duplicates import copies, picture

from mmgem.clean import scan
from mmgem.clean.check import REPEATED, CheckReport, check_pairs
from mmgem.clean.pairs import PairData
from mmgem.cli.main import main
from mmgem.data import near_copies
from mmgem.data.languages import guess_language, is_other_language, usual_language
from mmgem.data.readers import load_dataset
from mmgem.data.records import Record, write_jsonl
from mmgem.data.shards import pack
from mmgem.errors import BusyError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))


def small(seed: int) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(colours).resize((20, 16), Image.Resampling.NEAREST)


def dataset(folder: Path) -> Path:
    """Twelve photos with something of each kind wrong."""
    photos = folder / "photos"
    near = copies(photos, picture(0), "0")
    lines: list[tuple[str, list[str]]] = [(path.name, ["the dog runs in the snow"]) for path in near]
    (photos / "same.jpg").write_bytes(near[0].read_bytes())
    lines.append(("same.jpg", ["a man is on the street"]))
    (photos / "bad.jpg").write_bytes(b"no photo")
    lines += [("bad.jpg", ["a dog in the snow"]), ("gone.jpg", ["a dog in the water"])]
    for n in range(3, 3 + REPEATED):
        small(n).save(photos / f"{n}.png")
        lines.append((f"{n}.png", ["Image for the illustration.", f"the {n} dogs are on a street"]))
    picture(2).save(photos / "none.png")
    picture(4).save(photos / "other.png")
    lines += [("none.png", []), ("other.png", ["dog", "ein Mann und eine Frau sitzen auf der Bank"])]
    records = [
        Record(photos / name, tuple(captions), split="dev" if name == "same.jpg" else "train")
        for name, captions in lines
    ]
    write_jsonl(folder / "data.jsonl", records)
    return folder / "data.jsonl"


def test_what_is_found(tmp_path: Path) -> None:
    report = check_pairs(PairData(dataset(tmp_path)), tmp_path / "out")
    assert (report.photos, report.captions, report.language) == (19, 29, "en")
    assert report.counts == {
        "unreadable": 2, "same": 1, "near": 1, "empty": 1, "short": 1, "repeated": 1, "language": 1,
    }  # fmt: skip
    found = {kind: rows[0] for kind, rows in report.examples.items()}
    assert {Path(p).name for p in found["same"].photos} == {"0-a.jpg", "same.jpg"}
    assert len(found["near"].photos) == 5 and "dev, train" in found["near"].reason
    assert report.across_splits == 1
    assert found["short"].caption == "dog" and found["language"].reason == "de"
    assert found["repeated"].count == REPEATED
    assert [Path(row.photos[0]).name for row in report.examples["unreadable"]] == ["bad.jpg", "gone.jpg"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "findings.jsonl").read_text().splitlines()]
    assert len(lines) == sum(report.counts.values())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["findings.jsonl"]


def comparable(report: CheckReport) -> dict[str, Any]:
    """A report without what lies in files of other names."""
    value = asdict(replace(report, pictures={}, resumed=0, problems=[]))
    for rows in value["examples"].values():
        for row in rows:
            row["photos"] = [Path(p.rpartition(": ")[2]).name for p in row["photos"]]
    return value


@pytest.mark.parametrize("form", ["tar", "parquet"])
def test_shards_give_the_same(tmp_path: Path, form: Any) -> None:
    data = dataset(tmp_path)
    records = [r for r in load_dataset(data) if r.captions and r.image.name not in ("bad.jpg", "gone.jpg")]
    write_jsonl(tmp_path / "good.jsonl", [replace_split(r) for r in records])
    pack([replace_split(r) for r in records], tmp_path / "shards", form, per_shard=4)
    loose = comparable(check_pairs(PairData(tmp_path / "good.jsonl")))
    packed = comparable(check_pairs(PairData(tmp_path / "shards")))
    for value in (loose, packed):
        value.pop("examples")
    assert loose == packed and loose["counts"]["near"] == 1


def replace_split(record: Record) -> Record:
    return Record(record.media, record.captions)


def test_a_photo_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    decode = scan._decode
    monkeypatch.setattr(scan, "_decode", lambda data: (seen.append(data), decode(data))[1])
    report = check_pairs(PairData(dataset(tmp_path)), tmp_path / "out")
    assert len(seen) == len(set(seen)) == 17  # not same.jpg, not gone.jpg
    assert report.pictures, "examples are shown without decoding them again"


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = dataset(tmp_path)
    assert main(["data", "check", str(data), "--out", str(tmp_path / "out")]) == 0
    assert "1\tgroups of near copies" in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/jpeg") >= 10 and "Near copies" in page and "ein Mann" in page
    assert str(tmp_path) not in page
    assert main(["data", "check", str(data), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["counts"]["near"] == 1 and value["examples"]["language"][0]["reason"] == "de"
    assert not list((tmp_path / "cache" / "check").iterdir())


_KILLED = """
import os, signal, sys
from pathlib import Path
from mmgem.clean.check import check_pairs
from mmgem.clean.pairs import PairData
from mmgem.utils.work_file import WorkFile
append, left = WorkFile.append, [int(sys.argv[3])]
def dying(self, rows):
    if not left[0]:
        with self.path.open("ab") as file:
            file.write(b'{"name": "half')
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    append(self, rows)
WorkFile.append = dying
check_pairs(PairData(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_and_resumed_is_one_run(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    records = []
    for n in range(2000):
        small(n % 1950).save(photos / f"{n}.png")
        captions = (f"the dog number {n % 190} runs", "dog" if n % 97 == 0 else f"a man with {n} hats")
        records.append(Record(photos / f"{n}.png", captions))
    (photos / "77.png").write_bytes((photos / "77.png").read_bytes()[:60])
    write_jsonl(tmp_path / "data.jsonl", records)
    for blocks in (0, 7, 5):
        command = [
            sys.executable,
            "-c",
            _KILLED,
            str(tmp_path / "data.jsonl"),
            str(tmp_path / "a"),
            str(blocks),
        ]
        killed = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert killed.returncode == -signal.SIGKILL
    data = PairData(tmp_path / "data.jsonl")
    resumed, whole = check_pairs(data, tmp_path / "a"), check_pairs(data, tmp_path / "b")
    assert resumed.resumed == 12 * 64 and whole.resumed == 0
    assert comparable(resumed) == comparable(whole)
    assert (tmp_path / "a" / "findings.jsonl").read_bytes() == (
        tmp_path / "b" / "findings.jsonl"
    ).read_bytes()
    assert whole.counts["same"] == 50 and whole.counts["unreadable"] == 1 and whole.counts["repeated"] == 191


def test_other_data_begin_again_and_two_do_not_meet(tmp_path: Path) -> None:
    data = PairData(dataset(tmp_path))
    with scan.Scan(data, tmp_path / "out") as first:
        first.run()
        with pytest.raises(BusyError):
            scan.Scan(data, tmp_path / "out")
    (tmp_path / "photos" / "3.png").write_bytes(b"changed")
    with scan.Scan(PairData(tmp_path / "data.jsonl"), tmp_path / "out") as second:
        assert second.resumed == 0


def test_crops_equal_those_of_pillow() -> None:
    image = near_copies.squeeze(picture(1))
    (ours,) = near_copies.crops(np.asarray(image)[None])
    boxes = [(0.0, 0.0, 1.0, 1.0)] + [
        (x * cut, y * cut, 1 - (1 - x) * cut, 1 - (1 - y) * cut)
        for cut in (0.05, 0.1)
        for y in (0, 0.5, 1)
        for x in (0, 0.5, 1)
    ]
    for values, box in zip(ours, boxes, strict=True):
        shown = tuple(near_copies.SIDE * share for share in box)
        reference = np.asarray(image.resize((24, 24), Image.Resampling.BOX, box=shown), np.float32)
        reference = np.moveaxis(reference - reference.mean((0, 1)), -1, 0).ravel()
        assert values @ reference / np.linalg.norm(reference) > 0.9995


def test_near_pairs_equal_brute_force() -> None:
    shown = [np.asarray(near_copies.squeeze(image)) for image in _many()]
    pictures = np.stack(shown)
    cropped = near_copies.crops(pictures)
    brute = {
        (a, b)
        for a, b in combinations(range(len(pictures)), 2)
        if near_copies.is_copy(cropped[a], cropped[b])
    }
    assert set(near_copies.near_pairs(pictures)) == brute and len(brute) >= 20


def _many() -> Iterator[Image.Image]:
    for seed in range(12):
        image = picture(seed)
        yield image
        yield image.crop((10, 8, 310, 236))
        yield image.resize((90, 70))


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("A dog is running in the snow", "en"),
        ("Ein Hund läuft durch den Schnee und ist nass", "de"),
        ("un chien court dans la neige avec une balle", "fr"),
        ("een man zit op het strand met de hond", "nl"),
        ("un perro y una mujer están en la playa con los niños", "es"),
        ("собака бежит по снегу", "cyrillic"),
        ("犬が雪の中を走っている", "kana"),
        ("一只狗在雪地里奔跑", "han"),
        ("dog snow", None),
        ("", None),
    ],
)
def test_languages(text: str, language: str | None) -> None:
    assert guess_language(text) == language


def test_usual_language() -> None:
    assert usual_language({"en": 5, "de": 2}) == "en"
    assert usual_language({"en": 2, "de": 2}) is None and usual_language({}) is None
    assert is_other_language("ein Mann und eine Frau", "en") == "de"
    assert is_other_language("a man in a red hat", "en") is None
    assert is_other_language("dog", "de") is None
