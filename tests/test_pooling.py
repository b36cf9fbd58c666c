"""The closed form of RoIAlign's mean against RoIAlign itself, written out in loops and as recorded."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st

from mmgem.models.pooling import axis_weights, pool_boxes, pool_full

FIXTURES = Path(__file__).parent / "fixtures"


def bilinear(values: np.ndarray, y: float, x: float) -> float:
    """RoIAlign's sampling of one channel ``(H, W)``, cell centres at whole numbers."""
    height, width = values.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = math.floor(y), math.floor(x)
    down, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    upper = values[top, left] * (1 - fx) + values[top, right] * fx
    lower = values[down, left] * (1 - fx) + values[down, right] * fx
    return float(upper * (1 - fy) + lower * fy)


def roi_align_mean(values: np.ndarray, box: list[float], bins: int = 7, samples: int = 2) -> float:
    """Aligned RoIAlign of one box in cells, as the paper defines it: samples in bins, bins averaged."""
    x0, y0, x1, y1 = (side - 0.5 for side in box)
    bin_h, bin_w = (y1 - y0) / bins, (x1 - x0) / bins
    means = []
    for row in range(bins):
        for column in range(bins):
            taken = [
                bilinear(
                    values,
                    y0 + row * bin_h + (i + 0.5) * bin_h / samples,
                    x0 + column * bin_w + (j + 0.5) * bin_w / samples,
                )
                for i in range(samples)
                for j in range(samples)
            ]
            means.append(sum(taken) / len(taken))
    return sum(means) / len(means)


BOXES = {
    "inside": [40.0, 50.0, 150.0, 120.0],
    "whole": [0.0, 0.0, 288.0, 192.0],
    "over the left and top border": [-90.0, -70.0, 60.0, 40.0],
    "over the right and bottom border": [200.0, 150.0, 400.0, 300.0],
    "around everything": [-100.0, -100.0, 400.0, 300.0],
    "thinner than a cell": [101.0, 20.0, 103.5, 180.0],
    "a point almost": [64.0, 64.0, 64.01, 64.01],
    "outside": [600.0, 20.0, 700.0, 90.0],
}


@pytest.mark.parametrize("grid", [1, 2, 3])
@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES.keys())
def test_equals_slow_roi_align(box: list[float], grid: int) -> None:
    rng = np.random.default_rng(0)
    maps = rng.standard_normal((6, 9, 2)).astype(np.float32)
    pooled = pool_boxes(torch.from_numpy(maps)[None], torch.tensor([[box]]), (192.0, 288.0), grid, samples=2)
    assert pooled.shape == (1, 1, grid * grid, 2)
    x0, y0, x1, y1 = (side / 32 for side in box)
    for row in range(grid):
        for column in range(grid):
            part = [
                x0 + (x1 - x0) * column / grid,
                y0 + (y1 - y0) * row / grid,
                x0 + (x1 - x0) * (column + 1) / grid,
                y0 + (y1 - y0) * (row + 1) / grid,
            ]
            for c in range(2):
                expected = roi_align_mean(maps[..., c], part)
                assert float(pooled[0, 0, row * grid + column, c]) == pytest.approx(expected, abs=1e-5)


def test_equals_recorded_torchvision() -> None:
    # torchvision 0.29.1: roi_align(aligned=True, sampling_ratio=2, output_size=7), mean over the bins.
    with np.load(FIXTURES / "roi_align.npz") as recorded:
        maps = torch.from_numpy(recorded["map"].astype(np.float32))[None]
        boxes, pooled, stride = torch.from_numpy(recorded["boxes"]), recorded["pooled"], recorded["stride"]
    height, width = (int(n) * int(stride) for n in maps.shape[1:3])
    ours = pool_boxes(maps, boxes[None], (height, width), samples=2)[0, :, 0]
    assert len(ours) == 1000
    np.testing.assert_allclose(ours.numpy(), pooled, atol=1e-5)


def test_batch_rows_are_independent() -> None:
    maps, boxes = torch.randn(3, 5, 7, 4), torch.rand(3, 2, 4) * 40
    boxes[..., 2:] += boxes[..., :2]
    together = pool_boxes(maps, boxes, (50.0, 70.0), 2)
    for b in range(3):
        alone = pool_boxes(maps[b : b + 1], boxes[b : b + 1], (50.0, 70.0), 2)
        torch.testing.assert_close(together[b : b + 1], alone)


