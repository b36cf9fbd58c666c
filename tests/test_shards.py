"""Shards: what is packed comes back, from tar and parquet alike; what is broken costs itself only."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from tiny import save_photo

from mmgem.cli.data import app
from mmgem.data.images import image_size, open_image
from mmgem.data.readers import load_dataset
from mmgem.data.records import Record, Region, read_jsonl, write_jsonl
from mmgem.data.shards import find_shards, is_shards, open_photos, open_shard, pack
from mmgem.data.shards import tar as tar_module
from mmgem.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def jpeg(seed: int = 0, size: tuple[int, int] = (24, 16)) -> bytes:
    held = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    Image.fromarray(pixels).save(held, "JPEG")
    return held.getvalue()


def dataset(folder: Path, count: int = 10) -> Path:
    """A dataset with everything a record can hold, of two splits."""
    records = []
    for i in range(count):
        path = save_photo(folder / "images" / f"a.{i}.{('png', 'jpg')[i % 2]}", seed=i)
        regions = (Region((0.1, 1.0, 10.5, 20.0), (f"ear {i}",), {"photo": f"p{i}"}),) if i % 3 == 0 else ()
        meta = {"id": i, "text": "not a caption", "none": None} if i % 2 else {}
        captions = (f"photo {i}", "Zwei Hunde \u2028 🐕\nund mehr")[: i % 3]
        label = f"class {i % 2}" if not captions else None
        split = "train" if i < count - 2 else "dev"
        records.append(Record(path, captions, split, label, regions, meta))
    write_jsonl(folder / "data.jsonl", records)
    return folder / "data.jsonl"


def put_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def without_folder(record: Record, root: Path) -> tuple:
    name = str(record.image.relative_to(root))
    return name, record.captions, record.split, record.label, record.regions, record.meta


def read_all(paths: list[Path]) -> list[tuple[bytes, tuple]]:
    found = []
    for path in paths:
        shard = open_shard(path)
        assert shard.problems == []
        assert sum(shard.blocks) == shard.samples == len(shard)
        for i in range(shard.samples):
            sample = shard.read(i)
            assert shard.captioned[i] == bool(sample.record.captions)
            found.append((sample.photo, without_folder(sample.record, path)))
    return found


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_what_is_packed_comes_back_record_for_record(tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    source = dataset(tmp_path / "data")
    records = read_jsonl(source)
    made = pack(records, tmp_path / "out", format, per_shard=3)
    names = [f"train-{n:05}.{format}" for n in range(3)] + [f"dev-00000.{format}"]
    assert [path.name for path in made.shards] == names
    assert (made.samples, made.kept, made.problems) == (10, 0, [])
    assert made.bytes == sum(path.stat().st_size for path in made.shards)
    root = tmp_path / "data" / "images"
    assert read_all(made.shards) == [(r.image.read_bytes(), without_folder(r, root)) for r in records]
    assert find_shards(tmp_path / "out", "dev") == made.shards[3:]


@pytest.mark.parametrize("format", ["tar", "parquet"])
def test_the_same_input_gives_the_same_bytes(tmp_path, format):
    if format == "parquet":
        pytest.importorskip("pyarrow")
    source = dataset(tmp_path / "data")
    one = pack(read_jsonl(source), tmp_path / "one", format, shard_mb=0.001, size=8)
    shutil.copytree(tmp_path / "data", tmp_path / "elsewhere")
    two = pack(read_jsonl(tmp_path / "elsewhere" / "data.jsonl"), tmp_path / "two", format, 0, 0.001, 8)
    assert len(one.shards) > 2
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert [p.name for p in one.shards] == [p.name for p in two.shards]
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_a_killed_pack_was_writing_is_removed(tmp_path):
    source = dataset(tmp_path / "data")
    pack(read_jsonl(source), tmp_path / "whole", per_shard=3)
    out = tmp_path / "out"
    out.mkdir()
    split = next((tmp_path / "whole").glob("*-00000.tar")).name.removesuffix("-00000.tar")
    shard = f"{split}-00000.tar"
    others = [".somebody.1-ab.tmp", f".{split}-1.tar.1-ab.tmp"]
    for name in (f".{shard}.1-ab.tmp", f"..{shard}.crc32.1-ab.tmp", f".{split}.pack.json.1-ab.tmp", *others):
        (out / name).write_bytes(b"half")
    pack(read_jsonl(source), out, per_shard=3)
    assert contents(out) == contents(tmp_path / "whole") | dict.fromkeys(others, b"half")


def test_a_killed_pack_goes_on_where_it_was(tmp_path):
    source = dataset(tmp_path / "data", 12)
    whole = pack(read_jsonl(source), tmp_path / "whole", per_shard=2)
    out = tmp_path / "out"
    # Slowed down so that the kill falls in the middle of a shard.
    code = f"""
