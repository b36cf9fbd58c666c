"""Clips in training: seen as inference sees them, cached or not, beside photos; bad ones are left out."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import films
import numpy as np
import pytest
import spread
import torch
import toys
from PIL import Image

from mmgem.api import MMGEM
from mmgem.data import content_hashes, pictures
from mmgem.data.batches import Batch
from mmgem.data.clips import frames_of
from mmgem.data.features import ClipSource, RecordSource
from mmgem.data.images import open_image
from mmgem.data.pictures import open_pictures, pictures_of
from mmgem.data.records import Media, Record, read_jsonl
from mmgem.data.transforms import normalise, to_square
from mmgem.data.video import has_av
from mmgem.distributed.world import SINGLE_PROCESS
from mmgem.encoders import feature_cache
from mmgem.errors import DataError, ImageError, MomentError, UsageError
from mmgem.inference.images import encode_images
from mmgem.models.network import MMGEMNetwork
from mmgem.models.pooling import pool_full
from mmgem.plan import plan
from mmgem.tasks.image_text.data import image_source
from mmgem.tasks.image_text.grad_cache import chunks
from mmgem.tasks.image_text.items import embed_items
from mmgem.train.loop import prepare, train, train_step
from mmgem.utils.flops import FlopCount

ENCODERS = ["clip", "efficientnet_lite0"]  # all of it cached; a part that is not linear above what is


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    films.save_gif(folder / "a.gif", (1, 2, 3), 3)
    films.save_gif(folder / "b.gif", (4,), 1)
    films.scene(5).save(folder / "photo.png")
    if has_av():
        films.save_film(folder / "film.mp4", (6, 7, 8))
    return folder


def records_in(folder: Path) -> list[Record]:
    """A clip, a moment of it, a photo, a clip of one frame, and a video if they can be read here."""
    gif = folder / "a.gif"
    media = [
        *(
            Media("video", (gif,)),
            Media("video", (gif,), (2.5, 7.5)),
            Media("image", (folder / "photo.png",)),
        ),
        *(Media("video", (folder / "b.gif",)), Media("video", (gif,), (4.0, 4.0))),
    ]
    if has_av():
        media += [Media("video", (folder / "film.mp4",)), Media("video", (folder / "film.mp4",), (1.0, 5.2))]
    return [Record(m, ("a dog runs", "the cat sits on grass")) for m in media]


def made_source(tmp_path: Path, network: MMGEMNetwork, records: list[Record], **changes: Any) -> RecordSource:
    recipe = toys.recipe(tmp_path, tmp_path / "none.jsonl", tmp_path, tmp_path, **changes)
    return image_source(recipe, network, toys.prep(), records, 2)


def seen(network: MMGEMNetwork, source: RecordSource, rows: list[int], view: int = 0) -> torch.Tensor:
    """What a step sees of records."""
    read = source.read(rows, [view] * len(rows))
    none = torch.empty(0)
    batch = Batch(
        *(read if source.cached else read[:0], [], none, [], none, none),
        pixels=None if source.cached else read,
        frames=source.frames(rows) if isinstance(source, ClipSource) else None,
    )
    with torch.no_grad():
        return embed_items(network, batch)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_training_sees_what_inference_sees(encoder: str, folder: Path, tmp_path: Path) -> None:
    network, records = toys.network(encoder=encoder), records_in(folder)
    rows = list(range(len(records)))
    cached = made_source(tmp_path, network, records)
    pixels = made_source(tmp_path, network, records, data__cached=False)
    assert isinstance(cached, ClipSource) and isinstance(pixels, ClipSource)
    assert cached.valid == pixels.valid == rows
    assert cached.frames(rows) == pixels.frames(rows) == [4, 2, 1, 1, 1, 3, 2][: len(rows)]
    model = MMGEM(network, toys.tokenizer())
    with torch.inference_mode():
        expected = encode_images(network, toys.prep(), [record.source for record in records])
    torch.testing.assert_close(seen(network, pixels, rows), expected)
    torch.testing.assert_close(seen(network, cached, rows), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(
        seen(network, cached, rows, 1), seen(network, pixels, rows, 1), atol=2e-2, rtol=2e-2
    )
    assert torch.equal(seen(network, pixels, rows[::-1]), seen(network, pixels, rows).flip(0))
    moving = [r.media for r in records if r.media.kind == "video"]
    vectors = model.embed_videos([m.path for m in moving], [m.moment for m in moving])
    np.testing.assert_allclose(
        vectors, model.embed_images([r.source for r in records if r.media.kind == "video"]), atol=1e-6
    )
    lists = model.embed_videos([frames_of(m.path, m.moment) for m in moving])
    np.testing.assert_allclose(vectors, lists, atol=1e-6)


def test_a_clip_is_the_mean_of_its_frames_maps(folder: Path) -> None:
    network, prep = toys.network(encoder="efficientnet_lite0"), toys.prep()
    frames = frames_of(folder / "a.gif", (2.5, 7.5))
    with torch.no_grad():
        maps = network.encoder(normalise(np.stack([to_square(f, prep) for f in frames]), prep))
        expected = network.visual_projection(pool_full(maps.mean(0, keepdim=True)))
        made = encode_images(network, prep, [Media("video", (folder / "a.gif",), (2.5, 7.5))])
    torch.testing.assert_close(made, expected)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_still_clip_is_the_photo(encoder: str, tmp_path: Path) -> None:
    picture = films.scene(1).quantize(64)
    other = picture.copy()
    other.putpixel((0, 0), (picture.getpixel((0, 0)) + 1) % 64)  # equal frames would be saved as one
    for path, frames in ((tmp_path / "still.gif", [picture]), (tmp_path / "clip.gif", [picture, other])):
        picture.save(path, save_all=True, append_images=frames[1:], duration=[5000] * len(frames))
    network = toys.network(encoder=encoder)
    still, start = (
        Media("video", (tmp_path / "still.gif",)),
        Media("video", (tmp_path / "clip.gif",), (0, 4.9)),
    )
    records = [Record(tmp_path / "still.gif", ("a",)), Record(still, ("a",)), Record(start, ("a",))]
    for cached in (True, False):
        source = made_source(tmp_path, network, records, data__cached=cached)
        assert isinstance(source, ClipSource) and source.frames([0, 1, 2]) == [1, 2, 2]
        rows = seen(network, source, [0, 1, 2])
        torch.testing.assert_close(rows, rows[:1].expand_as(rows))


def test_a_clip_is_decoded_once_a_view(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    plain = pictures.read_frames

    def counting(path: Path, times: list[float], *more: Any) -> list[Image.Image]:
        read.append((Path(path).name, len(times)))
        return plain(path, times, *more)

    monkeypatch.setattr(pictures, "read_frames", counting)
    monkeypatch.setattr(feature_cache, "_CHUNK", 3)
    monkeypatch.setattr(content_hashes, "SETTLED_NS", -1)
    network, records = toys.network(), records_in(folder)[:4]
    source = made_source(tmp_path, network, records)
    assert read == 2 * [("a.gif", 4), ("a.gif", 2), ("b.gif", 1)]
    again = made_source(tmp_path, network, records)
    assert len(read) == 6 and torch.equal(again.read([0], [1]), source.read([0], [1]))
    read.clear()
    made_source(tmp_path, network, records, data__cached=False).read([0, 3, 1], [0, 0, 1])
    assert read == [("a.gif", 4), ("b.gif", 1), ("a.gif", 2)]
    assert made_source(tmp_path, network, records[:1]).read([0], [0]).shape[0] == 4


def test_pictures_come_one_by_one(folder: Path) -> None:
    photo, gif = folder / "photo.png", Media("video", (folder / "a.gif",))
    opened = open_pictures([photo, photo, folder / "none.png", *pictures_of(gif), photo])
    kinds = [type(picture) for picture in opened]
    assert kinds == [Image.Image, Image.Image, ImageError, *[Image.Image] * 5]
    assert next(open_pictures([photo])) == open_image(photo)


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return toys.base_models(tmp_path_factory.mktemp("bases"))


def test_a_mixed_set_is_learned(
    tmp_path: Path, bases: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    data = toys.photos_and_clips(tmp_path / "data")
    rows = data.read_text().splitlines()
    (data.parent / "bad.webp").write_bytes((data.parent / "4.webp").read_bytes()[:100])
    more = [{"video": "4.webp", "start": 60, "end": 61}, {"video": "bad.webp"}, {"video": "absent.gif"}]
    bad = [json.dumps(row | {"captions": ["a dog"], "split": "train"}) for row in more]
    data.write_text("\n".join([*rows[:5], *bad, *rows[5:]]))
    rates = {"optim__lr_llm": 1e-2, "optim__lr_heads": 2e-2, "optim__lr_embeddings": 1e-2}
    recipe = toys.recipe(tmp_path, data, *bases, train__epochs=20, data__cached_augmentations=2, **rates)
    train(recipe)
    assert "3 of 27 images skipped; the first: " in caplog.text
    assert "4.webp: is 6.0 seconds long, and has no second 60" in caplog.text
    log = [json.loads(line) for line in (recipe.train.out / "log.jsonl").read_text().splitlines()]
    steps = [line for line in log if "caption_loss" in line]
    for name in ("caption_loss", "contrastive_loss"):
        assert np.mean([s[name] for s in steps[-5:]]) < 0.8 * np.mean([s[name] for s in steps[:5]])
    assert {"i2t", "t2i", "CIDEr"} <= next(line for line in log if "score" in line).keys()
    model = MMGEM.from_pretrained(recipe.train.out / "model")
    dev = read_jsonl(data, "dev")
    texts = model.embed_texts([f"a {name} ball" for name in toys.COLOURS])
    assert (model.embed_images([r.source for r in dev]) @ texts.T).argmax(1).tolist() == [0, 1, 2, 3] * 2
    for caption, record in zip(model.caption([r.source for r in dev]), dev, strict=True):
        assert caption.lower().rstrip(".") in record.captions


def test_eval_takes_clips(tmp_path: Path, run: Any) -> None:
    data = toys.photos_and_clips(tmp_path / "data")
    options = ["--data", data, "--split", "dev", "--json"]
    told = json.loads(run("eval", "retrieval", *options)[0])
    assert (told["images"], told["skipped"]) == (8, 0)
    (data.parent / "24.png").unlink()
    with data.open("a") as file:
        file.write(json.dumps({"video": "28.webp", "start": 9, "end": 9, "captions": ["a"], "split": "dev"}))
    out, error = run("eval", "retrieval", *options)
    told = json.loads(out)
    assert (told["images"], told["skipped"]) == (7, 2)
    assert "24.png: No such file" in error and "28.webp: is 6.0 seconds long, and has no second 9" in error
    assert json.loads(run("eval", "caption", *options)[0])["images"] == 7


@pytest.mark.parametrize("size", [1, 3, 5, 64])
@pytest.mark.parametrize("cached", [True, False])
def test_chunks_equal_the_whole_batch(tmp_path: Path, bases: Any, cached: bool, size: int) -> None:
    data = toys.photos_and_clips(tmp_path / "data")
    options = {"model__dropout": 0.0, "data__cached": cached, "data__dev_split": "", "train__batch_size": 9}
    if not cached:
        options["optim__lr_encoder"] = 1e-3
    whole, values = spread.first_gradients(toys.recipe(tmp_path, data, *bases, **options), SINGLE_PROCESS)
    options["train__grad_cache_chunk_size"] = size
    recipe = toys.recipe(tmp_path, data, *bases, **options)
    parts, told = spread.first_gradients(recipe, SINGLE_PROCESS)
    assert told == pytest.approx(values, rel=1e-5, abs=1e-5)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, atol=1e-5, rtol=1e-4, msg=name)
    batch = prepare(recipe).tasks[0].batches[0]
    assert batch.frames is not None and set(batch.frames) == {1, 2, 3} and batch.whole_images == 9
    pieces = list(chunks(batch, size))
    assert [n for piece in pieces for n in piece.frames or []] == batch.frames
    assert all(sum(piece.frames or []) <= size or piece.whole_images == 1 for piece in pieces)


def test_names_are_learned_of_clips_too(tmp_path: Path) -> None:
    """The classifier's probabilities of a clip are the mean of its frames'."""
    bases = toys.base_models(tmp_path / "bases", "tied llama", "efficientnet_lite0")
    data = toys.photos_and_clips(tmp_path / "data")
    labels = {"weight": 1.0, "labels": str(toys.labels(tmp_path / "labels"))}
    recipe = toys.recipe(tmp_path, data, *bases, image_text__label_distillation=labels)
    run = prepare(recipe)
    task = run.tasks[0]
    batch = task.load_batch(0, torch.device("cpu"))
    term = task.text_terms[0]
    rows = term._probabilities(batch)
    assert rows.shape == (8, len(toys.CLASSES))
    frames = term.classifier(batch.features).split(batch.frames)
    for row, own in zip(rows, frames, strict=True):
        torch.testing.assert_close(row, own.mean(0))
    assert "label_loss" in train_step(run, 0)[0]


def test_moments_of_a_clip_are_told_apart(tmp_path: Path, bases: Any, folder: Path) -> None:
    prints = []
    for end in (2, 4):
        data = tmp_path / f"{end}.jsonl"
        row = {"video": str(folder / "a.gif"), "start": 0, "end": 2, "captions": ["a dog"], "split": "train"}
        data.write_text(f"{json.dumps(row)}\n{json.dumps(row | {'end': end})}")
        recipe = toys.recipe(tmp_path, data, *bases, data__dev_split="", train__batch_size=2)
        batches = prepare(recipe).tasks[0].batches
        prints.append(batches.fingerprint)
        assert len(set(batches[0].photos.tolist())) == 1 + (end == 4)
    assert prints[0] != prints[1]


def test_a_step_on_clips_is_planned(tmp_path: Path, bases: Any, folder: Path) -> None:
    data = tmp_path / "clips.jsonl"
    rows = [
        {"video": str(folder / "a.gif"), "start": n / 10, "end": 6 + n / 10, "captions": ["a dog runs"]}
        for n in range(8)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    options = {"data__split": "", "data__dev_split": "", "data__cached": False, "optim__lr_encoder": 1e-3}
    recipe = toys.recipe(tmp_path, data, *bases, **options)
    told = plan(recipe)
    run = prepare(recipe)
    with FlopCount() as counted:
        train_step(run, 0)
    assert 1e12 * sum(told.operations.values()) == pytest.approx(counted.total, rel=1e-9)
    data.write_text(
        "\n".join(json.dumps({"video": "not_here.mp4"} | {"captions": r["captions"]}) for r in rows)
    )
    more = plan(recipe)  # as many frames as a clip can have
    assert more.memory["batch"] > 2 * told.memory["batch"] and more.images == told.images == 8


def test_videos_need_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"0")
    records = [Record(Media("video", (tmp_path / "a.mp4",)), ("a",)), Record(tmp_path / "a.png", ("a",))]
    with pytest.raises(UsageError, match=r"videos need PyAV: pip install 'mmgem\[video\]'"):
        made_source(tmp_path, toys.network(), records)


def test_no_clip_can_be_read(tmp_path: Path) -> None:
    records = [Record(Media("video", (tmp_path / "a.gif",)), ("a",))]
    with pytest.raises(
        DataError, match=r"none of the 1 records can be read; the first: .*a\.gif: No such file"
    ):
        made_source(tmp_path, toys.network(), records)


def test_boxes_are_of_images(folder: Path) -> None:
    model = MMGEM(toys.network(), toys.tokenizer())
    with pytest.raises(UsageError, match="a box is one of an image or a sound, not of a clip"):
        model.embed_images([Media("video", (folder / "a.gif",))], [(0, 0, 9, 9)])
    with pytest.raises(MomentError, match="has no second 99"):
        model.embed_images([Media("video", (folder / "a.gif",), (99, 99))])