def test_full_image_is_the_mean() -> None:
    maps = torch.randn(2, 7, 7, 5)
    torch.testing.assert_close(pool_full(maps)[:, 0], maps.mean((1, 2)))
    whole = torch.tensor([0.0, 0.0, 224.0, 224.0]).expand(2, 1, 4)
    torch.testing.assert_close(pool_boxes(maps, whole, (224.0, 224.0))[:, 0, 0], maps.mean((1, 2)))


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (5, 3), (9, 12), (13, 25), (40, 24), (72, 71), (72, 72)]
)
def test_a_box_over_the_whole_image_is_the_mean_of_any_map(height: int, width: int) -> None:
    maps = torch.randn(1, height, width, 4, generator=torch.Generator().manual_seed(height))
    for scale in (1.0, 32.0, 31.7):
        size = (height * scale, width * scale)
        pooled = pool_boxes(maps, torch.tensor([[[0.0, 0.0, size[1], size[0]]]]), size)[:, 0, 0]
        torch.testing.assert_close(pooled, maps.mean((1, 2)), atol=1e-6, rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(st.floats(-3, 60), st.floats(0.1, 80), st.integers(1, 72))
def test_two_samples_a_bin_or_as_many_as_there_can_be(start: float, length: float, size: int) -> None:
    """As before where a bin has at most two cells; else what ever more samples come to."""
    ends = torch.tensor(start, dtype=torch.float64), torch.tensor(start + length, dtype=torch.float64)
    weights = axis_weights(*ends, size)
    if float(ends[1] - ends[0]) <= 14 and not (abs(start) < 1e-3 and abs(start + length - size) < 1e-3):
        assert torch.equal(weights, axis_weights(*ends, size, samples=2))
    else:
        many = axis_weights(*ends, size, samples=4000)
        torch.testing.assert_close(weights, many, atol=1e-4, rtol=0)


def test_a_large_box_sees_every_cell() -> None:
    weights = axis_weights(torch.tensor(3.0), torch.tensor(67.0), 72)
    assert (weights[3:67] > 0.8 / 64).all()
    torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
    few = axis_weights(torch.tensor(3.0), torch.tensor(67.0), 72, samples=2)
    assert (few[3:67] == 0).sum() > 30  # what was: every second cell and more went unseen


def test_full_grid_is_boxes_of_the_tiles() -> None:
    maps = torch.randn(1, 6, 9, 3)
    tiles = [[3.0 * (i % 3), 2.0 * (i // 3), 3.0 * (i % 3 + 1), 2.0 * (i // 3 + 1)] for i in range(9)]
    expected = pool_boxes(maps, torch.tensor([tiles]), (6.0, 9.0))[:, :, 0]
    torch.testing.assert_close(pool_full(maps, 3), expected)


def test_constant_map_gives_the_constant_inside_the_border() -> None:
    maps = torch.full((1, 7, 7, 1), 3.0)
    boxes = torch.tensor([[[0.0, 0.0, 224.0, 224.0], [3.0, 10.0, 90.0, 11.0]]])
    torch.testing.assert_close(pool_boxes(maps, boxes, (224.0, 224.0)), torch.full((1, 2, 1, 1), 3.0))


@settings(deadline=None, max_examples=30)
@given(st.floats(-50, 250), st.floats(0.1, 300), st.integers(1, 20))
def test_axis_weights_are_a_share_of_the_samples(start: float, length: float, size: int) -> None:
    weights = axis_weights(torch.tensor(start), torch.tensor(start + length), size)
    assert weights.shape == (size,)
    assert (weights >= 0).all()
    assert float(weights.sum()) <= 1 + 1e-5


def test_gradients() -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 4, 5, 2, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor(
        [
            [[3.1, 2.3, 30.7, 20.9], [-7.3, -3.1, 12.2, 9.7]],
            [[20.3, 11.1, 47.9, 41.3], [5.3, 5.9, 6.1, 30.3]],
        ],
        dtype=torch.float64,
        requires_grad=True,
    )
    assert torch.autograd.gradcheck(lambda m, b: pool_boxes(m, b, (32.0, 40.0), 2), (maps, boxes))


def test_half_precision_maps_keep_box_coordinates() -> None:
    maps = torch.randn(1, 14, 14, 3)
    boxes = torch.tensor([[[151.03, 133.07, 151.95, 134.01]]])
    exact = pool_boxes(maps, boxes, (224.0, 224.0))
    half = pool_boxes(maps.half(), boxes, (224.0, 224.0)).float()
    torch.testing.assert_close(half, exact, atol=3e-3, rtol=3e-3)


def test_network_pools_boxes_in_pixels_of_the_input() -> None:
    network = toys.network(visual_grid=2)
    maps = network.encoder(torch.randn(1, 3, 32, 32))
    boxes = torch.tensor([[[4.0, 6.0, 20.0, 31.0]]])
    embedded = network.encode_image(maps, boxes)
    assert embedded.shape == (1, 1, 5, 8)
    torch.testing.assert_close(
        embedded[:, :, 0], network.visual_projection(pool_boxes(maps, boxes / 8, (4.0, 4.0)))[:, :, 0]
    )
    assert network.project_visual_prefix(embedded[:, 0]).shape == (1, 5, 16)