import time
from pathlib import Path
import mmgem.data.shards.write as m
from mmgem.data.records import read_jsonl
shrink = m._shrink
m._shrink = lambda *args: (time.sleep(0.3), shrink(*args))[1]
m.pack(read_jsonl({str(source)!r}), Path({str(out)!r}), per_shard=2)
"""
    child = subprocess.Popen([sys.executable, "-c", code])
    while not (out / "train-00001.tar").exists():
        assert child.poll() is None
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (out / "train-00004.tar").exists()
    kept = (out / "train-00000.tar").stat().st_mtime_ns
    again = pack(read_jsonl(source), out, per_shard=2)
    assert 1 <= again.kept < 6
    assert (out / "train-00000.tar").stat().st_mtime_ns == kept
    assert again.samples == whole.samples == 12
    assert contents(out) == contents(tmp_path / "whole")
    assert pack(read_jsonl(source), out, per_shard=2).kept == 6


def test_shards_of_other_data_are_not_mixed(tmp_path):
    source = dataset(tmp_path / "data")
    pack(read_jsonl(source), tmp_path / "out", per_shard=3)
    for options in ({"per_shard": 4}, {"per_shard": 3, "size": 8}):
        with pytest.raises(UsageError, match=r"train.pack.json: the shards here are of other data"):
            pack(read_jsonl(source), tmp_path / "out", **options)
    (tmp_path / "out" / "train.pack.json").unlink()
    with pytest.raises(UsageError, match="made by something else"):
        pack(read_jsonl(source), tmp_path / "out", per_shard=3)


def test_unreadable_photos_are_counted_and_skipped(tmp_path):
    records = read_jsonl(dataset(tmp_path / "data", 6))
    whole = records[1].image.read_bytes()
    records[1].image.write_bytes(whole[: len(whole) // 2])
    records[2].image.write_bytes(b"no photo")
    records[3].image.unlink()
    made = pack(records, tmp_path / "out", per_shard=2)
    assert made.samples == 3
    assert [p.partition(": ")[0] for p in made.problems] == [str(records[i].image) for i in (1, 2, 3)]
    assert made.problems[2].endswith("No such file or directory")
    # What was skipped does not move the others to another shard, and is remembered.
    assert [open_shard(path).samples for path in made.shards] == [1, 0, 2]
    again = pack(records, tmp_path / "out", per_shard=2)
    assert (again.problems, again.kept) == (made.problems, 3)
    records = [Record(path.image, path.captions) for path in records[1:4]]
    with pytest.raises(DataError, match="nothing could be packed"):
        pack(records, tmp_path / "none")


def test_large_photos_are_shrunk_with_their_boxes(tmp_path):
    large = save_photo(tmp_path / "large.png", size=(80, 60))
    small = save_photo(tmp_path / "small.png", size=(40, 20))
    region = Region((8.0, 6.0, 80.0, 60.0), ("it",))
    made = pack([Record(p, ("x",), regions=(region,)) for p in (large, small)], tmp_path / "out", size=30)
    shard = open_shard(made.shards[0])
    one, two = shard.read(0), shard.read(1)
    assert open_image(one.photo).size == (40, 30)
    assert one.record.regions[0].box == (4.0, 3.0, 40.0, 30.0)
    assert one.record.image.name == "large.png"
    assert two.photo == small.read_bytes()
    assert two.record.regions == (region,)


def test_a_truncated_tar_costs_its_tail_only(tmp_path):
    whole = put_tar(
        tmp_path / "whole.tar",
        [(f"{i}.{kind}", data) for i in range(5) for kind, data in (("jpg", jpeg(i)), ("txt", b"a dog"))],
    )
    shard = open_shard(whole)
    assert (shard.samples, shard.problems) == (5, [])
    offset, size = shard.index.rows[3, 1:3].tolist()
    data = whole.read_bytes()
    lost = {
        offset + size // 2: (3, "3.jpg: cut off; the tar ends in the middle of it"),
        offset - 100: (3, "cut off after 2.txt"),
        offset - 512: (3, "cut off after 2.txt"),
        offset + size + 600: (3, "3.jpg: no caption"),
    }
    for at, (samples, said) in lost.items():
        (tmp_path / "cut.tar").write_bytes(data[:at])
        cut = open_shard(tmp_path / "cut.tar")
        assert cut.samples == samples, said
        assert any(f"{cut.path}: {said}" in problem for problem in cut.problems), cut.problems
        assert [cut.read(i) for i in range(samples)] == [
            type(s)(s.key, s.photo, Record(cut.path / s.record.image.name, s.record.captions))
            for s in map(shard.read, range(samples))
        ]
    damaged = bytearray(data)
    damaged[offset - 512 : offset] = b"x" * 512
    (tmp_path / "cut.tar").write_bytes(bytes(damaged))
    cut = open_shard(tmp_path / "cut.tar")
    assert cut.samples == 3
    assert "damaged after 2.txt" in cut.problems[0]


def test_broken_members_are_skipped_and_counted(tmp_path):
    shard = open_shard(
        put_tar(
            tmp_path / "wild.tar",
            [
                ("a/1.jpg", jpeg()),
                ("a/1.json", b"{broken"),
                ("a/2.jpg", jpeg()),
                ("a/3.txt", b"no photo"),
                ("a/4.jpg", jpeg()),
                ("a/4.txt", b"good"),
                ("a/5.jpg", jpeg()),
                ("a/5.txt", b" \n\n"),
                ("a/6.jpg", jpeg()),
                ("a/6.txt", b"\xff\xfe"),
                ("a/7.jpg", jpeg()),
                ("a/7.json", json.dumps({"captions": ["x"], "regions": [{"box": [1, 2]}]}).encode()),
                ("a/8.jpg", jpeg()),
                ("a/8.json", b'{"caption": "half \\ud83d a dog"}'),
                ("a/9.jpg", jpeg()),
                ("a/9.json", b"[1]"),
            ],
        )
    )
    assert shard.samples == 1
    assert shard.read(0).record.captions == ("good",)
    reasons = [p.removeprefix(f"{shard.path}: ") for p in shard.problems]
    assert " ".join(reason.split(": ")[0] for reason in reasons) == (
        "a/1.jpg a/2.jpg a/3.txt a/5.jpg a/6.jpg a/7.jpg a/8.jpg a/9.jpg"
    )
    assert "json" in reasons[0]
    assert reasons[1].endswith("no caption")
    assert reasons[2].endswith("no photo beside it")
    assert "regions[0].box" in reasons[5]


def test_photos_alone_need_nothing_beside_them(tmp_path):
    members = [
        ("a/1.jpg", jpeg(1)),
        ("a/1.json", b"{broken"),
        ("a/2.left.jpg", jpeg(2)),
        ("a/2.right.PNG", jpeg(3)),
        ("a/3.txt", b"no photo"),
        ("a/.4.jpg", jpeg(4)),
    ]
    shard = open_photos(put_tar(tmp_path / "photos.tar", members))
    samples = [shard.read(i) for i in range(shard.samples)]
    assert [sample.key for sample in samples] == ["a/1", "a/2", "a/2"]
    assert [sample.photo for sample in samples] == [jpeg(1), jpeg(2), jpeg(3)]
    assert samples[1].record == Record(shard.path / "a/2.left.jpg")
    assert shard.problems == []
    # The same file as a shard of photos with captions is another thing, and stays so.
    assert open_shard(shard.path).samples == 0
    assert open_photos(shard.path).samples == 3


@pytest.mark.parametrize("key", ["key", "url"])
def test_photos_alone_of_parquet(tmp_path, key):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    photos = [jpeg(0), None, jpeg(2)]
    parquet.write_table(
        pa.table({key: ["x", "y", "z"], "jpg": photos}), tmp_path / "a.parquet", row_group_size=2
    )
    shard = open_photos(tmp_path / "a.parquet")
    samples = [shard.read(i) for i in range(shard.samples)]
    named = ["x", "z"] if key == "key" else ["00000000", "00000002"]
    assert [(sample.key, sample.photo) for sample in samples] == [(named[0], jpeg(0)), (named[1], jpeg(2))]
    assert shard.problems == [f"{shard.path}: row 1: no bytes of a photo"]


def test_tars_of_the_wild(tmp_path):
    shard = open_shard(
        put_tar(
            tmp_path / "wild.tar",
            [
                ("sub/1.txt", b"\xef\xbb\xbfone\n\n two  words \n"),  # text before photo
                ("sub/1.JPG", jpeg(1)),
                ("sub/1.json", b'{"caption": "other", "width": 3, "url": "http://x"}'),
                ("._2.jpg", b"macOS"),
                ("2.png", jpeg(2)),
                ("2.json", b'{"caption": "said", "image": "http://x/y.jpg", "label": 3}'),
                ("3.webp", jpeg(3)),
                ("3.cls", b"7\n"),
                ("3.npy", b"..."),
                ("2.png", jpeg(4)),  # a key again
                ("2.txt", b"again"),
                ("5.jpg", jpeg(5)),
                ("5.json", b'{"sentences": [{"raw": "s1"}, {"raw": "s2"}], "label": ""}'),
            ],
        )
    )
    assert shard.problems == []
    samples = [shard.read(i) for i in range(shard.samples)]
    assert [s.photo for s in samples] == [jpeg(i) for i in (1, 2, 3, 4, 5)]
    assert [s.key for s in samples] == ["sub/1", "2", "3", "2", "5"]
    records = [s.record for s in samples]
    assert [r.captions for r in records] == [("one", "two words"), ("said",), (), ("again",), ("s1", "s2")]
    assert [r.label for r in records] == [None, "3", "7", None, None]
    assert records[0].meta == {"caption": "other", "width": 3, "url": "http://x"}
    assert records[1].image == shard.path / "2.png"
    assert shard.captioned.tolist() == [True, True, False, True, True]


def test_the_second_time_a_shard_is_not_scanned(tmp_path, cache, monkeypatch):
    path = put_tar(tmp_path / "s.tar", {"1.jpg": jpeg(), "1.txt": b"a dog", "2.jpg": jpeg()})
    first = open_shard(path)
    assert len(list(cache.rglob("*.index"))) == 1

    def scan(_: Path) -> None:
        raise AssertionError("scanned again")

    with monkeypatch.context() as patch:
        patch.setattr(tar_module, "_scan", scan)
        again = open_shard(path)
        assert again.problems == first.problems != []
        assert again.read(0) == first.read(0)
    put_tar(path, {"1.jpg": jpeg(), "1.txt": b"a cat"})
    os.utime(path, ns=(1, 1))
    assert open_shard(path).read(0).record.captions == ("a cat",)
    (index,) = cache.rglob("*.index")
    index.write_bytes(index.read_bytes()[:-3])
    assert open_shard(path).samples == 1
    shutil.rmtree(cache)
    cache.write_text("not a folder")
    assert open_shard(path).samples == 1


def test_a_shard_that_shrinks_after_it_was_opened_is_an_error(tmp_path):
    shard = open_shard(put_tar(tmp_path / "s.tar", {"1.jpg": jpeg(), "1.txt": b"a dog"}))
    shard.path.write_bytes(b"")
    with pytest.raises(DataError, match=r"s.tar: 1.jpg: cut off; has the file changed"):
        shard.read(0)


def test_what_is_no_shard(tmp_path):
    (tmp_path / "text.tar").write_text("no tar " * 200)
    (tmp_path / "gz.tar").write_bytes(b"\x1f\x8b" + b"x" * 600)
    (tmp_path / "empty.tar").write_bytes(b"")
    for name in ("text.tar", "gz.tar", "empty.tar"):
        with pytest.raises(DataError, match=f"{name}: not an uncompressed tar file"):
            open_shard(tmp_path / name)
    with pytest.raises(UsageError, match="No such file"):
        open_shard(tmp_path / "none.tar")
    with pytest.raises(UsageError, match="not a shard"):
        open_shard(tmp_path / "x.zip")


def test_which_files_are_shards(tmp_path):
    for name in ("train-00000.tar", "train-00001-of-2.parquet", "train-extra-00000.tar", "dev.tar", "x.txt"):
        (tmp_path / name).touch()
    names = {
        split: [path.name for path in find_shards(tmp_path, split)] for split in ("train", "dev", None, "")
    }
    assert names["train"] == ["train-00000.tar", "train-00001-of-2.parquet"]
    assert names["dev"] == ["dev.tar"]
    assert len(names[None]) == len(names[""]) == 4
    assert find_shards(tmp_path / "train-0*.tar", "other") == [tmp_path / "train-00000.tar"]
    assert find_shards(tmp_path / "dev.tar") == [tmp_path / "dev.tar"]
    for path, split in ((tmp_path, "test"), (tmp_path / "no*.tar", None), (tmp_path / "x.txt", None)):
        with pytest.raises(UsageError):
            find_shards(path, split)
    assert is_shards(tmp_path)
    assert is_shards(tmp_path / "a-*.tar")
    assert not is_shards(tmp_path / "x.txt")
    assert not is_shards(tmp_path / "none")


def test_parquet_of_hugging_face(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    hf = {"info": {"features": {"label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}}}
    rows = [
        {"image": {"bytes": jpeg(0), "path": "0.jpg"}, "caption": ["a", "b"], "label": 1, "n": 0},
        {"image": {"bytes": None, "path": "1.jpg"}, "caption": ["gone"], "label": 0, "n": 1},
        {"image": {"bytes": jpeg(2), "path": None}, "caption": ["c"], "label": None, "n": 2},
        {"image": None, "caption": ["d"], "label": 1, "n": 3},
        {"image": {"bytes": jpeg(4), "path": None}, "caption": [], "label": None, "n": 4},
        {"image": {"bytes": jpeg(5), "path": "5.jpg"}, "caption": ["e"], "label": 0, "n": 5},
    ]
    table = pa.Table.from_pylist(rows).replace_schema_metadata({"huggingface": json.dumps(hf)})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    shard = open_shard(tmp_path / "t.parquet")
    assert shard.blocks == [1, 1, 1]
    samples = [shard.read(i) for i in (2, 0, 1)]
    assert [s.photo for s in samples] == [jpeg(5), jpeg(0), jpeg(2)]
    assert [s.record.captions for s in samples] == [("e",), ("a", "b"), ("c",)]
    assert [s.record.label for s in samples] == ["cat", "dog", None]
    assert [s.record.image.name for s in samples] == ["5.jpg", "0.jpg", "00000002"]
    assert samples[0].record.meta == {"n": 5}
    reasons = [p.removeprefix(f"{shard.path}: ") for p in shard.problems]
    assert reasons == ["row 1: no bytes of a photo", "row 3: no bytes of a photo", "row 4: no caption"]


@pytest.mark.parametrize("column", ["caption", "text", "sentences"])
def test_parquet_of_bytes(tmp_path, column):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"photo_bytes": [jpeg()], column: ["a dog"]}), tmp_path / "t.parquet")
    sample = open_shard(tmp_path / "t.parquet").read(0)
    assert (sample.photo, sample.record.captions) == (jpeg(), ("a dog",))
    data = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-9])
    with pytest.raises(DataError, match=r"cut.parquet: not a whole parquet file"):
        open_shard(tmp_path / "cut.parquet")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "no.parquet")
    with pytest.raises(DataError, match=r"no.parquet: no column of photos"):
        open_shard(tmp_path / "no.parquet")


def test_webdataset_reads_ours_and_we_read_its(tmp_path):
    wds = pytest.importorskip("webdataset")
    records = read_jsonl(dataset(tmp_path / "data"))[:8]
    (ours,) = pack(records, tmp_path / "out").shards
    seen = list(wds.WebDataset(str(ours), shardshuffle=False))
    assert [s.get("jpg", s.get("png")) for s in seen] == [r.image.read_bytes() for r in records]
    lines = ["".join(" ".join(c.split()) + "\n" for c in r.captions) for r in records]
    assert [s.get("txt", b"").decode() for s in seen] == lines
    assert [json.loads(s["json"])["captions"] for s in seen] == [list(r.captions) for r in records]
    with wds.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        for i in range(3):
            said = {"txt": f"photo {i}"} if i else {"json": {"caption": "photo 0", "id": 7}}
            writer.write({"__key__": f"k{i}", "jpg": jpeg(i), **said})
    theirs = open_shard(tmp_path / "theirs.tar")
    assert theirs.problems == []
    samples = [theirs.read(i) for i in range(3)]
    assert [s.photo for s in samples] == [jpeg(i) for i in range(3)]
    assert [s.record.captions for s in samples] == [(f"photo {i}",) for i in range(3)]
    assert samples[0].record.meta == {"id": 7}


def run(capfd, *argv: object) -> tuple[str, str]:
    command = typer.main.get_command(app)
    capfd.readouterr()
    with command.make_context("data", [str(arg) for arg in argv]) as context:
        command.invoke(context)
    return capfd.readouterr()


def test_the_command(tmp_path, capfd):
    source = dataset(tmp_path / "data")
    load_dataset(source)[0].image.write_bytes(b"broken")
    out, err = run(capfd, "pack", source, "--out", tmp_path / "out", "--split", "train", "--per-shard", 5)
    shards = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    assert out.splitlines() == shards
    assert len(shards) == 2
    assert err.startswith("mmgem: skipped ") and "a.0.png" in err
    out, _ = run(
        capfd, "pack", source, "--out", tmp_path / "out", "--split", "train", "--per-shard", 5, "--json"
    )
    facts = json.loads(out)
    assert facts.keys() == {"shards", "samples", "bytes", "kept", "skipped", "problems"}
    assert (facts["shards"], facts["samples"], facts["kept"], facts["skipped"]) == (shards, 7, 2, 1)
    with pytest.raises(UsageError, match="exclude each other"):
        run(capfd, "pack", source, "--out", tmp_path / "o", "--per-shard", 5, "--shard-mb", 5)
    assert image_size(open_shard(Path(shards[0])).read(0).photo) == (48, 36)
