"""Windows pooled as boxes are, telling ones found, heat where the text's picture is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from PIL import Image

from mmgem import MMGEM, UsageError
from mmgem.inference.pyramid import assign_pyramid_levels, input_sizes
from mmgem.inference.region_proposals import (
    embed_windows,
    pairwise_iou,
    pool_windows,
    select_windows,
    sliding_windows,
    spread_windows,
    surrounding_boxes,
)
from mmgem.models.pooling import pool_boxes


@pytest.fixture
def model() -> MMGEM:
    return MMGEM(toys.network(), toys.tokenizer(), batch=2)


def photo(path: Path, size: tuple[int, int] = (64, 48), seed: int = 0) -> Path:
    """Noise with a red patch at the bottom left."""
    pixels = np.random.default_rng(seed).integers(90, 120, (size[1], size[0], 3)).astype(np.uint8)
    pixels[size[1] // 2 :, : size[0] // 2] = (250, 10, 10)
    Image.fromarray(pixels).save(path)
    return path


def test_windows_are_inside_and_of_many_sizes() -> None:
    boxes = sliding_windows()
    assert boxes.min() >= 0
    assert boxes.max() <= 1 + 1e-6
    assert len(boxes) == len(boxes.unique(dim=0))
    areas = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).round(decimals=3).unique()
    assert areas.min() < 0.06
    assert areas.max() > 0.4
    around = surrounding_boxes(boxes)
    assert (around[:, :2] <= boxes[:, :2]).all()
    assert (around[:, 2:] >= boxes[:, 2:]).all()


def test_each_place_listens_to_the_windows_around_it() -> None:
    torch.testing.assert_close(spread_windows(sliding_windows(), 28).sum(0), torch.ones(28, 28))
    corners = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.0, 0.5], [0.5, 0.5]])
    quarters = spread_windows(torch.cat([corners, corners + 0.5], 1), 8).argmax(0)
    assert quarters[::4, ::4].tolist() == [[0, 1], [2, 3]]
    assert torch.equal(quarters, quarters[::4, ::4].repeat_interleave(4, 0).repeat_interleave(4, 1))


def test_windows_are_pooled_as_boxes_are() -> None:
    maps = torch.randn(2, 5, 7, 3)
    boxes = sliding_windows()[::9]
    expected = pool_boxes(maps, (boxes * torch.tensor([7, 5, 7, 5])).expand(2, -1, -1), (5, 7))[:, :, 0]
    torch.testing.assert_close(pool_windows(maps, boxes), expected, atol=1e-5, rtol=1e-4)


def test_windows_are_embedded_as_boxes_are() -> None:
    network = toys.network(projection="mlp")
    maps = torch.randn(1, 4, 4, network.encoder.channels)
    boxes, side = sliding_windows()[::17], float(network.encoder.size)
    inner, frame = embed_windows(network, maps, boxes)
    expected = network.encode_image(maps, (boxes * side)[None])[0, :, 0]
    torch.testing.assert_close(inner[0], expected, atol=1e-5, rtol=1e-4)
    assert frame.shape == inner.shape
    assert torch.isfinite(frame).all()


def test_telling_windows_do_not_overlap_much() -> None:
    boxes = sliding_windows()
    inner, frame = torch.randn(len(boxes), 8), torch.randn(len(boxes), 8)
    inner[5] = -frame[5]  # nothing differs more from what is around it
    selected = select_windows(boxes, inner, frame, 12)
    assert len(selected) == 12
    assert selected[0] == 5
    assert (pairwise_iou(boxes[selected]) - torch.eye(12)).max() < 0.45


def test_overlap_of_boxes() -> None:
    boxes = torch.tensor([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6.0]])
    expected = torch.tensor([[1, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 1.0]])
    torch.testing.assert_close(pairwise_iou(boxes), expected)


def test_found_regions_are_embedded_as_their_boxes(model: MMGEM, tmp_path: Path) -> None:
    paths = [photo(tmp_path / f"{i}.png", (64 + 8 * i, 48), i) for i in range(11)]
    regions = model.find_regions(paths, 6)
    assert len(regions) == 11
    for path, (boxes, vectors) in zip(paths, regions, strict=True):
        assert len(boxes) == len(vectors) == 6
        width, height = Image.open(path).size
        assert all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in boxes)
        again = model.embed_images([path] * 6, boxes)
        np.testing.assert_allclose(vectors, again, atol=0.02)  # boxes are rounded to a tenth of a pixel
    with pytest.raises(UsageError, match="count must be at least 1"):
        model.find_regions(paths, 0)


def test_small_boxes_are_read_at_larger_sides() -> None:
    prep = toys.tokenizer().prep
    prep = dataclasses.replace(prep, size=200, scales=(250,), region_scales=(500, 1000))
    assert input_sizes(prep) == [200, 250, 500, 1000]
    expected = [[0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 1], [0, 0.5, 0.5, 0]]
    weights = assign_pyramid_levels([1.0, 0.5, 0.25, 0.01, 0.8], prep)
    # 0.8 of 200 is too small, of 250 just not; 0.8 of 500 is too large.
    expected[4] = [0, 1, 0, 0]
    np.testing.assert_allclose(weights, expected)
    np.testing.assert_allclose(
        assign_pyramid_levels([0.1, 1.0], dataclasses.replace(prep, scales=(), region_scales=())), 1
    )


def test_boxes_of_all_sizes_are_embedded_alone_as_together(tmp_path: Path) -> None:
    tokenizer = toys.tokenizer()
    tokenizer.prep = dataclasses.replace(tokenizer.prep, scales=(48,), region_scales=(64, 128))
    model = MMGEM(toys.network(), tokenizer, batch=2)
    paths = [photo(tmp_path / f"{i}.png", seed=i) for i in range(10)]
    images = [path for path in paths for _ in range(4)]
    boxes = [(0, 0, 64, 48), None, (2, 2, 30, 25), (40, 30, 50, 40)] * 10
    together = model.embed_images(images, boxes)
    alone = np.concatenate([model.embed_images([i], [b]) for i, b in zip(images, boxes, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(together[1::4], model.embed_images(paths), atol=1e-5)
    sides = []
    hook = model.network.encoder.register_forward_hook(
        lambda _, pixels, __: sides.append(pixels[0].shape[-1])
    )
    model.embed_images(images[2:4], boxes[2:4])
    hook.remove()
    assert sides == [64, 128]  # half of the photo at twice the side, less at the largest; none for nothing


def test_boxes_of_one_photo_share_its_maps(model: MMGEM, tmp_path: Path) -> None:
    one, two = photo(tmp_path / "a.png"), photo(tmp_path / "b.png", seed=1)
    boxes = [(0, 0, 20, 20), None, (5, 5, 60, 40), (1, 2, 30, 40), (0, 0, 64, 48)]
    images = [one, one, one, two, one]
    together = model.embed_images(images, boxes)
    alone = np.concatenate([model.embed_images([i], [b]) for i, b in zip(images, boxes, strict=True)])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    runs = []
    hook = model.network.encoder.register_forward_hook(lambda *_: runs.append(1))
    model.embed_images([one] * 5, boxes)
    hook.remove()
    assert len(runs) == 1
    assert model.caption(images, boxes) == [
        model.caption([i], [b])[0] for i, b in zip(images, boxes, strict=True)
    ]


def test_heat_is_where_the_patch_is(model: MMGEM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = photo(tmp_path / "a.png")
    patch = model.embed_images([path], [(0, 24, 32, 48)])
    monkeypatch.setattr(model, "embed_texts", lambda texts: np.repeat(patch, len(texts), 0))
    heat = model.heatmap(path, ["red", "red"], cells=16)
    assert heat.shape == (2, 16, 16)
    assert heat.dtype == np.float32
    row, column = divmod(int(heat[0].argmax()), 16)
    assert row >= 8
    assert column < 8
