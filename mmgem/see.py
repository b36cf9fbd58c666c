"""What the model sees of pictures: embeddings of whole images, of boxes, and of the regions it finds itself.

Every picture is read at the model's side and at each of ``preprocessing.scales``; what is seen at the scales
is averaged before it is normalised. Boxes given for one picture share its feature maps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmgem.config import Preprocessing
from mmgem.data.images import ImageSource, image_size, open_image
from mmgem.data.records import Box
from mmgem.data.transforms import normalise, place_box, shown_part, to_square
from mmgem.errors import UsageError
from mmgem.models.network import MMGEMNetwork
from mmgem.search.regions import choose, embed_windows, pool_windows, windows

_WINDOWS_AT_ONCE = 8  # images; bounds what their windows need to some 100 MB


def feature_maps(network: MMGEMNetwork, prep: Preprocessing, images: Sequence[ImageSource]) -> list[Tensor]:
    """Feature maps ``(B, h, w, C)`` of the images, one for each scale.

    Raises ``ImageError`` for an image that cannot be read.
    """
    scales = [dataclasses.replace(prep, size=side) for side in (prep.size, *prep.scales)]
    # Twice the model's side leaves the resize something to filter; boxes do not mind the scale.
    opened = [open_image(image, min_side=2 * max(s.size for s in scales)) for image in images]
    device = network.emb.device
    return [
        network.tower(normalise(np.stack([to_square(i, scale) for i in opened]), scale).to(device))
        for scale in scales
    ]


def see(
    network: MMGEMNetwork,
    prep: Preprocessing,
    images: Sequence[ImageSource],
    boxes: Sequence[Sequence[Box | None]] | None = None,
) -> Tensor:
    """Visual embeddings ``(n, 1 + tiles, D)``, not normalised, of the images, or of every box of each in turn
    (None: the whole image). Raises ``ImageError``, and ``UsageError`` for a box that cannot be."""
    maps = feature_maps(network, prep, images)
    if boxes is None or all(box is None for own in boxes for box in own):
        whole = torch.stack([network.visual(m) for m in maps]).mean(0)
        return whole if boxes is None else whole[[i for i, own in enumerate(boxes) for _ in own]]
    most = max(len(own) for own in boxes)
    places = torch.zeros(len(images), most, 4)
    full = torch.zeros(len(images), most, dtype=torch.bool)
    given = torch.zeros(len(images), most, dtype=torch.bool)
    for i, (image, own) in enumerate(zip(images, boxes, strict=True)):
        for k, box in enumerate(own):
            given[i, k], full[i, k] = True, box is None
            if box is not None:
                places[i, k] = torch.tensor(placed(image, box, prep))
    device = network.emb.device
    places, full, given = places.to(device), full.to(device)[..., None, None], given.to(device)
    seen = [torch.where(full, network.visual(m)[:, None], network.visual(m, places)) for m in maps]
    return torch.stack(seen).mean(0)[given]


def placed(image: ImageSource, box: Box, prep: Preprocessing) -> Box:
    """A box in pixels of the stored image -> pixels of the tower's input. Raises ``UsageError``."""
    if len(box) != 4 or not all(np.isfinite(box)) or box[2] <= box[0] or box[3] <= box[1]:
        raise UsageError(f"box {tuple(box)} is not x0,y0,x1,y1 with x1 > x0 and y1 > y0")
    width, height = image_size(image)
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        raise UsageError(f"box {tuple(box)} lies outside the image of {width} x {height} pixels")
    return place_box(box, (width, height), prep)[0]


def find_regions(
    network: MMGEMNetwork, prep: Preprocessing, images: Sequence[ImageSource], count: int
) -> list[tuple[list[Box], Tensor]]:
    """Up to ``count`` telling boxes of each image, in pixels of the stored image, and their embeddings
    ``(k, D)``, not normalised; the most telling first. See :mod:`mmgem.search.regions`."""
    found = []
    everywhere = windows().to(network.emb.device)
    for at in range(0, len(images), _WINDOWS_AT_ONCE):
        chunk = images[at : at + _WINDOWS_AT_ONCE]
        maps = feature_maps(network, prep, chunk)
        pairs = [embed_windows(network, m, everywhere) for m in maps]
        inner, frame = (torch.stack(part).mean(0) for part in zip(*pairs, strict=True))
        for image, own, around in zip(chunk, inner, frame, strict=True):
            kept = choose(everywhere, own, around, count)
            left, top, width, height = shown_part(image_size(image), prep)
            scale = torch.tensor([width, height, width, height])
            pixels = everywhere[kept].cpu() * scale + torch.tensor([left, top, left, top])
            boxes: Any = [tuple(round(x, 1) for x in box) for box in pixels.tolist()]
            found.append((boxes, own[kept]))
    return found


def heat(
    network: MMGEMNetwork, prep: Preprocessing, image: ImageSource, texts: Tensor, cells: int = 28
) -> Tensor:
    """How well each place of an image fits each text: ``(n, cells, cells)`` cosines for unit ``texts``
    ``(n, D)``; the mean over all windows that cover the place."""
    everywhere = windows().to(network.emb.device)
    maps = feature_maps(network, prep, [image])
    seen = torch.stack([network.h1(pool_windows(m, everywhere)) for m in maps]).mean(0)[0]
    scores = texts @ F.normalize(seen.float(), dim=-1).T
    centres = (torch.arange(cells, device=everywhere.device) + 0.5) / cells
    across = (everywhere[:, 0:1] <= centres) & (centres < everywhere[:, 2:3])
    down = (everywhere[:, 1:2] <= centres) & (centres < everywhere[:, 3:4])
    cover = (down[:, :, None] & across[:, None, :]).to(scores)
    area = (everywhere[:, 2] - everywhere[:, 0]) * (everywhere[:, 3] - everywhere[:, 1])
    cover = cover / area[:, None, None]  # a small window says more about each of its places
    return torch.einsum("nw,wyx->nyx", scores, cover) / cover.sum(0)
