"""The public model: any kind of picture in, the same numbers out, and errors that name the input."""

from __future__ import annotations

import inspect
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import toys
from PIL import Image

import mmgem
from mmgem import MMGEM, CheckpointError, DataError, ImageError, UsageError
from mmgem.checkpoints.resolve import fingerprint
from mmgem.data.images import open_image
from mmgem.data.transforms import normalise, to_square
from mmgem.inference.captioning import generate_captions

TEXTS = ["a dog runs", "two red cat on the grass near water", "snow", "the black and white horse"]


def toy(**options: Any) -> MMGEM:
    """A model whose map has 4 x 4 cells."""
    return MMGEM(toys.network(**options), toys.tokenizer(), batch=2)


def test_from_pretrained(model: MMGEM, tiny_model_folder: Path) -> None:
    assert model.dim == 8
    assert model.fingerprint == fingerprint(tiny_model_folder)
    assert not model.network.training
    with pytest.raises(CheckpointError, match="no such model"):
        MMGEM.from_pretrained(tiny_model_folder / "none")
    assert mmgem.MMGEM is MMGEM


def test_every_name_the_package_promises_is_there() -> None:
    for name in mmgem.__all__:
        assert getattr(mmgem, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        mmgem.nothing  # noqa: B018


def test_all_kinds_of_images_are_the_same_image(model: MMGEM, tiny_photos: list[Path]) -> None:
    path = tiny_photos[0]
    picture = Image.open(path).convert("RGB")
    kinds = [path, str(path), picture, np.asarray(picture), path.read_bytes(), picture.convert("RGBA")]
    embedded = model.embed_images(kinds)
    assert (embedded.shape, embedded.dtype) == ((6, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embedded, np.tile(embedded[:1], (6, 1)), atol=1e-5)


def test_scales_are_averaged(tiny_photos: list[Path]) -> None:
    network, (width, height) = toys.network(), Image.open(tiny_photos[0]).size
    photos, box = tiny_photos[:3], (1.0, 2.0, width - 3.0, height - 1.0)
    single = MMGEM(network, toys.tokenizer())
    double = MMGEM(network, toys.tokenizer(toys.prep(scales=(48,))), batch=2)
    pixels = np.stack([to_square(open_image(p), toys.prep(size=48)) for p in photos])
    with torch.inference_mode():
        maps = network.encoder(normalise(pixels, toys.prep()))
        larger = network.encode_image(maps)[:, 0]
        usual = network.encode_image(
            network.encoder(
                normalise(np.stack([to_square(open_image(p), toys.prep()) for p in photos]), toys.prep())
            )
        )[:, 0]
    wanted = torch.nn.functional.normalize(larger + usual, dim=1).numpy()
    np.testing.assert_allclose(double.embed_images(photos), wanted, atol=1e-5)
    # The same box, wherever the map's resolution puts it.
    mixed = double.embed_images(photos, [box, None, (0, 0, width, height)])
    np.testing.assert_allclose(mixed[1], wanted[1], atol=1e-5)
    assert float(mixed[0] @ single.embed_images(photos[:1], [box])[0]) > 0.9


def test_neighbours_and_batches_do_not_matter(model: MMGEM, tiny_photos: list[Path]) -> None:
    small = MMGEM(model.network, model.tokenizer, batch=2)
    photos = tiny_photos[:5]
    embedded = model.embed_images(photos)
    np.testing.assert_allclose(small.embed_images(photos), embedded, atol=1e-5)
    np.testing.assert_allclose(model.embed_images(photos[3:4])[0], embedded[3], atol=1e-5)
    texts = model.embed_texts(TEXTS)
    np.testing.assert_allclose(small.embed_texts(TEXTS * 5)[: len(TEXTS)], texts, atol=1e-5)
    np.testing.assert_allclose(model.embed_texts(TEXTS[2:3])[0], texts[2], atol=1e-5)
    assert small.caption(photos, beams=2, max_tokens=4) == model.caption(photos, beams=2, max_tokens=4)
    scores = model.score(photos[:4], TEXTS)
    np.testing.assert_allclose(small.score(photos[:4], TEXTS), scores, atol=1e-5)


def test_texts(model: MMGEM) -> None:
    embedded = model.embed_texts(TEXTS)
    assert (embedded.shape, embedded.dtype) == ((4, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(embedded, axis=1), 1, atol=1e-5)
    assert model.embed_texts([]).shape == (0, 8)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(
            model.network.encode_text(model.tokenizer.encode_all(TEXTS)), dim=1
        )
    np.testing.assert_allclose(embedded, expected.numpy(), atol=1e-5)


def test_no_images(model: MMGEM) -> None:
    assert model.embed_images([]).shape == (0, 8)
    assert model.caption([]) == []
    assert model.score([], []).shape == (0,)


def test_a_whole_image_is_no_box(tmp_path: Path) -> None:
    model = toy(visual_grid=2)
    photos = tiny.save_photos(tmp_path, 3)
    whole = model.embed_images(photos)
    np.testing.assert_allclose(model.embed_images(photos, [None] * 3), whole, atol=1e-6)
    mixed = model.embed_images(photos, [None, (3, 3, 20, 20), None])
    np.testing.assert_allclose(mixed[[0, 2]], whole[[0, 2]], atol=1e-6)
    assert not np.allclose(mixed[1], whole[1], atol=1e-3)
    assert model.caption(photos, [None] * 3, max_tokens=4) == model.caption(photos, max_tokens=4)


def test_boxes_are_pixels_of_the_stored_image(tmp_path: Path) -> None:
    model = toy()
    path = tiny.save_photo(tmp_path / "a.png", size=(96, 64))
    box = (20.0, 5.0, 70.0, 50.0)
    pixels = normalise(np.stack([to_square(open_image(path), toys.prep())]), toys.prep())
    with torch.no_grad():
        placed = torch.tensor([[[box[0] / 3, box[1] / 2, box[2] / 3, box[3] / 2]]])
        expected = model.network.encode_image(model.network.encoder(pixels), placed)[0, 0]
    unit = (expected / expected.norm(dim=-1, keepdim=True)).numpy()
    np.testing.assert_allclose(model.embed_images([path], [box]), unit, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 8])
def test_boxes_scale_with_the_image(scale: int, tmp_path: Path) -> None:
    # A large JPEG is decoded at a fraction of its size; its boxes stay in pixels of the file.
    model = toy()
    small = tiny.save_photo(tmp_path / "small.jpg", size=(96, 72))
    large = tiny.save_photo(tmp_path / "large.jpg", size=(96 * scale, 72 * scale))
    box = (12.0, 9.0, 60.0, 70.0)
    both = model.embed_images([small, large], [box, tuple(scale * side for side in box)])
    assert float(both[0] @ both[1]) > 0.999


def test_boxes_of_turned_photos_are_upright(tmp_path: Path) -> None:
    upright = Image.open(tiny.save_photo(tmp_path / "a.png", size=(60, 40)))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    box = (10.0, 5.0, 50.0, 20.0)
    both = toy().embed_images([tmp_path / "a.png", tmp_path / "turned.png"], [box, box])
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)


def test_boxes_with_a_centre_crop(tmp_path: Path) -> None:
    model = MMGEM(toys.network(), toys.tokenizer(toys.prep(resize="crop")))
    wide = Image.open(tiny.save_photo(tmp_path / "a.png", size=(48, 32))).convert("RGB")
    cut = wide.crop((8, 0, 40, 32))
    both = model.embed_images([wide, cut], [(12, 3, 30, 20), (4, 3, 22, 20)])
    np.testing.assert_allclose(both[0], both[1], atol=1e-5)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((5, 5, 5, 9), "x1 > x0"),
        ((5, 5, 2, 9), "x1 > x0"),
        ((0, 0, float("nan"), 9), "x1 > x0"),
        ((1, 2, 3), "x1 > x0"),
        ((100, 5, 120, 9), "outside the image of 48 x 36"),
        ((5, -20, 9, 0), "outside the image"),
    ],
)
def test_boxes_that_cannot_be(box: Any, message: str, model: MMGEM, tiny_photos: list[Path]) -> None:
    with pytest.raises(UsageError, match=message):
        model.embed_images(tiny_photos[:1], [box])


