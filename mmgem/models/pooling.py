"""PoolAggregator: the mean of a whole feature map, or of RoIAlign over any box, in closed form.

RoIAlign followed by a mean is linear in the map and separable in its two axes: the mean of bilinear
samples on a regular grid inside a box is ``sum_y sum_x wy[y] * wx[x] * V[y, x]`` with one weight vector
per axis. So K boxes of one map are one einsum over ``(K, H), (H, W, C), (K, W)``: no kernel, any device,
exact gradients. Equal to ``torchvision.ops.roi_align(aligned=True, sampling_ratio=s)`` averaged over its
bins (He et al. 2017, arXiv 1703.06870).

How densely a box is sampled follows the map, an axis at a time: two samples a bin while a bin has at most two
cells, so that none is skipped; beyond, and where a box is the whole axis, as many as there can be: the
integral of the interpolated map, which has a closed form too. So a box over the whole image is the mean of
its map, of any size. (``sampling_ratio=0`` samples about once a cell, and is the mean of few maps.)

Over time it is the same: a film is a row of frames, and a segment of it a box in time, whose samples are the
frames that were taken of it (:func:`pool_segments`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLES = 2
"""Samples per bin and axis where a bin has no more cells than that."""

_WHOLE = 1e-3  # cells: how exactly a box must be the whole axis to count as it


def axis_weights(start: Tensor, end: Tensor, size: int, samples: int | None = None, bins: int = 7) -> Tensor:
    """Bilinear sampling weights of box sides along one axis of a map.

    ``start``, ``end``: ``(...,)`` float, in cells of the map (pixel / stride), half-open.
    Returns ``(..., size)`` float: the weight of each cell in the mean of ``bins * samples`` samples; with
    None, of so many as the map needs (see above). Samples further than one cell outside the map count as
    zero, as in RoIAlign, so weights of a box that crosses the border sum to less than one.
    """
    few = _sampled_weights(start, end, size, bins * (samples or SAMPLES))
    if samples is not None:
        return few
    many = end - start > bins * SAMPLES
    whole = (start.abs() < _WHOLE) & ((end - size).abs() < _WHOLE)
    return torch.where((many | whole)[..., None], _integral_weights(start, end, size), few)


def _sampled_weights(start: Tensor, end: Tensor, size: int, count: int) -> Tensor:
    steps = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    # aligned=True: cell centres sit at half-integers, hence the half-cell shift.
    at = start[..., None] + (end - start)[..., None] * steps - 0.5
    inside = (at >= -1.0) & (at <= size)
    at = at.clamp(0, size - 1)
    cells = torch.arange(size, device=start.device, dtype=start.dtype)
    tent = (1 - (at[..., None] - cells).abs()).clamp(min=0)
    return (tent * inside[..., None]).mean(-2)


def _integral_weights(start: Tensor, end: Tensor, size: int) -> Tensor:
    """The limit of :func:`_sampled_weights` for ever more samples."""
    cells = torch.arange(size, device=start.device, dtype=start.dtype)

    def below(at: Tensor) -> Tensor:
        """The integral up to ``at`` of each cell's tent between the first and the last centre, and of the
        flat borders of one cell outside them."""
        at = at[..., None] - 0.5
        off = (at.clamp(0, size - 1) - cells).clamp(-1, 1)
        inner = off - 0.5 * off * off.abs()
        return inner + at.clamp(-1, 0) * (cells == 0) + at.clamp(size - 1, size) * (cells == size - 1)

    # Only long boxes and whole axes are read from this: the bound keeps the gradient of others finite.
    return (below(end) - below(start)) / (end - start).clamp(min=_WHOLE)[..., None]


def pool_boxes(
    maps: Tensor,
    boxes: Tensor,
    image_size: tuple[float, float],
    grid: int = 1,
    samples: int | None = None,
    bins: int = 7,
) -> Tensor:
    """Pool ``K`` boxes of each map: RoIAlign over a ``grid x grid`` of equal sub-boxes, mean inside each.

    ``maps``: ``(B, H, W, C)``. ``boxes``: ``(B, K, 4)`` float ``x0, y0, x1, y1`` in pixels of the image
    the map was computed from, whose ``image_size`` is ``(height, width)`` in pixels. Each sub-box is
    sampled on ``bins * samples`` points per axis, or as the map needs (None). Returns
    ``(B, K, grid * grid, C)``, sub-boxes in reading order. Boxes may cross the border or be thinner than a
    cell.
    """
    _, height, width, _ = maps.shape
    # Coordinates keep float32 where maps are half precision.
    boxes = boxes.to(torch.promote_types(maps.dtype, torch.float32))
    scale_y, scale_x = height / image_size[0], width / image_size[1]
    cuts = torch.arange(grid + 1, device=maps.device, dtype=boxes.dtype) / grid
    x = boxes[..., 0:1] + (boxes[..., 2:3] - boxes[..., 0:1]) * cuts
    y = boxes[..., 1:2] + (boxes[..., 3:4] - boxes[..., 1:2]) * cuts
    wx = axis_weights(x[..., :-1] * scale_x, x[..., 1:] * scale_x, width, samples, bins)
    wy = axis_weights(y[..., :-1] * scale_y, y[..., 1:] * scale_y, height, samples, bins)
    rows = torch.einsum("bkjx,byxc->bkjyc", wx.to(maps.dtype), maps)
    return torch.einsum("bkiy,bkjyc->bkijc", wy.to(maps.dtype), rows).flatten(2, 3)


def pool_full(maps: Tensor, grid: int = 1) -> Tensor:
    """Pool whole maps ``(B, H, W, C)`` to ``(B, grid * grid, C)``: the mean of the map (``grid=1``), or
    RoIAlign over a ``grid x grid`` of equal tiles."""
    if grid == 1:
        return maps.mean((1, 2))[:, None]
    _, height, width, _ = maps.shape
    full = maps.new_tensor([[0.0, 0.0, width, height]]).expand(len(maps), 1, 4)
    return pool_boxes(maps, full, (height, width), grid)[:, 0]


def pool_segments(frames: Tensor, counts: Sequence[int]) -> Tensor:
    """Pool a row of frames ``(T, ...)``, whose first ``counts[0]`` are of the first segment and so on, to
    ``(len(counts), ...)``: the mean of the frames of each. A linear projection may come before or after."""
    return torch.stack([part.mean(0) for part in frames.split(list(counts))])
