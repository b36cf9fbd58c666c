"""Streaming: every sample once an epoch, whoever reads; broken ones cost their own place only."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections import Counter
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from PIL import Image
from tiny import save_photo

from mmgem.config import DataConfig
from mmgem.data.features import PixelSource
from mmgem.data.records import Record
from mmgem.data.shards import pack
from mmgem.data.shards.ahead import Ahead, prefetched
from mmgem.data.shards.batches import StreamBatch, StreamBatches
from mmgem.data.shards.order import Order
from mmgem.data.shards.stream import ShardStream
from mmgem.data.transforms import view_geometry
from mmgem.errors import ConfigError, DataError, UsageError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path / "cache"))


def words(number: int) -> str:
    """A text that says ``number``, as toy words."""
    return " ".join(toys.WORDS[10 + int(digit)] for digit in f"{number:04}")


def number(ids: torch.Tensor) -> int:
    return int("".join(str(i - 10) for i in ids.tolist()))


def photo(i: int) -> bytes:
    held = io.BytesIO()
    Image.new("RGB", (6, 4), (i % 256, i // 256, 0)).save(held, "PNG")
    return held.getvalue()


def shards(folder: Path, sizes: list[int], broken: dict[int, bytes] | None = None) -> list[Path]:
    """Tars of ``sizes`` samples, numbered through; photo ``n`` is ``broken[n]`` if given."""
    folder.mkdir(exist_ok=True)
    paths, i = [], 0
    for n, size in enumerate(sizes):
        paths.append(folder / f"train-{n:05}.tar")
        with tarfile.open(paths[-1], "w") as archive:
            for _ in range(size):
                data = (broken or {}).get(i, photo(i))
                for name, what in ((f"{i:04}.png", data), (f"{i:04}.txt", words(i).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(what)
                    archive.addfile(member, io.BytesIO(what))
                i += 1
    return paths


def batches(
    stream: ShardStream, size: int = 4, part: tuple[int, int] = (0, 1), **options: Any
) -> StreamBatches:
    tail = options.pop("tail", "carry")
    config = DataConfig(train=Path("x"), **({"cached": False} | options))
    return StreamBatches(stream, toys.tokenizer(toys.prep(8)), config, size, *part, tail)


def seen(batch: StreamBatch) -> list[int]:
    return [number(ids) for ids in batch.texts]


SIZES = [7, 5, 9, 4, 6] * 4  # 20 shards, 124 samples


# The order


@pytest.mark.parametrize("window", [1, 3, 8, 100])
def test_an_epoch_is_every_sample_once(window):
    order = Order(SIZES, seed=3, window=window)
    assert order.samples == 124
    everything = {(b, i) for b, n in enumerate(SIZES) for i in range(n)}
    epochs = []
    for epoch in range(3):
        places = [tuple(p) for p in order.places(epoch * 124, (epoch + 1) * 124).tolist()]
        assert len(places) == 124
        assert set(places) == everything
        epochs.append(places)
    assert epochs[0] != epochs[1] != epochs[2]
    flat = [place for places in epochs for place in places]
    assert [tuple(p) for p in order.places(0, 372).tolist()] == flat
    again = Order(SIZES, seed=3, window=window)
    assert [tuple(p) for p in again.places(200, 260).tolist()] == flat[200:260]
    assert order.places(5, 5).shape == (0, 2)
    other = Order(SIZES, seed=4, window=window).places(0, 124)
    assert [tuple(p) for p in other.tolist()] != epochs[0]


def test_reading_stays_within_a_window():
    places = Order([50] * 40, seed=0, window=4).places(0, 2000)
    for at in range(0, 2000, 200):
        assert len(set(places[at : at + 200, 0].tolist())) == 4
    # ... and is mixed inside it.
    assert len(set(places[:16, 0].tolist())) > 2


def test_empty_blocks_and_no_samples():
    assert len(set(map(tuple, Order([0, 3, 0, 0, 2], 0, 2).places(0, 5).tolist()))) == 5
    with pytest.raises(DataError):
        Order([0, 0], 0)
    with pytest.raises(UsageError):
        Order([1], 0, window=0)


# Batches


def test_four_workers_on_two_ranks_see_every_sample_once(tmp_path):
    paths = shards(tmp_path / "s", SIZES)
    stream = ShardStream(paths, seed=1, window=3)
    counted: Counter[int] = Counter()
    steps = range(124 // 4 * 2)
    ranks = [
        [seen(b) for b in prefetched(batches(stream, 4, (rank, 2)), steps, workers=4)] for rank in range(2)
    ]
    for rank in ranks:
        assert all(len(part) == 2 for part in rank)
    for epoch in range(2):
        half = [part for rank in ranks for part in rank[epoch * 31 : (epoch + 1) * 31]]
        counted = Counter(i for part in half for i in part)
        assert counted == Counter(range(124))
    alone = batches(ShardStream(paths, seed=1, window=3), 4)
    assert [seen(alone[step]) for step in steps] == [a + b for a, b in zip(*ranks, strict=True)]


def test_the_tail_is_carried_into_the_next_epoch(tmp_path):
    made = batches(ShardStream(shards(tmp_path / "s", [7, 6]), window=2), 4)
    assert made.per_epoch == 13 / 4
    all_ = [i for step in range(13) for i in seen(made[step])]
    for epoch in range(4):
        assert sorted(all_[epoch * 13 : (epoch + 1) * 13]) == list(range(13))


def test_or_dropped(tmp_path):
    made = batches(ShardStream(shards(tmp_path / "s", [7, 6]), window=2), 4, tail="drop")
    assert made.per_epoch == 3
    left = set()
    for epoch in range(12):
        parts = [i for step in range(3) for i in seen(made[epoch * 3 + step])]
        assert len(set(parts)) == 12
        left |= set(range(13)) - set(parts)
    assert len(left) > 4


def test_killed_and_resumed_on_other_numbers_of_ranks_and_workers(tmp_path):
    paths = shards(tmp_path / "s", SIZES)
    said: list[int] = []
    # 2 ranks, then 1 with workers, then 4: each a new process that knows the number of the step only.
    for ranks, workers, first, last in ((2, 0, 0, 11), (1, 2, 11, 20), (4, 0, 20, 31), (3, 0, 31, 62)):
        assert len(said) == 4 * first
        parts = []
        for rank in range(ranks):
            stream = ShardStream(paths, seed=5, window=3)
            made = prefetched(batches(stream, 4, (rank, ranks)), count(first), workers)
            parts.append([seen(batch) for batch in islice(made, last - first)])
            made.close()
        said += [i for step in zip(*parts, strict=True) for part in step for i in part]
    assert sorted(said[:124]) == sorted(said[124:]) == list(range(124))
    whole = batches(ShardStream(paths, seed=5, window=3), 4)
    assert said == [i for step in range(62) for i in seen(whole[step])]


def test_a_batch_is_what_training_reads(tmp_path):
    made = batches(ShardStream(shards(tmp_path / "s", [9])), 4, captions_per_image=3, cached_augmentations=5)
    for step in (3, 0, 3):
        batch = made[step]
        assert batch.pixels is not None and batch.pixels.shape == (4, 3, 8, 8)
        assert batch.pixels.dtype == torch.float32
        assert batch.features.shape == (0, 3, 8, 8)
        assert batch.text_owner.tolist() == [0, 1, 2, 3]
        assert batch.caption_targets.tolist() == [t for ids in batch.captions for t in [*ids.tolist(), 0]]
        assert batch.photos is not None and len(set(batch.photos.tolist())) == 4
        assert batch.text_keys is not None and len(set(batch.text_keys.tolist())) == 4
        assert (batch.vocabulary, batch.boxes, batch.teacher_texts) == (None, None, None)
        again = pickle.loads(pickle.dumps(made))[step]
        assert torch.equal(again.pixels, batch.pixels)
        assert again.text_keys is not None and torch.equal(again.text_keys, batch.text_keys)


def test_pixels_are_those_of_loose_files(tmp_path):
    records = [
        Record(save_photo(tmp_path / "i" / f"{i}.png", seed=i), (words(i), words(50 + i))) for i in range(6)
    ]
    for format in ("tar", "parquet"):
        if format == "parquet":
            pytest.importorskip("pyarrow")
        stream = ShardStream(pack(records, tmp_path / format, format, per_shard=2).shards, window=2)
        made = batches(stream, 3, cached_augmentations=4)
        source = PixelSource([r.image for r in records], toys.prep(8), 4, 0.5)
        views = set()
        for step in range(20):
            batch = made[step]
            for row, i in zip(batch.pixels, seen(batch), strict=True):
                same = [torch.equal(row, source.read([i % 50], [view])[0]) for view in range(4)]
                assert any(same)
                views.add(same.index(True))
        assert views == set(range(4))


def test_captions_take_turns_and_mirrored_photos_are_told_mirrored(tmp_path):
    path = save_photo(tmp_path / "a.jpg")
    captions = ("a dog on the left of a tree", "a cat on the left of a ball", "a man left of a boat")
    stream = ShardStream(pack([Record(path, captions)], tmp_path / "out").shards)
    made = batches(stream, 8, cached_augmentations=2)
    plain = PixelSource([path], toys.prep(8), 2, 0.5).read([0, 0], [0, 1])
    tokenizer = toys.tokenizer()
    said, mirrored = [], set()
    for step in range(30):
        batch = made[step]
        (ids,), (pixels,) = batch.texts, batch.pixels
        text = tokenizer.decode(ids.tolist())
        flip = torch.equal(pixels, plain[1])
        assert flip != torch.equal(pixels, plain[0])
        assert ("right" in text) == flip
        assert view_geometry(1, "a.jpg").flip
        mirrored.add(flip)
        said.append(text.replace("right", "left"))
    assert mirrored == {True, False}
    assert all(set(said[at : at + 3]) == set(captions) for at in range(0, 30, 3))
    joined = batches(stream, 1, joined_caption_prob=1.0)
    assert all(len(joined[step].texts[0]) > 9 for step in range(5))


def test_a_broken_photo_gives_its_place_to_the_next(tmp_path):
    whole = batches(ShardStream(shards(tmp_path / "a", [6, 6]), window=2), 4)
    cut = photo(5)[:-30]
    paths = shards(tmp_path / "b", [6, 6], {5: b"none", 8: cut, 7: b""})
    order = [seen(whole[step]) for step in range(6)]
    for workers, ranks in ((0, 1), (2, 1), (0, 2)):
        parts = []
        for rank in range(ranks):
            made = batches(ShardStream(paths, window=2), 4, (rank, ranks))
            parts.append([seen(batch) for batch in prefetched(made, range(6), workers)])
            if ranks == 1:
                assert len(made.problems) == 2
                assert made.problems[0].startswith(f"{paths[0]}: 1 unusable; the first: 0005: not an image")
                assert f"{paths[1]}: 2 unusable; the first: 000" in made.problems[1]
        for step, expected in enumerate(order):
            got = [i for part in parts for i in part[step]]
            for at, i in enumerate(expected):
                ring = expected[at:] + expected[:at]
                assert got[at] == next(j for j in ring if j not in (5, 7, 8))
                assert got[at] == i or i in (5, 7, 8)
    made = batches(ShardStream(paths, window=2), 4)
    for step in range(3):
        twice = made[step]
        assert len(set(twice.photos.tolist())) == len(set(twice.text_keys.tolist())) == len(set(seen(twice)))
        assert {place.shard for place, _ in twice.broken} <= {0, 1}


def test_a_step_without_a_usable_sample_is_an_error(tmp_path):
    paths = shards(tmp_path / "s", [3], dict.fromkeys(range(3), b"none"))
    made = batches(ShardStream(paths), 3)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"^step 0: none of its samples can be used; the first: /"):
            next(iter(prefetched(made, range(3), workers)))


def test_captions_that_cannot_be_read_are_passed_over(tmp_path):
    long = " ".join(["dog"] * 100)
    path = save_photo(tmp_path / "a.png")
    records = [Record(path, (long, "a dog")), Record(path, ("a cat",)), Record(path, (long,))]
    made = batches(ShardStream(pack(records, tmp_path / "out").shards), 3, captions_per_image=2)
    decode = toys.tokenizer().decode
    texts = {decode(ids.tolist()) for step in range(3) for ids in made[step].texts}
    assert texts == {"a dog", "a cat"}
    (problem,) = made.problems
    assert ": 2 unusable; the first: 0000000" in problem and "100 tokens is over" in problem


def test_shards_that_cannot_be_opened_are_reported(tmp_path):
    paths = shards(tmp_path / "s", [4, 4, 4])
    data = paths[1].read_bytes()
    paths[1].write_bytes(data[: len(data) // 2])
    paths[2].write_bytes(b"nothing")
    stream = ShardStream([*paths, tmp_path / "none.tar"], window=2)
    assert 4 < stream.samples < 8
    named = [problem.partition(": ")[0] for problem in stream.problems]  # the cut one is, maybe twice
    assert list(dict.fromkeys(named)) == [str(p) for p in (paths[1], paths[2], tmp_path / "none.tar")]
    made = batches(stream, 2)
    assert made.problems == stream.problems
    with pytest.raises(DataError, match="no sample to learn from; the first problem: "):
        ShardStream(paths[2:])


def test_only_samples_with_captions_are_streamed(tmp_path):
    path = save_photo(tmp_path / "a.png")
    records = [Record(path, (words(i),) if i % 3 == 0 else (), label="x") for i in range(12)]
    stream = ShardStream(pack(records, tmp_path / "out", per_shard=5).shards, window=2)
    assert stream.samples == 4
    made = batches(stream, 2)
    assert sorted(seen(made[0]) + seen(made[1])) == [0, 3, 6, 9]


def test_fingerprints_tell_shards_apart(tmp_path):
    paths = shards(tmp_path / "s", [4, 4])
    first = ShardStream(paths).fingerprint
    assert ShardStream(paths).fingerprint == first
    others = [ShardStream(paths, seed=1), ShardStream(paths[:1]), ShardStream(paths[::-1])]
    assert len({first, *(stream.fingerprint for stream in others)}) == 4


def test_fields_that_shards_have_no_use_for(tmp_path):
    stream = ShardStream(shards(tmp_path / "s", [4]))
    for options in ({"cached": True}, {"region_share": 0.5}, {"mosaics": 3}):
        with pytest.raises(ConfigError, match=f"^data.{next(iter(options))}: "):
            batches(stream, **options)


def test_parquet_row_groups_are_read_once_an_epoch(tmp_path, monkeypatch):
    pytest.importorskip("pyarrow")
    from mmgem.data.shards import parquet

    path = save_photo(tmp_path / "a.png")
    monkeypatch.setattr("mmgem.data.shards.write._GROUP", 5)
    records = [Record(path, (words(i),)) for i in range(60)]
    stream = ShardStream(pack(records, tmp_path / "out", "parquet", per_shard=30).shards, window=3)
    read: Counter[tuple[Path, int]] = Counter()
    group = parquet.ParquetShard._group

    def counted(self: parquet.ParquetShard, number: int) -> Any:
        read[self.path, number] += 1
        return group(self, number)

    monkeypatch.setattr(parquet.ParquetShard, "_group", counted)
    made = batches(stream, 15)
    assert sorted(i for step in range(4) for i in seen(made[step])) == list(range(60))
    assert len(read) == 12
    assert set(read.values()) == {1}


def test_ahead_is_the_same_batches(tmp_path):
    made = batches(ShardStream(shards(tmp_path / "s", [9, 9]), window=2), 4)
    state = torch.get_rng_state()
    ahead = Ahead(made, workers=2)
    assert ahead.per_epoch == made.per_epoch
    for step in (2, 3, 4, 1, 2):  # an evaluation, or a resume, may step back
        assert seen(ahead[step]) == seen(made[step])
        assert torch.equal(ahead[step].pixels, made[step].pixels)
    assert torch.equal(torch.get_rng_state(), state)
    ahead.close()
    plain = Ahead(made, workers=0)
    assert seen(plain[3]) == seen(made[3])


def test_other_batches_can_be_made_ahead_too():
    values = [toys.batch(toys.network(), seed=seed) for seed in range(4)]
    for made, expected in zip(prefetched(values, range(4), 2), values, strict=True):
        assert torch.equal(made.features, expected.features)
        assert all(torch.equal(a, b) for a, b in zip(made.texts, expected.texts, strict=True))
        assert made.pixels is None
    with pytest.raises(UsageError):
        next(iter(prefetched(values, range(4), -1)))


def test_json_captions_are_streamed_as_well(tmp_path):
    with tarfile.open(tmp_path / "w.tar", "w") as archive:
        for i in range(5):
            data = json.dumps({"caption": words(i), "url": "x"}).encode()
            for name, what in ((f"{i}.png", photo(i)), (f"{i}.json", data)):
                member = tarfile.TarInfo(name)
                member.size = len(what)
                archive.addfile(member, io.BytesIO(what))
    made = batches(ShardStream([tmp_path / "w.tar"]), 5)
    batch = made[0]
    assert sorted(seen(batch)) == list(range(5))
    reds = [(np.array(row[0, 0, 0]) * 128 + 127).round() for row in batch.pixels]
    assert [int(red) for red in reds] == seen(batch)