def test_bfloat16_is_nearly_the_same(model: MMGEM, tiny_model_folder: Path, tiny_photos: list[Path]) -> None:
    rough = MMGEM.from_pretrained(tiny_model_folder, precision="bfloat16")
    assert rough.network.llm.dtype == torch.bfloat16 and rough.network.emb_token.dtype == torch.float32
    boxes = [(4.0, 4.0, 40.0, 30.0)] * len(tiny_photos)
    for one, other in (
        (model.embed_images(tiny_photos), rough.embed_images(tiny_photos)),
        (model.embed_images(tiny_photos, boxes), rough.embed_images(tiny_photos, boxes)),
        (model.embed_texts(["a red dog", "snow"]), rough.embed_texts(["a red dog", "snow"])),
    ):
        assert other.dtype == np.float32 and (one * other).sum(1) == pytest.approx(1, abs=0.01)
    texts = ["the dog runs"] * len(tiny_photos)
    assert rough.score(tiny_photos, texts) == pytest.approx(model.score(tiny_photos, texts), abs=0.2)
    assert len(rough.caption(tiny_photos)) == len(tiny_photos)


def test_wrong_arguments(model: MMGEM, tiny_photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="6 images but 1 boxes"):
        model.embed_images(tiny_photos, [None])
    with pytest.raises(UsageError, match="6 images but 1 texts"):
        model.score(tiny_photos, ["a dog"])
    for one in (str(tiny_photos[0]), tiny_photos[0], tiny_photos[0].read_bytes()):
        with pytest.raises(UsageError, match="must be a list"):
            model.embed_images(one)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be a list"):
        model.embed_texts("a dog")
    with pytest.raises(UsageError, match="at least 1"):
        model.caption(tiny_photos, beams=0)
    with pytest.raises(DataError, match="empty text"):
        model.embed_texts(["a dog", " "])
    with pytest.raises(DataError, match="tokens is over"):
        model.score(tiny_photos[:1], ["a dog " * 100])
    assert model.embed_texts(["a dog " * 100]).shape == (1, model.dim)  # embedded in pieces
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8junk")
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        model.embed_images([tiny_photos[0], tmp_path / "broken.jpg"])


