"""Batches: the same on every run, every image and every caption in turn, mirrored pictures told mirrored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys

from mmgem.config import DataConfig
from mmgem.data.batches import Batch, Batches
from mmgem.data.features import FeatureCache
from mmgem.data.records import Record
from mmgem.data.transforms import view_geometry
from mmgem.errors import DataError


def records(count: int, captions: int = 5) -> list[Record]:
    rng = np.random.default_rng(0)
    return [
        Record(Path(f"/{i}.jpg"), tuple(toys.sentence(rng, 5) for _ in range(captions))) for i in range(count)
    ]


def features(count: int, views: int = 1, valid: list[int] | None = None) -> FeatureCache:
    """Feature maps ``(1, 1, 2)`` that say which image and which view they are of."""
    maps = [
        np.stack([np.arange(count), np.full(count, view)], -1)[:, None, None].astype(np.float16)
        for view in range(views)
    ]
    return FeatureCache(maps, list(range(count)) if valid is None else valid, [])


def batches(
    data: list[Record], source: FeatureCache, size: int = 4, seed: int = 0, **options: Any
) -> Batches:
    config = DataConfig(train=Path("data.jsonl"), **options)
    return Batches(data, source, toys.tokenizer(), config, size, seed)


def images_of(batch: Batch) -> list[int]:
    return batch.features[:, 0, 0, 0].int().tolist()


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    data, source = records(12), features(12, views=3)
    one, two = batches(data, source, captions_per_image=2), batches(data, source, captions_per_image=2)
    for step in (7, 0, 3, 7):
        a, b = one[step], two[step]
        assert torch.equal(a.features, b.features)
        assert torch.equal(a.caption_targets, b.caption_targets)
        assert all(torch.equal(x, y) for x, y in zip(a.texts, b.texts, strict=True))
    other = batches(data, source, seed=1, captions_per_image=2)
    assert any(images_of(one[s]) != images_of(other[s]) for s in range(3))


def test_an_epoch_sees_every_image_once() -> None:
    made = batches(records(12), features(12))
    assert made.per_epoch == 3
    orders = []
    for epoch in range(3):
        seen = [i for step in range(3) for i in images_of(made[epoch * 3 + step])]
        assert sorted(seen) == list(range(12))
        orders.append(seen)
    assert orders[0] != orders[1]


def test_images_left_over_take_turns() -> None:
    made = batches(records(13), features(13))
    assert made.per_epoch == 3
    left = {
        next(iter(set(range(13)) - {i for s in range(3) for i in images_of(made[e * 3 + s])}))
        for e in range(20)
    }
    assert len(left) > 5


@pytest.mark.parametrize(("each", "epochs"), [(1, 10), (2, 5), (5, 2), (3, 5)])
def test_all_captions_are_used_evenly(each: int, epochs: int) -> None:
    data = records(4)
    made = batches(data, features(4), captions_per_image=each)
    ids = [toys.tokenizer().encode_all(r.captions) for r in data]
    used: Counter[tuple[int, int]] = Counter()
    for step in range(epochs):
        batch = made[step]
        images = images_of(batch)
        assert len(batch.texts) == 4 * each
        for tokens, owner in zip(batch.texts, batch.text_owner.tolist(), strict=True):
            image = images[owner]
            (place,) = [c for c in range(5) if torch.equal(ids[image][c], tokens)]
            used[image, place] += 1
    assert set(used.values()) == {each * epochs // 5}
    assert len(used) == 4 * 5


def test_no_caption_twice_before_all_are_used_once() -> None:
    data = records(1)
    made = batches(data, features(1), size=1)
    said = [tuple(made[step].texts[0].tolist()) for step in range(15)]
    for turn in range(3):
        assert len(set(said[5 * turn : 5 * turn + 5])) == 5
    assert said[:5] != said[5:10] or said[:5] != said[10:]


def test_fields_fit_together() -> None:
    batch = batches(records(6), features(6), captions_per_image=3)[0]
    assert batch.features.shape == (4, 1, 1, 2)
    assert batch.pixels is None
    assert batch.text_owner.tolist() == sorted([0, 1, 2, 3] * 3)
    assert torch.equal(batch.text_owner, batch.caption_owner)
    expected = [token for ids in batch.captions for token in [*ids.tolist(), 0]]
    assert batch.caption_targets.tolist() == expected
    assert batch.vocabulary is not None
    assert set(expected) <= set(batch.vocabulary.tolist())
    assert batch.vocabulary.tolist() == sorted(set(batch.vocabulary.tolist()))


def test_mirrored_pictures_have_mirrored_captions() -> None:
    data = [Record(Path("/a.jpg"), ("a dog on the left of a tree", "a cat right of a red ball"))]
    made = batches(data, features(1, views=6), size=1)
    tokenizer = toys.tokenizer()
    seen = set()
    for step in range(60):
        batch = made[step]
        view = int(batch.features[0, 0, 0, 1])
        words = tokenizer.decode(batch.texts[0].tolist()).split()
        told_mirrored = ("right" in words) == ("dog" in words)
        assert told_mirrored == view_geometry(view, "a.jpg").flip
        seen.add(view)
    assert seen == set(range(6))
    assert {toys.WORDS.index("left"), toys.WORDS.index("right")} <= set(batch.vocabulary.tolist())


def test_teacher_rows_follow_their_captions() -> None:
    data = records(6)
    rows = np.arange(30, dtype=np.float32)[:, None]
    config = DataConfig(train=Path("x"), captions_per_image=2)
    made = Batches(data, features(6), toys.tokenizer(), config, 4, 0, rows)
    batch = made[3]
    ids = [tokens for r in data for tokens in toys.tokenizer().encode_all(r.captions)]
    assert batch.teacher_texts is not None
    for tokens, row in zip(batch.texts, batch.teacher_texts[:, 0].int().tolist(), strict=True):
        assert torch.equal(ids[row], tokens)


def test_unusable_images_are_left_out() -> None:
    data = records(8)
    data[5] = Record(Path("/5.jpg"))
    made = batches(data, features(8, valid=[0, 1, 2, 4, 5, 7]), size=100)
    assert made.usable == [0, 1, 2, 4, 7]
    assert (made.size, made.per_epoch) == (5, 1)  # a batch larger than the data is all of it
    with pytest.raises(DataError, match="no readable image has a caption"):
        batches([Record(Path("/a.jpg"))], features(1))


def test_fewer_captions_than_asked_for() -> None:
    data = [*records(2, captions=1), *records(2, captions=4)[1:]]
    batch = batches(data, features(3), size=3, captions_per_image=3)[0]
    counts = Counter(batch.text_owner.tolist())
    images = images_of(batch)
    assert {images[b]: n for b, n in counts.items()} == {0: 1, 1: 1, 2: 3}
