"""A fault of the memory, the rights or the disk while a photo is read is no verdict on the photo."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import toys
from PIL import Image
from test_index import PixelEmbedder, paint, update
from tiny import save_photos

from mmgem.bulk import collection, embed_collection
from mmgem.cli.main import main
from mmgem.data import images as images_module
from mmgem.data.images import attempt, image_size, open_image
from mmgem.data.records import Record
from mmgem.data.shards import open_shard, write
from mmgem.data.shards.write import pack
from mmgem.encoders.feature_cache import cache_features
from mmgem.errors import ImageError, TransientImageError, is_transient
from mmgem.search import index_files
from mmgem.utils.files import open_regular

FAULTS = [MemoryError(), *(OSError(n, os.strerror(n)) for n in (errno.EIO, errno.EMFILE, errno.ENFILE))]
FAULTS += [OSError(n, os.strerror(n)) for n in (errno.ESTALE, errno.EACCES, errno.ETIMEDOUT, errno.ENOMEM)]


@pytest.fixture
def fail(monkeypatch) -> Callable[..., None]:
    """``fail(error, name)``: opening the photo of that file name, or any given as bytes, raises ``error``;
    ``fail()``: no more."""
    opened = images_module._open_file
    fault: list[tuple[Exception, str]] = []

    def open_file(file):
        if fault and fault[0][1] == Path(getattr(file, "name", "")).name:
            raise fault[0][0]
        return opened(file)

    monkeypatch.setattr(images_module, "_open_file", open_file)

    def change(error: Exception | None = None, name: str = "") -> None:
        fault[:] = [] if error is None else [(error, name)]

    return change


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_passing_fault_is_an_error_of_its_own(tmp_path, monkeypatch, fault):
    (photo,) = save_photos(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(images_module, "open_regular", lambda *_: (_ for _ in ()).throw(fault))
        for call in (open_image, image_size):
            with pytest.raises(TransientImageError, match=r"0000\.png: could not be read now: \w"):
                call(photo)
    assert open_image(photo).size == (48, 36)


def test_faults_of_the_bytes_or_the_name_are_verdicts(tmp_path):
    (photo,) = save_photos(tmp_path, 1)
    data = photo.read_bytes()
    for source in (data[:-30], data[:20], b"", b"x" * 99, tmp_path, tmp_path / "none.png", "a\0b.png"):
        with pytest.raises(ImageError) as error:
            open_image(source)
        assert not isinstance(error.value, TransientImageError) and "read now" not in str(error.value)
    assert is_transient(OSError("out of memory error when reading image file"))
    assert not is_transient(OSError("image file is truncated")) and not is_transient(ValueError())


def test_a_fault_while_the_orientation_is_read_is_not_upright(tmp_path, monkeypatch):
    (photo,) = save_photos(tmp_path, 1)

    def fails(_: Image.Image) -> Image.Exif:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Image.Image, "getexif", fails)
    for call in (open_image, image_size):
        with pytest.raises(TransientImageError):
            call(photo)


def test_a_batch_too_large_for_the_memory_is_halved():
    def most_two(batch: list[str]) -> list[str]:
        if len(batch) > 2:
            raise MemoryError
        return batch

    assert attempt(most_two, list("abcde")) == list("abcde")

    def never(_: list[str]) -> list[str]:
        raise MemoryError

    (result,) = attempt(never, ["a.png"])
    assert isinstance(result, TransientImageError) and "a.png: could not be read now" in str(result)


# --- index


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "photos"
    for n in range(5):
        paint(folder / f"{n}.png", n)
    shutil.copy(folder / "3.png", folder / "3 again.png")
    return folder


@pytest.mark.parametrize("fault", [MemoryError(), OSError(errno.EIO, "Input/output error")], ids=repr)
def test_the_index_tries_a_photo_again(tmp_path, folder, fail, fault):
    out = tmp_path / "idx"
    fail(fault, "3.png")
    (folder / "3 again.png").unlink()
    report, _ = update(out, folder)
    reason = "out of memory" if isinstance(fault, MemoryError) else "Input/output error"
    assert [(bad.path, bad.reason, bad.transient) for bad in report.failed] == [("3.png", reason, True)]
    assert report.failed[0].explanation == f"could not be read now: {reason}"
    assert report.photos == 4
    fail()
    report, embedded = update(out, folder)
    assert (report.failed, report.photos, embedded) == ((), 5, ["3.png"])


def test_an_embedder_without_memory_gets_smaller_batches(tmp_path, folder):
    class Small(PixelEmbedder):
        def embed_images(self, images):
            if len(images) > 2:
                raise MemoryError
            return super().embed_images(images)

    report, _ = update(tmp_path / "idx", folder, Small(), batch=32)
    assert (report.failed, report.photos, report.embedded) == ((), 6, 5)


def test_what_an_earlier_version_banned_is_tried_again(tmp_path, folder):
    out = tmp_path / "idx"
    data = (folder / "3.png").read_bytes()
    for name in ("3.png", "3 again.png"):
        (folder / name).write_bytes(b"no photo")
    (folder / "4.png").write_bytes(b"none either")
    assert update(out, folder)[0].photos == 3
    database = index_files.database_file(out)
    with sqlite3.connect(database) as db:  # as if memory had been short when 3.png was read
        number = db.execute("SELECT content FROM photos WHERE path = ?", (b"3.png",)).fetchone()[0]
        db.execute("UPDATE contents SET problem = 'MemoryError' WHERE id = ?", (number,))
    db.close()
    for checksum in out.glob(".*.crc32"):
        checksum.unlink()
    report, _ = update(out, folder)
    assert {bad.path: bad.transient for bad in report.failed} == dict.fromkeys(
        ("3.png", "3 again.png", "4.png"), False
    )
    assert all("not an image" in bad.reason for bad in report.failed)
    (folder / "3.png").write_bytes(data)
    assert update(out, folder)[1] == ["3.png"]


# --- features


def test_features_of_a_photo_are_tried_again(tmp_path, fail):
    photos = save_photos(tmp_path / "photos", 4)
    photos[1].write_bytes(b"no photo")
    encoder, prep = toys.network().encoder, toys.prep()
    fail(OSError(errno.EMFILE, "Too many open files"), "0002.png")
    cache = cache_features(encoder, prep, photos, tmp_path / "cache")
    assert cache.valid == [0, 3] and len(cache.problems) == 2
    assert any("could not be read now: Too many open files" in problem for problem in cache.problems)
    fail()
    cache = cache_features(encoder, prep, photos, tmp_path / "cache")
    assert cache.valid == [0, 2, 3] and len(cache.problems) == 1 and "0001.png" in cache.problems[0]
    whole = cache_features(encoder, prep, photos, tmp_path / "other")
    assert np.array_equal(cache.maps[0][2], whole.maps[0][2])


def test_features_an_earlier_version_gave_up_are_tried_again(tmp_path):
    photos = save_photos(tmp_path / "photos", 3)
    encoder, prep = toys.network().encoder, toys.prep()
    cache_features(encoder, prep, photos, tmp_path / "cache")
    (made,) = (tmp_path / "cache").iterdir()
    state = np.lib.format.open_memmap(made / "state.npy", "r+")
    state[1] = 2
    state.flush()
    (made / "problems.json").write_text(json.dumps({"1": f"{photos[1]}: Input/output error"}))
    again = cache_features(encoder, prep, photos, tmp_path / "cache")
    assert (again.valid, again.problems) == ([0, 1, 2], [])


# --- bulk and shards


@pytest.mark.parametrize("stage", ["read", "decode"])
def test_a_part_that_lacks_a_photo_is_made_again(tmp_path, tiny_model_folder, fail, monkeypatch, stage):
    pytest.importorskip("pyarrow")
    photos = save_photos(tmp_path / "photos", 4)
    words = ["bulk", tmp_path / "photos", "--out", tmp_path / "out", "--model", tiny_model_folder]
    words += ["--part-size", 2, "--workers", 0]
    args = (tmp_path / "photos", tmp_path / "out", tiny_model_folder, False, 2, 0)
    with monkeypatch.context() as patch:
        if stage == "read":

            def refuse(path: Path) -> io.BufferedReader:
                if path == photos[1]:
                    raise PermissionError(13, "Permission denied")
                return open_regular(path)

            patch.setattr(collection, "open_regular", refuse)
        else:
            bad, opened = photos[1].read_bytes(), images_module._open_file

            def short(file):
                if isinstance(file, io.BytesIO) and file.getvalue() == bad:
                    raise MemoryError
                return opened(file)

            patch.setattr(images_module, "_open_file", short)
        report = embed_collection(*args)
        again = embed_collection(*args)
    for result in (report, again):
        (skipped,) = result.skipped
        assert skipped.key == "0001.png" and skipped.transient
        assert skipped.reason.startswith("could not be read now: ")
    assert (report.photos, again.written) == (3, 1)
    report = embed_collection(*args)
    assert (report.photos, report.written, report.skipped) == (4, 1, [])
    assert main([*map(str, words)]) == 0
    assert embed_collection(*args).written == 0


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_a_shard_that_lacks_a_photo_is_packed_again(tmp_path, monkeypatch, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    photos = save_photos(tmp_path / "photos", 4)
    records = [Record(photo, (f"photo {n}",)) for n, photo in enumerate(photos)]

    def fails(path: Path) -> io.BufferedReader:
        if path == photos[2]:
            raise OSError(errno.ESTALE, "Stale file handle")
        return open_regular(path)

    with monkeypatch.context() as patch:
        patch.setattr(write, "open_regular", fails)
        report = pack(records, tmp_path / "out", format, per_shard=2)
    assert (report.samples, report.kept) == (3, 0)
    assert report.problems == [f"{photos[2]}: could not be read now: Stale file handle"]
    report = pack(records, tmp_path / "out", format, per_shard=2)
    assert (report.samples, report.kept, report.problems) == (4, 1, [])
    assert open_shard(report.shards[1]).samples == 2
    assert pack(records, tmp_path / "out", format, per_shard=2).kept == 2


def test_a_fault_while_parquet_is_scanned_is_not_kept(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    from pyarrow import parquet

    from mmgem.errors import DataError

    photos = save_photos(tmp_path / "photos", 2)
    report = pack([Record(photo, ("a photo",)) for photo in photos], tmp_path / "out", "parquet")
    with monkeypatch.context() as patch:

        def fails(*_, **__):
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(parquet.ParquetFile, "read_row_group", fails)
        with pytest.raises(DataError, match="Input/output error"):
            open_shard(report.shards[0])
    assert open_shard(report.shards[0]).samples == 2


def test_out_of_memory_is_no_bug(monkeypatch, capfd, tmp_path):
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr("mmgem.cli.classify.read_classes", fails)
    assert main(["classify", str(tmp_path), "--classes", "a,b"]) == 1
    assert capfd.readouterr().err == "mmgem: error: out of memory\n"
