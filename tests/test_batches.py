"""Batches: the same on every run, every image and every caption in turn, mirrored pictures told mirrored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import toys
from PIL import Image

from mmgem.config import DataConfig
from mmgem.data.batches import Batch, Batches
from mmgem.data.features import FeatureCache, Joined
from mmgem.data.records import Record, Region
from mmgem.data.sampling import group_similar
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


def boxed_records(folder: Path, count: int = 6) -> list[Record]:
    """Images of 40 x 20 pixels with four boxes each; every caption is of one box alone."""
    words = [" ".join([*("a dog", "a cat")[k % 2 : k % 2 + 1], "left", "of"]) for k in range(4)]
    made = []
    for i in range(count):
        path = folder / f"{i}.png"
        Image.new("RGB", (40, 20)).save(path)
        boxes = [(10.0 * k, 2.0, 10.0 * k + 8, 12.0) for k in range(4)]
        said = [(f"{words[k]} {toys.WORDS[10 + i]} {toys.WORDS[20 + k]}",) for k in range(4)]
        regions = tuple(Region(box, text) for box, text in zip(boxes, said, strict=True))
        made.append(Record(path, (f"a {toys.WORDS[10 + i]}",), regions=regions))
    return made


def told_boxes(batch: Batch) -> list[tuple[int, tuple[float, ...], str]]:
    """(image, box, text) of every boxed item of a batch."""
    assert batch.boxes is not None
    assert batch.box_valid is not None
    assert batch.box_features is not None
    images = batch.box_features[:, 0, 0, 0].int().tolist()
    assert len(images) == len(batch.boxes)
    rows = [(images[r], tuple(batch.boxes[r, k].tolist())) for r, k in batch.box_valid.nonzero().tolist()]
    said = [toys.tokenizer().decode(t.tolist()) for t in batch.texts[len(batch.texts) - len(rows) :]]
    assert batch.text_owner.tolist() == list(range(len(batch.texts)))
    return [(image, box, text) for (image, box), text in zip(rows, said, strict=True)]


def test_boxes_come_with_their_own_text(tmp_path: Path) -> None:
    data = boxed_records(tmp_path)
    made = batches(data, features(6, views=2), size=8, region_share=0.75, boxes_per_image=3)
    assert (made.size, made.boxes, made.box_images, made.per_epoch) == (2, 6, 2, 3)
    turned = set()
    for step in range(30):
        batch = made[step]
        items = told_boxes(batch)
        assert len(items) == 6
        assert len(batch.features) == 2
        assert batch.photos is not None
        assert len(batch.photos) == 8
        for image, box, text in items:
            (k,) = [k for k in range(4) if toys.WORDS[20 + k] in text.split()]
            assert toys.WORDS[10 + image] in text.split()
            mirrored = "right" in text.split()
            x0, x1 = 10.0 * k * 32 / 40, (10.0 * k + 8) * 32 / 40
            expected = (32 - x1, 3.2, 32 - x0, 19.2) if mirrored else (x0, 3.2, x1, 19.2)
            assert box == pytest.approx(expected)
            turned.add(mirrored)
    assert turned == {True, False}


def test_all_boxed_images_take_turns(tmp_path: Path) -> None:
    made = batches(boxed_records(tmp_path), features(6), size=4, region_share=1.0, boxes_per_image=2)
    assert (made.size, made.box_images, made.per_epoch) == (0, 2, 3)
    seen = [image for step in range(3) for image, _, _ in told_boxes(made[step])]
    assert Counter(seen) == Counter(dict.fromkeys(range(6), 2))


def test_a_box_out_of_view_is_not_told(tmp_path: Path) -> None:
    data = boxed_records(tmp_path, 3)
    made = batches(data, features(3, views=40), size=4, region_share=1.0, crop_scale=0.2)
    few = 0
    for step in range(40):
        for _, (x0, y0, x1, y1), _ in told_boxes(made[step]):
            seen = max(0, min(x1, 32) - max(x0, 0)) * max(0, min(y1, 32) - max(y0, 0))
            assert seen >= 0.6 * (x1 - x0) * (y1 - y0) - 1e-3
        few += len(told_boxes(made[step])) < 4
    assert few


def test_whole_images_are_the_same_with_and_without_boxes(tmp_path: Path) -> None:
    data = boxed_records(tmp_path)
    alone, both = batches(data, features(6), size=3), batches(data, features(6), size=6, region_share=0.5)
    for step in range(4):
        a, b = alone[step], both[step]
        assert images_of(a) == images_of(b)
        assert all(torch.equal(x, y) for x, y in zip(a.texts, b.texts, strict=False))


def test_boxes_may_come_from_other_records_and_maps(tmp_path: Path) -> None:
    data = boxed_records(tmp_path)
    plain, boxed = [Record(r.image, r.captions) for r in data[:4]], data[4:]
    source, maps = features(4), FeatureCache([np.full((2, 3, 3, 2), 7, np.float16)], [0, 1], [])
    config = DataConfig(train=tmp_path, region_share=0.5, boxes_per_image=2)
    made = Batches(plain, source, toys.tokenizer(), config, 8, 0, None, (boxed, maps))
    batch = made[0]
    assert batch.features.shape == (4, 1, 1, 2)
    assert batch.box_features is not None
    assert batch.box_features.shape == (2, 3, 3, 2)
    assert len(batch.texts) == 8
    assert made.texts[:4] == [r.captions[0] for r in plain]


def test_long_texts_join_captions_of_one_image() -> None:
    data = records(8)
    made = batches(data, features(8), size=8, joined_caption_prob=0.5)
    counts: Counter[int] = Counter()
    for step in range(20):
        batch = made[step]
        assert len(batch.texts) == 8
        for image, tokens in zip(images_of(batch), batch.texts, strict=True):
            words = " ".join(toys.WORDS[t] for t in tokens)
            said = words.split(" <unk> ")  # what the toy tokenizer makes of a full stop
            assert set(said) <= set(data[image].captions)
            assert len(set(said)) == len(said)
            counts[len(said)] += 1
        assert batch.vocabulary is not None
        assert set(batch.caption_targets.tolist()) <= set(batch.vocabulary.tolist())
    assert set(counts) == {1, 2, 3, 4, 5}
    assert 0.35 < counts[1] / 160 < 0.65


def test_two_sources_are_read_as_one() -> None:
    one, two = features(4, views=3), features(3, views=1, valid=[0, 2])
    joined = Joined([one, two], [4, 3])
    assert joined.valid == [0, 1, 2, 3, 4, 6]
    assert joined.views_of([0, 6, 3]).tolist() == [3, 1, 3]
    got = joined.read([6, 1, 4, 3], [0, 2, 0, 1])[:, 0, 0].tolist()
    assert got == [[2, 0], [1, 2], [0, 0], [3, 1]]


def test_extra_sets_have_their_share_of_every_step() -> None:
    data, source = records(20), features(20)
    config = DataConfig(train=Path("data.jsonl"), extra_share=0.25)
    made = Batches(data, source, toys.tokenizer(), config, 4, 0, extra=5)
    assert (made.size, made.extra_size, made.per_epoch) == (3, 1, 5)
    seen = [images_of(made[step]) for step in range(10)]
    assert all(sum(i >= 15 for i in images) == 1 for images in seen)
    assert Counter(i for images in seen for i in images) == Counter(dict.fromkeys(range(20), 2))
    captions = Counter(tuple(ids.tolist()) for step in range(25) for ids in made[step].captions)
    assert set(captions.values()) == {1}  # five rounds of five captions: each once
    plain = batches(data[:15], features(15), size=3)
    assert [images[:3] for images in seen] == [images_of(plain[step]) for step in range(10)]


def test_translations_are_embedded_and_not_predicted() -> None:
    data = [
        Record(r.image, r.captions, translations={"de": (f"{toys.WORDS[10 + i]} und",), "ko": ("of of",)})
        if i % 2
        else r
        for i, r in enumerate(records(8))
    ]
    made = batches(data, features(8), size=8, translation_prob=1.0)
    batch = made[0]
    images = images_of(batch)
    assert (len(batch.captions), len(batch.texts)) == (8, 12)
    assert batch.caption_owner.tolist() == list(range(8))
    own = batch.text_owner.tolist()
    for n, owner in enumerate(own):
        second = n > 0 and own[n - 1] == owner
        said = toys.tokenizer().decode(batch.texts[n].tolist())
        assert second == (said in ("of of", toys.WORDS[10 + images[owner]]))
        assert not second or images[owner] % 2
    assert len({tuple(made[s].texts[1].tolist()) for s in range(9)}) > 2
    plain = batches(data, features(8), size=8)
    assert all(
        torch.equal(a, b)
        for step in range(3)
        for a, b in zip(plain[step].captions, made[step].captions, strict=True)
    )
    few = batches(data, features(8), size=8, translation_prob=0.5)
    count = sum(len(few[step].texts) - 8 for step in range(100))
    assert 160 < count < 240


def test_photos_and_mosaics_share_the_boxes(tmp_path: Path) -> None:
    data = boxed_records(tmp_path)
    mosaics = [
        Record(
            r.image, r.captions, regions=tuple(Region(g.box, g.captions, {"photo": "x"}) for g in r.regions)
        )
        for r in data[:4]
    ]
    boxed = (mosaics + data[4:], features(6))
    config = DataConfig(train=tmp_path, region_share=1.0, boxes_per_image=2, mosaic_share=0.25)
    made = Batches(data, features(6), toys.tokenizer(), config, 8, 0, None, boxed)
    assert made.box_images == 4
    for start in (0, 6):
        seen = Counter(i for step in range(start, start + 4) for i, _, _ in told_boxes(made[step]))
        assert sum(count for image, count in seen.items() if image < 4) == 8  # a quarter of 32
        assert seen[4] == seen[5] == 12


def test_similar_images_come_together(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    order = group_similar(np.random.default_rng(1), vectors, 3)
    assert sorted(order) == list(range(50))
    first, *others = order[:4]
    seeds = set(np.random.default_rng(1).permutation(50)[:12])
    near = [i for i in np.argsort(-vectors @ vectors[first]) if i not in seeds]
    assert set(others) == set(near[:3])
    together = (vectors[order[:48:4]] * vectors[order[1:48:4]]).sum(1).mean()
    assert together > (vectors[:-1] * vectors[1:]).sum(1).mean() + 0.1


def test_hard_negatives_are_the_same_on_every_run_and_take_every_image_once() -> None:
    data, source = records(12), features(12)
    count = len(dict.fromkeys(text for record in data for text in record.captions))
    teacher = np.random.default_rng(0).standard_normal((count, 8)).astype(np.float32)
    teacher /= np.linalg.norm(teacher, axis=1, keepdims=True)
    config = DataConfig(train=Path("data.jsonl"), hard_negatives=1)
    one, two = (Batches(data, source, toys.tokenizer(), config, 4, 0, teacher) for _ in range(2))
    assert [images_of(two[s]) for s in (5, 0, 3)] == [images_of(one[s]) for s in (5, 0, 3)]
    assert sorted(i for s in range(3) for i in images_of(one[s])) == list(range(12))
    assert images_of(one[0]) != images_of(batches(data, source)[0])


def test_where_a_label_is_named_the_caption_of_the_image_is_predicted() -> None:
    words = [f"a {toys.sentence(np.random.default_rng(i), 3)}" for i in range(4)]
    data = [Record(Path(f"/{i}.jpg"), (f"name {i}", f"the name {i}", words[i])) for i in range(3)]
    data.append(Record(Path("/3.jpg"), ("name 3",)))
    learned = {
        text: f"{record.captions[0]}." for record in data for text in record.captions if "name" in text
    }
    config = DataConfig(train=Path("data.jsonl"))
    made = Batches(data, features(4), toys.tokenizer(), config, 4, 0, labels=learned)
    tokens = {text: toys.tokenizer().encode_all([text])[0].tolist() for text in (*words, "name 3.")}
    embedded = set()
    for step in range(9):
        batch = made[step]
        for i, caption, text in zip(images_of(batch), batch.captions, batch.texts, strict=True):
            assert caption.tolist() == tokens[words[i] if i < 3 else "name 3."]
            embedded.add((i, tuple(text.tolist())))
    assert len(embedded) == 3 * 3 + 1  # the names are embedded, and the captions too
