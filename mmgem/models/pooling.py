"""PoolAggregator: the mean of a whole feature map, or of RoIAlign over any box, in closed form.

RoIAlign followed by a mean is linear in the map and separable in its two axes: the mean of bilinear
samples on a regular grid inside a box is ``sum_y sum_x wy[y] * wx[x] * V[y, x]`` with one weight vector
per axis. So K boxes of one map are one einsum over ``(K, H), (H, W, C), (K, W)``: no kernel, any device,
exact gradients. Equal to ``torchvision.ops.roi_align(aligned=True, sampling_ratio=s)`` averaged over its
bins (He et al. 2017, arXiv 1703.06870).
"""

from __future__ import annotations

import torch
from torch import Tensor


def axis_weights(start: Tensor, end: Tensor, size: int, samples: int = 2, bins: int = 7) -> Tensor:
    """Bilinear sampling weights of box sides along one axis of a map.

    ``start``, ``end``: ``(...,)`` float, in cells of the map (pixel / stride), half-open.
    Returns ``(..., size)`` float: the weight of each cell in the mean of ``bins * samples`` samples.
    Samples further than one cell outside the map count as zero, as in RoIAlign, so weights of a box that
    crosses the border sum to less than one.
    """
    count = bins * samples
    steps = (torch.arange(count, device=start.device, dtype=start.dtype) + 0.5) / count
    # aligned=True: cell centres sit at half-integers, hence the half-cell shift.
    at = start[..., None] + (end - start)[..., None] * steps - 0.5
    inside = (at >= -1.0) & (at <= size)
    at = at.clamp(0, size - 1)
    cells = torch.arange(size, device=start.device, dtype=start.dtype)
    tent = (1 - (at[..., None] - cells).abs()).clamp(min=0)
    return (tent * inside[..., None]).mean(-2)


def pool_boxes(
    maps: Tensor,
    boxes: Tensor,
    image_size: tuple[float, float],
    grid: int = 1,
    samples: int = 2,
    bins: int = 7,
) -> Tensor:
    """Pool ``K`` boxes of each map: RoIAlign over a ``grid x grid`` of equal sub-boxes, mean inside each.

    ``maps``: ``(B, H, W, C)``. ``boxes``: ``(B, K, 4)`` float ``x0, y0, x1, y1`` in pixels of the image
    the map was computed from, whose ``image_size`` is ``(height, width)`` in pixels. Each sub-box is
    sampled on ``bins * samples`` points per axis. Returns ``(B, K, grid * grid, C)``, sub-boxes in
    reading order. Boxes may cross the border or be thinner than a cell.
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
