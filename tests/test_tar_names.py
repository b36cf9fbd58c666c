"""Tar members with dots in their names: pairs are read, what is left out is listed."""

from __future__ import annotations

import pytest
from test_shards import jpeg, put_tar

from mmgem.data.shards import index as index_module
from mmgem.data.shards import open_photos, open_shard, tar


def read(path):
    shard = open_shard(path)
    samples = [shard.read(i) for i in range(shard.samples)]
    problems = [problem.removeprefix(f"{path}: ") for problem in shard.problems]
    return {sample.key: (sample.photo, sample.record.captions) for sample in samples}, problems


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))


def test_photos_named_by_their_date_are_pairs(tmp_path):
    members = {
        "day/IMG_2024.05.01.jpg": jpeg(1),
        "day/IMG_2024.05.01.txt": b"a dog",
        "day/IMG_2024.05.02.JPG": jpeg(2),
        "day/IMG_2024.05.02.json": b'{"caption": "a cat"}',
        "v1.2/3.jpg": jpeg(3),
        "v1.2/3.txt": b"a bird",
        "4.jpg": jpeg(4),
        "4.txt": b"a fish",
        "4.b.jpg": jpeg(5),
        "4.b.txt": b"another fish",
    }
    samples, problems = read(put_tar(tmp_path / "s.tar", members))
    assert problems == []
    assert samples == {
        "day/IMG_2024.05.01": (jpeg(1), ("a dog",)),
        "day/IMG_2024.05.02": (jpeg(2), ("a cat",)),
        "v1.2/3": (jpeg(3), ("a bird",)),
        "4": (jpeg(4), ("a fish",)),
        "4.b": (jpeg(5), ("another fish",)),
    }


def test_other_members_of_a_sample_are_passed_over_as_before(tmp_path):
    members = {
        "1.jpg": jpeg(1),
        "1.depth.png": jpeg(2),
        "1.seg.json": b"{}",
        "1.emb.npy": b"...",
        "1.txt": b"a dog",
    }
    samples, problems = read(put_tar(tmp_path / "s.tar", members))
    assert (samples, problems) == ({"1": (jpeg(1), ("a dog",))}, [])


def test_what_is_no_pair_is_listed(tmp_path):
    members = {
        "1.left.jpg": jpeg(1),
        "1.right.jpg": jpeg(2),
        "1.txt": b"two views",
        "IMG_2024.05.01.jpg": jpeg(3),
        "IMG_2024.05.02.txt": b"gone",
        "5.jpg": jpeg(5),
        "5.txt": b"a dog",
    }
    samples, problems = read(put_tar(tmp_path / "s.tar", members))
    assert list(samples) == ["5"]
    assert problems == [
        "1.left.jpg: no caption",
        "1.right.jpg: no caption",
        "1.txt: no photo beside it",
        "IMG_2024.05.01.jpg: no caption",
        "IMG_2024.05.02.txt: no photo beside it",
    ]
    assert open_photos(tmp_path / "s.tar").samples == 4


def test_an_index_by_the_former_rule_is_made_again(tmp_path, monkeypatch):
    path = put_tar(tmp_path / "s.tar", {"a.1.jpg": jpeg(1), "a.1.txt": b"a dog"})
    with monkeypatch.context() as patch:
        patch.setattr(index_module, "_VERSION", 1)
        patch.setattr("mmgem.data.shards.tar._split_known", tar._split)
        assert open_shard(path).samples == 0
    assert open_shard(path).samples == 1
