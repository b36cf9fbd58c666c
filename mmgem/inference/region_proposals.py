"""Regions without a detector: windows of many sizes pooled from one feature map, the telling ones kept.

A window is worth keeping if what it shows differs from what is around it: its embedding is compared with
that of the frame twice its area (centre against surround, as in saliency maps, Itti et al. 1998), and windows
that overlap a better one are dropped (non-maximum suppression). The same windows, all of them, make the heat
map of a text. Everything is linear until the projection, so all windows of a map are one matrix product.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.models.network import MMGEMNetwork
from mmgem.models.pooling import axis_weights

_WINDOW_SIZES = (0.22, 0.3, 0.4, 0.52, 0.68)
_ASPECT_RATIOS = (1.0, 0.6, 1.67)  # width to height
_STRIDE = 0.25  # of the window's side
_IOU_THRESHOLD = 0.45
_SURROUND_SCALE = 2.0**0.5
_HEAT_SPREAD = 0.25  # standard deviation, of a window's side


def sliding_windows() -> Tensor:
    """Boxes ``(n, 4)`` of many sizes and shapes all over a unit square, float32."""
    boxes = []
    for side in _WINDOW_SIZES:
        for ratio in _ASPECT_RATIOS:
            width, height = min(1.0, side * ratio**0.5), min(1.0, side / ratio**0.5)
            xs = np.linspace(0, 1 - width, max(2, round((1 - width) / (width * _STRIDE)) + 1))
            ys = np.linspace(0, 1 - height, max(2, round((1 - height) / (height * _STRIDE)) + 1))
            boxes += [(x, y, x + width, y + height) for y in ys for x in xs]
    return torch.tensor(boxes, dtype=torch.float32)


def surrounding_boxes(boxes: Tensor) -> Tensor:
    """The boxes of twice the area around ``boxes`` ``(n, 4)``, cut at the unit square."""
    middle, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    return torch.cat([middle - _SURROUND_SCALE * half, middle + _SURROUND_SCALE * half], 1).clamp(0, 1)


def pool_windows(maps: Tensor, boxes: Tensor) -> Tensor:
    """Pool the same ``boxes`` ``(n, 4)`` (shares of the square) of every map ``(B, H, W, C)``: ``(B, n, C)``.

    Equal to :func:`mmgem.models.pooling.pool_boxes`, as one matrix product.
    """
    _, height, width, _ = maps.shape
    wx = axis_weights(boxes[:, 0] * width, boxes[:, 2] * width, width)
    wy = axis_weights(boxes[:, 1] * height, boxes[:, 3] * height, height)
    weights = (wy[:, :, None] * wx[:, None, :]).flatten(1).to(maps)
    return weights @ maps.flatten(1, 2)


def embed_windows(network: MMGEMNetwork, maps: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings ``(B, n, D)`` of ``boxes`` and of the frames around them, not normalised."""
    surroundings = surrounding_boxes(boxes)
    maps = network.encoder.split_map(maps)[0]
    inside, around = pool_windows(maps, boxes), pool_windows(maps, surroundings)
    inside_area, around_area = _area(boxes), _area(surroundings)
    fraction = (inside_area / around_area).clamp(max=0.95)[None, :, None].to(maps)
    surround = (around - fraction * inside) / (1 - fraction)
    return network.window_embeddings(inside), network.window_embeddings(surround)


def select_windows(boxes: Tensor, inside: Tensor, surround: Tensor, count: int) -> Tensor:
    """Numbers of the ``count`` windows of one image to keep, best first, none overlapping another much.

    ``inside``, ``surround``: ``(n, D)`` of :func:`embed_windows`.
    """
    score = 1 - F.cosine_similarity(inside, surround, dim=-1)
    order = score.argsort(descending=True, stable=True)
    overlap = pairwise_iou(boxes)
    keep: list[int] = []
    available = torch.ones(len(boxes), dtype=torch.bool)
    for at in order.tolist():
        if available[at]:
            keep.append(at)
            available &= overlap[at] < _IOU_THRESHOLD
            if len(keep) == count:
                break
    return torch.tensor(keep)


def spread_windows(windows: Tensor, cells: int) -> Tensor:
    """How much each window ``(n, 4)`` says about each of ``cells`` x ``cells`` places of the unit square:
    ``(n, cells, cells)``, sums over windows 1. A Gaussian around its middle, with a quarter of its sides as
    standard deviations; and small windows more, in inverse proportion to the root of their areas."""
    centres = (torch.arange(cells, device=windows.device) + 0.5) / cells
    middle, sides = (windows[:, :2] + windows[:, 2:]) / 2, windows[:, 2:] - windows[:, :2]
    distance = (centres[None, :, None] - middle[:, None]) / (_HEAT_SPREAD * sides[:, None])
    across, down = torch.exp(-(distance**2) / 2).unbind(-1)
    spread = down[:, :, None] * across[:, None, :] / sides.prod(1).sqrt()[:, None, None]
    return spread / spread.sum(0)


def pairwise_iou(boxes: Tensor) -> Tensor:
    """Intersection over union ``(n, n)`` of boxes ``(n, 4)``."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    area = _area(boxes)
    return intersection / (area[:, None] + area[None] - intersection)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