def test_captions_are_decoded_text(tmp_path: Path) -> None:
    model = toy(llm="qwen3")
    photos = tiny.save_photos(tmp_path, 3)
    captions = model.caption(photos, beams=2, max_tokens=5, clip_rescore_weight=0)
    pixels = normalise(np.stack([to_square(open_image(p), toys.prep()) for p in photos]), toys.prep())
    with torch.no_grad():
        prefixes = model.network.project_visual_prefix(
            model.network.encode_image(model.network.encoder(pixels))
        )
        found = generate_captions(model.network, prefixes, 0, 2, 5)
    assert captions == [model.tokenizer.decode(c.ids) for c in found]
    assert all(isinstance(c, str) for c in captions)
    assert model.caption(photos, [(0, 0, 20, 20)] * 3, max_tokens=3) is not None


def test_scores_are_mean_log_probabilities(tmp_path: Path) -> None:
    model = toy(visual_tokens=2)
    photos = tiny.save_photos(tmp_path, 4)
    scores = model.score(photos, TEXTS)
    assert (scores.shape, scores.dtype) == ((4,), np.float32)
    pixels = normalise(np.stack([to_square(open_image(p), toys.prep()) for p in photos]), toys.prep())
    network = model.network
    with torch.no_grad():
        prefixes = network.project_visual_prefix(network.encode_image(network.encoder(pixels)))
        for score, prefix, ids in zip(scores, prefixes, model.tokenizer.encode_all(TEXTS), strict=True):
            inputs = torch.cat([prefix, network.cap_token[None], network.llm.embed(ids)])
            log_p = network.llm.lm(inputs_embeds=inputs[None]).logits[0, 2:].log_softmax(-1)
            expected = log_p.gather(1, torch.cat([ids, torch.tensor([0])])[:, None]).mean()
            assert score == pytest.approx(float(expected), abs=1e-5)


def test_a_photo_from_memory_needs_no_file(model: MMGEM) -> None:
    buffer = io.BytesIO()
    Image.new("L", (10, 300), 90).save(buffer, "PNG")
    assert model.embed_images([buffer.getvalue()]).shape == (1, 8)


def test_describe_is_both_at_once(model: MMGEM, tiny_photos: list[Path]) -> None:
    photos, boxes = [tiny_photos[0], tiny_photos[0], tiny_photos[1]], [None, (2, 3, 20, 25), (0, 0, 9, 9)]
    vectors, captions = model.describe(photos, boxes, beams=2)
    np.testing.assert_array_equal(vectors, model.embed_images(photos, boxes))
    assert captions == model.caption(photos, boxes, beams=2)
    vectors, captions = model.describe([])
    assert (vectors.shape, captions) == ((0, model.dim), [])


def test_assess_is_the_old_name_of_the_weight(tiny_photos: list[Path]) -> None:
    model = toy(llm="qwen3")
    for method in (model.caption, model.describe):
        with pytest.warns(DeprecationWarning, match="assess is called clip_rescore_weight") as said:
            old = method(tiny_photos, max_tokens=5, assess=3.0)
        assert said[0].filename == __file__
        new = method(tiny_photos, max_tokens=5, clip_rescore_weight=3.0)
        if method == model.caption:
            assert old == new
        else:
            assert old[1] == new[1]


def test_captions_have_one_set_of_defaults() -> None:
    from mmgem.cli.caption import caption
    from mmgem.inference.caption_options import CAPTION_DEFAULTS, CaptionOptions
    from mmgem.inference.captioning import caption_candidates
    from mmgem.serve.schemas import CaptionRequest

    assert CaptionOptions() == CAPTION_DEFAULTS
    assert CaptionOptions(3, 30, 0.7, 0.15, 3) == CAPTION_DEFAULTS
    assert CaptionRequest.model_fields["beams"].default == CAPTION_DEFAULTS.beams
    for function in (MMGEM.caption, MMGEM.describe, caption_candidates, generate_captions, caption):
        for name, parameter in inspect.signature(function).parameters.items():
            if hasattr(CAPTION_DEFAULTS, name):
                assert parameter.default == getattr(CAPTION_DEFAULTS, name), (function, name)
    for wrong in ({"beams": 0}, {"max_tokens": 0}):
        with pytest.raises(UsageError, match="at least 1"):
            CaptionOptions(**wrong)
    with pytest.raises(UsageError, match="0 or more"):
        CaptionOptions(no_repeat_ngram_size=-1)
