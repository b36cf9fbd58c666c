"""Bulk: parts are what embed_images gives, whoever makes them, however often they are stopped."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import toys
from tiny import save_photo, save_photos, save_tiny_model

from mmgem import MMGEM
from mmgem.bulk import embed_collection
from mmgem.bulk.collection import Partition, find_collection
from mmgem.bulk.on_ray import ray_session, write_on_ray
from mmgem.bulk.output import OutputFolder
from mmgem.bulk.precomputed import PrecomputedEmbedder
from mmgem.bulk.worker import BulkJob, Worker
from mmgem.checkpoints.resolve import fingerprint
from mmgem.cli.main import main
from mmgem.data.images import image_size
from mmgem.data.readers import load_dataset
from mmgem.data.shards import pack
from mmgem.errors import DataError, ImageError, UsageError
from mmgem.search.index import update_index
from mmgem.search.search import PhotoIndex


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def ray():
    with ray_session(workers=2) as module:
        yield module


@pytest.fixture
def photos(tmp_path) -> Path:
    """Eight photos, one of them in a folder below."""
    folder = tmp_path / "photos"
    save_photos(folder, 8)
    (folder / "below").mkdir()
    (folder / "0003.png").rename(folder / "below" / "3.png")
    return folder


def rows_of(out: Path) -> list[dict]:
    parts = sorted((out / "parts").iterdir())
    assert [part.name for part in parts] == [f"{n:06}.parquet" for n in range(len(parts))]
    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def by_digest(out: Path) -> dict[bytes, np.ndarray]:
    return {row["digest"]: np.array(row["embedding"], np.float32) for row in rows_of(out)}


def test_a_row_is_what_the_model_says_of_the_photo(tmp_path, photos, tiny_model_folder):
    report = embed_collection(
        photos, tmp_path / "out", tiny_model_folder, captions=True, part_size=3, workers=0
    )
    assert (report.parts, report.written, report.photos, report.embedded, report.skipped) == (3, 3, 8, 8, [])
    rows = rows_of(tmp_path / "out")
    assert [row["item"] for row in rows] == list(range(8))
    assert [row["key"] for row in rows] == [*(f"{n:04}.png" for n in (0, 1, 2, 4, 5, 6, 7)), "below/3.png"]
    files = [photos / row["key"] for row in rows]
    model = MMGEM.from_pretrained(tiny_model_folder)
    embedded = np.array([row["embedding"] for row in rows], np.float32)
    np.testing.assert_allclose(embedded, model.embed_images(files), atol=1e-6)
    assert [row["caption"] for row in rows] == model.caption(files)
    assert [(row["width"], row["height"]) for row in rows] == [image_size(file) for file in files]
    digests = [hashlib.blake2b(file.read_bytes(), digest_size=16).digest() for file in files]
    assert [row["digest"] for row in rows] == digests
    table = pq.read_table(tmp_path / "out" / "parts")
    assert table.num_rows == 8
    assert str(table.schema.field("embedding").type) == f"fixed_size_list<element: float>[{model.dim}]"


def test_a_folder_its_tars_and_its_parquet_give_the_same(tmp_path, tiny_model_folder):
    records = load_dataset(toys.photos(tmp_path / "data", 5, 0))
    vectors = {}
    for format in ("tar", "parquet"):
        pack(records, tmp_path / format, format, per_shard=2)
        report = embed_collection(
            tmp_path / format, tmp_path / f"out-{format}", tiny_model_folder, part_size=3, workers=0
        )
        assert (report.parts, report.photos) == (2, 5)
        vectors[format] = by_digest(tmp_path / f"out-{format}")
        shards = [row["shard"] for row in rows_of(tmp_path / f"out-{format}")]
        assert shards == [f"train-0000{n}.{format}" for n in (0, 0, 1, 1, 2)]
    embed_collection(tmp_path / "data" / "images", tmp_path / "out", tiny_model_folder, workers=0)
    vectors["folder"] = by_digest(tmp_path / "out")
    assert vectors["folder"].keys() == vectors["tar"].keys() == vectors["parquet"].keys()
    for digest, vector in vectors["folder"].items():
        np.testing.assert_allclose(vectors["tar"][digest], vector, atol=1e-6)
        np.testing.assert_allclose(vectors["parquet"][digest], vector, atol=1e-6)


def test_a_killed_worker_costs_nothing(tmp_path, tiny_model_folder, ray, capfd):
    """SIGKILL of a worker in the middle of a part: complete, no duplicates, the same as without Ray."""
    save_photos(tmp_path / "photos", 240)
    args = {"model": tiny_model_folder, "part_size": 60}
    embed_collection(tmp_path / "photos", tmp_path / "here", workers=0, **args)
    over = threading.Event()
    watch = threading.Thread(target=kill_one, args=(tmp_path / "out" / "parts", over))
    watch.start()
    report = embed_collection(tmp_path / "photos", tmp_path / "out", workers=2, **args)
    over.set()
    watch.join()
    assert (report.parts, report.photos, report.embedded, report.died) == (4, 240, 240, 1)
    assert capfd.readouterr().out == ""
    one, other = rows_of(tmp_path / "here"), rows_of(tmp_path / "out")
    assert [row["item"] for row in other] == list(range(240))
    for row in one + other:
        row["embedding"] = np.round(row["embedding"], 5).tolist()
    assert one == other


def kill_one(parts: Path, over: threading.Event) -> None:
    """Kill the first worker that is seen in the middle of a part."""
    while not over.wait(0.002):
        for busy in parts.glob(".*.tmp"):
            os.kill(int(busy.name.split(".")[-2]), signal.SIGKILL)
            return


def test_the_error_of_a_worker_is_raised_as_it_was(tmp_path, photos, tiny_model_folder, ray):
    parts = find_collection(photos).partitions(4)
    (tmp_path / "out").mkdir()
    job = BulkJob(photos, tmp_path / "out", str(tiny_model_folder), "")
    with pytest.raises(UsageError, match="out: not there on a worker"):
        list(write_on_ray(job, parts, 1, None))
    with pytest.raises(UsageError, match="3 workers need as many CPUs; the cluster has 2"):
        list(write_on_ray(job, parts, 3, None))


def test_a_run_that_was_interrupted_makes_what_is_missing(tmp_path, photos, tiny_model_folder, monkeypatch):
    written: list[int] = []
    make = Worker.write_partition

    def stops(self: Worker, part: Partition) -> int:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(part.number)
        return make(self, part)

    args = (photos, tmp_path / "out", tiny_model_folder, False, 2, 0)
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "write_partition", stops)
        with pytest.raises(KeyboardInterrupt):
            embed_collection(*args)
    parts = tmp_path / "out" / "parts"
    before = {part: part.stat().st_ino for part in parts.iterdir()}
    assert written == [0, 1] and len(before) == 2
    (parts / ".000002.parquet.host.1.tmp").write_bytes(b"half a part")
    report = embed_collection(*args)
    assert (report.parts, report.written, report.photos, report.embedded) == (4, 2, 8, 4)
    assert all(part.stat().st_ino == inode for part, inode in before.items())
    assert [row["item"] for row in rows_of(tmp_path / "out")] == list(range(8))
    assert embed_collection(*args).written == 0


def test_other_settings_in_the_same_folder_are_refused(tmp_path, photos, tiny_model_folder):
    out = tmp_path / "out"
    embed_collection(photos, out, tiny_model_folder, part_size=4, workers=0)
    before = [part.read_bytes() for part in sorted((out / "parts").iterdir())]
    other = save_tiny_model(tmp_path / "other", seed=1)
    for changed, message in (
        ({"part_size": 3}, r"part_size 4 \(now 3\)"),
        ({"captions": True}, r"captions False \(now True\)"),
        ({"model": other}, r"model \w+ \(now \w+\)"),
    ):
        with pytest.raises(UsageError, match=message):
            embed_collection(
                photos, out, **{"model": tiny_model_folder, "part_size": 4, "workers": 0} | changed
            )
    shutil.copy(photos / "0000.png", photos / "new.png")
    with pytest.raises(UsageError, match=r"photos 8 \(now 9\)"):
        embed_collection(photos, out, tiny_model_folder, part_size=4, workers=0)
    assert [part.read_bytes() for part in sorted((out / "parts").iterdir())] == before


def test_bad_photos_are_counted_and_told(tmp_path, photos, tiny_model_folder, capfd):
    cut = (photos / "0001.png").read_bytes()[:60]
    (photos / "0001.png").write_bytes(cut)
    (photos / "0005.png").write_bytes(b"")
    words = ["bulk", photos, "--out", tmp_path / "out", "--model", tiny_model_folder]
    assert main([*map(str, words), "--part-size", "3", "--workers", "0", "--json"]) == 0
    stdout, stderr = capfd.readouterr()
    counts = json.loads(stdout)
    assert counts.pop("seconds") > 0
    assert counts == {"parts": 3, "written": 3, "photos": 6, "embedded": 6, "skipped": 2, "died": 0}
    assert "skipped 2, " in stderr and "first 0001.png: " in stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()]
    assert [(line["item"], line["key"], line["shard"]) for line in lines] == [
        (1, "0001.png", None),
        (4, "0005.png", None),
    ]
    assert lines[1]["reason"] == "is empty"
    assert [row["item"] for row in rows_of(tmp_path / "out")] == [0, 2, 3, 5, 6, 7]


def test_a_collection_without_a_good_photo_is_an_error(tmp_path, tiny_model_folder):
    save_photos(tmp_path / "photos", 2)
    for photo in (tmp_path / "photos").iterdir():
        photo.write_bytes(b"no photo")
    with pytest.raises(ImageError, match="none of the 2 photos could be read"):
        embed_collection(tmp_path / "photos", tmp_path / "out", tiny_model_folder, workers=0)


def test_a_part_that_kills_its_workers_is_given_up(tmp_path, photos):
    output, (part, *_) = OutputFolder(tmp_path / "out"), find_collection(photos).partitions(3)
    with output.locked({}):
        for n in range(5):
            (output.partition_file(0).parent / f".000000.parquet.host.{n}.tmp").touch()
        with pytest.raises(DataError, match=r"5 workers died making it .photos 0 to 2, from 0000\.png on"):
            output.temporary_file(part).__enter__()
        with (
            pytest.raises(UsageError, match="another run is writing here"),
            OutputFolder(tmp_path / "out").locked({}),
        ):
            pass


def test_a_damaged_part_is_told(tmp_path, photos, tiny_model_folder):
    args = (photos, tmp_path / "out", tiny_model_folder, False, 4, 0)
    embed_collection(*args)
    part = tmp_path / "out" / "parts" / "000001.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"000001.parquet: damaged; remove it and run again"):
        embed_collection(*args)
    part.unlink()
    assert embed_collection(*args).embedded == 4


def test_without_ray_it_is_said_how_to_get_it(tmp_path, photos, tiny_model_folder, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ray", None)
    words = ["bulk", photos, "--out", tmp_path / "out", "--model", tiny_model_folder]
    assert main([*map(str, words)]) == 2
    assert "workers need Ray: pip install 'mmgem[ray]'; --workers 0 does without" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*map(str, words), "--workers", "0"]) == 0


def test_arguments_that_cannot_work(tmp_path, photos, tiny_model_folder):
    def refuses(message: str, source: Path, out: Path = tmp_path / "out", **options: object) -> None:
        with pytest.raises(UsageError, match=message):
            embed_collection(source, out, tiny_model_folder, **{"workers": 0} | options)  # type: ignore[arg-type]

    (tmp_path / "empty").mkdir()
    refuses("no photos in this folder", tmp_path / "empty")
    refuses("no such folder", tmp_path / "nowhere")
    refuses("the parts would lie among the photos", photos, photos)
    refuses("an address needs workers", photos, address="auto")
    (photos / "a.tar").touch()
    refuses("has photos and shards; name the shards", photos)


def test_parts_are_cut_across_shards(tmp_path):
    pack(load_dataset(toys.photos(tmp_path / "data", 7, 0)), tmp_path / "shards", "tar", per_shard=3)
    parts = find_collection(tmp_path / "shards").partitions(4)
    assert [Partition.from_json(part.to_json()) for part in parts] == parts
    spans = [[(span.file, span.start, span.stop) for span in part.spans] for part in parts]
    zero, one, two = (f"train-0000{n}.tar" for n in range(3))
    assert spans == [[(zero, 0, 3), (one, 0, 1)], [(one, 1, 3), (two, 0, 1)]]
    assert [(part.first, len(part)) for part in parts] == [(0, 4), (4, 3)]


def test_an_index_takes_its_vectors_from_the_parts(tmp_path, photos, tiny_model_folder, capfd):
    """Only what is in no part goes through the model; a photo may have been moved since."""
    embed_collection(photos, tmp_path / "out", tiny_model_folder, part_size=3, workers=0)
    (photos / "0001.png").rename(photos / "below" / "moved.png")
    known = fingerprint(tiny_model_folder)
    embedded: list[Path] = []

    class Model(MMGEM):
        def embed_images(self, images, boxes=None):
            embedded.extend(images)
            return super().embed_images(images, boxes)

    def embedder() -> PrecomputedEmbedder:
        return PrecomputedEmbedder(tmp_path / "out", known, lambda: Model.from_pretrained(tiny_model_folder))

    assert update_index(tmp_path / "idx", photos, embedder, known).embedded == 8
    assert embedded == []
    new = save_photo(photos / "new.png", seed=9)
    (photos / "bad.png").write_bytes(b"no photo")
    report = update_index(tmp_path / "idx", photos, embedder, known)
    assert (report.embedded, [bad.path for bad in report.failed]) == (1, ["bad.png"])
    assert set(embedded) == {new, photos / "bad.png"}
    index = PhotoIndex.open(tmp_path / "idx")
    expected = MMGEM.from_pretrained(tiny_model_folder).embed_images(index.paths)
    np.testing.assert_allclose(index.vectors, expected, atol=1e-6)

    words = ["index", photos, "--out", tmp_path / "idx2", "--model", tiny_model_folder, "--vectors"]
    assert main([*map(str, words), str(tmp_path / "out")]) == 0
    told = f"9 photos (9 embedded, 8 of them taken over from {tmp_path / 'out'}, 0 moved or copied"
    assert told in capfd.readouterr().out
    other = save_tiny_model(tmp_path / "other", seed=1)
    shutil.rmtree(tmp_path / "idx2")
    assert main([*map(str, [*words, tmp_path / "out", "--model", other])]) == 2
    assert "made by another model" in capfd.readouterr().err
    part = tmp_path / "out" / "parts" / "000001.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    assert main([*map(str, words), str(tmp_path / "out")]) == 1
    assert "000001.parquet: damaged" in capfd.readouterr().err
    assert main([*map(str, words), str(photos)]) == 2
    assert "nothing of mmgem bulk here" in capfd.readouterr().err
