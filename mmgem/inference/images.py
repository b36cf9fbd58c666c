"""What the model sees of pictures: embeddings of whole images, of boxes, and of the regions it finds itself.

A whole picture is read at the model's side and at each of ``preprocessing.scales``, a box at the sides that
show it large enough (:mod:`mmgem.inference.pyramid`); what is seen at several sides is averaged before it is
normalised.
A picture goes through the encoder once a side, however many boxes of it are wanted. Pictures are decoded and
resized in threads.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mmgem.config import Preprocessing
from mmgem.data.images import ImageSource, check_box, image_size, open_image
from mmgem.data.records import Box
from mmgem.data.transforms import normalise, place_box, shown_part, to_square
from mmgem.errors import UsageError
from mmgem.inference.pyramid import assign_pyramid_levels, global_sizes, input_sizes
from mmgem.inference.region_proposals import choose, embed_windows, pool_windows, windows
from mmgem.models.network import MMGEMNetwork

T = TypeVar("T")

_AT_ONCE = 8  # images; bounds what their windows, or their maps at a large side, need to some 100 MB


def see(
    network: MMGEMNetwork,
    prep: Preprocessing,
    images: Sequence[ImageSource],
    boxes: Sequence[Sequence[Box | None]] | None = None,
) -> Tensor:
    """Visual embeddings ``(n, 1 + tiles, D)``, not normalised, of the images, or of every box of each in turn
    (None: the whole image). Raises ``ImageError``, and ``UsageError`` for a box that cannot be."""
    if boxes is None or all(box is None for own in boxes for box in own):
        whole = encode_prepared(network, prep, prepared(partial(squares, prep), images))
        return whole if boxes is None else whole[[i for i, own in enumerate(boxes) for _ in own]]
    placed_boxes = [
        [None if box is None else placed(image, box, prep) for box in own]
        for image, own in zip(images, boxes, strict=True)
    ]
    seen = []
    for at in range(0, len(images), _AT_ONCE):
        opened = prepared(partial(open_for, input_sizes(prep)), images[at : at + _AT_ONCE])
        seen.append(_see_boxes(network, prep, opened, placed_boxes[at : at + _AT_ONCE]))
    return torch.cat(seen)


def squares(prep: Preprocessing, image: ImageSource) -> list[np.ndarray]:
    """What the encoder reads of a whole image: ``(side, side, 3)`` uint8 for each of ``global_sizes``. Needs
    no model, so many can be made ahead of it. Raises ``ImageError``."""
    sides = global_sizes(prep)
    opened = open_for(sides, image)
    return [to_square(opened, dataclasses.replace(prep, size=side)) for side in sides]


def encode_prepared(
    network: MMGEMNetwork, prep: Preprocessing, images: Sequence[Sequence[np.ndarray]]
) -> Tensor:
    """:func:`see` of whole images made ready by :func:`squares`."""
    parts = []
    for at in range(0, len(images), _AT_ONCE):
        sides = zip(*images[at : at + _AT_ONCE], strict=True)
        seen = [network.encode_image(_maps(network, prep, pixels)) for pixels in sides]
        parts.append(torch.stack(seen).mean(0))
    return torch.cat(parts)


def _see_boxes(
    network: MMGEMNetwork,
    prep: Preprocessing,
    opened: Sequence[Image.Image],
    boxes: Sequence[Sequence[Box | None]],
) -> Tensor:
    """As :func:`see`, of ``boxes`` in pixels of the encoder's input: each read at its own sides."""
    owner = np.array([i for i, own in enumerate(boxes) for _ in own])
    flat = [box for own in boxes for box in own]
    whole = np.array([box is None for box in flat])
    places = torch.tensor([box or (0, 0, 0, 0) for box in flat], dtype=torch.float32)
    levels = assign_pyramid_levels(
        (((places[:, 2:] - places[:, :2]) / prep.size).prod(1)).sqrt().numpy(), prep
    )
    at_whole = np.isin(input_sizes(prep), global_sizes(prep)).astype(np.float32)
    levels[whole] = at_whole / at_whole.sum()
    device, total = network.emb_token.device, None
    for side, share in zip(input_sizes(prep), levels.T, strict=True):
        items = np.flatnonzero(share)
        if not len(items):
            continue
        used, row = np.unique(owner[items], return_inverse=True)
        maps = read(network, prep, [opened[i] for i in used], side)
        column = np.concatenate([np.arange(n) for n in np.bincount(row)])  # items come image by image
        grid = torch.zeros(len(used), int(column.max()) + 1, 4)
        grid[row, column] = places[items]
        seen = network.encode_image(maps, grid.to(device))[row, column]
        if whole[items].any():
            full = torch.from_numpy(whole[items]).to(device)[:, None, None]
            seen = torch.where(full, network.encode_image(maps)[row], seen)
        total = seen.new_zeros(len(flat), *seen.shape[1:]) if total is None else total
        total[items] += torch.from_numpy(share[items]).to(device)[:, None, None] * seen
    assert total is not None
    return total


def open_for(sides: Sequence[int], image: ImageSource) -> Image.Image:
    """Decode a picture large enough to be read at all ``sides``; it may be smaller than the stored one.
    Raises ``ImageError``."""
    # Twice the side leaves the resize something to filter; boxes do not mind the scale.
    return open_image(image, min_side=2 * max(sides))


def prepared(work: Callable[[ImageSource], T], images: Sequence[ImageSource]) -> list[T]:
    """``work`` of each image (decoding, resizing), in order, by as many threads as torch uses
    (``OMP_NUM_THREADS``). Raises what the first image that fails raises."""
    threads = min(torch.get_num_threads(), len(images))
    pictures = [id(image) for image in images if isinstance(image, Image.Image)]
    if threads < 2 or len(set(pictures)) < len(pictures):  # one must not be loaded by two threads
        return [work(image) for image in images]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, images))


def read(network: MMGEMNetwork, prep: Preprocessing, opened: Sequence[Image.Image], side: int) -> Tensor:
    """Feature maps ``(B, h, w, C)`` of pictures read at ``side`` pixels."""
    scaled = dataclasses.replace(prep, size=side)
    return _maps(network, prep, [to_square(image, scaled) for image in opened])


def _maps(network: MMGEMNetwork, prep: Preprocessing, pixels: Sequence[np.ndarray]) -> Tensor:
    return network.encoder(normalise(np.stack(pixels), prep).to(network.emb_token.device))


def placed(image: ImageSource, box: Box, prep: Preprocessing) -> Box:
    """A box in pixels of the stored image -> pixels of the encoder's input; what lies outside the image is
    cut off. Raises ``UsageError``."""
    width, height = image_size(image)
    try:
        check_box(box, (width, height))
    except UsageError as error:
        name = f"{os.fspath(image)}: " if isinstance(image, str | os.PathLike) else ""
        raise UsageError(f"{name}{error}") from None
    inside = (max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(width)), min(box[3], float(height)))
    return place_box(inside, (width, height), prep)[0]


def _window_levels(prep: Preprocessing, everywhere: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Input sides, the numbers of the windows ``(n, 4)`` read at each, and how much it counts for them."""
    shares = (everywhere[:, 2:] - everywhere[:, :2]).prod(1).sqrt().cpu().numpy()
    for side, share in zip(input_sizes(prep), assign_pyramid_levels(shares, prep).T, strict=True):
        (used,) = np.nonzero(share)
        if len(used):
            weight = torch.from_numpy(share[used]).to(everywhere)
            yield side, torch.from_numpy(used).to(everywhere.device), weight[None, :, None]


def find_regions(
    network: MMGEMNetwork, prep: Preprocessing, images: Sequence[ImageSource], count: int
) -> list[tuple[list[Box], Tensor]]:
    """Up to ``count`` telling boxes of each image, in pixels of the stored image, and their embeddings
    ``(k, D)``, not normalised; the most telling first. See :mod:`mmgem.inference.region_proposals`."""
    found = []
    everywhere = windows().to(network.emb_token.device)
    for at in range(0, len(images), _AT_ONCE):
        chunk = images[at : at + _AT_ONCE]
        opened = prepared(partial(open_for, input_sizes(prep)), chunk)
        inner = everywhere.new_zeros(len(chunk), len(everywhere), network.config.dim)
        frame = torch.zeros_like(inner)
        for side, used, weight in _window_levels(prep, everywhere):
            own, around = embed_windows(network, read(network, prep, opened, side), everywhere[used])
            inner[:, used] += weight * own
            frame[:, used] += weight * around
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
    everywhere = windows().to(network.emb_token.device)
    opened = [open_for(input_sizes(prep), image)]
    seen = everywhere.new_zeros(len(everywhere), network.config.dim)
    for side, used, weight in _window_levels(prep, everywhere):
        maps = read(network, prep, opened, side)
        seen[used] += (weight * network.visual_projection(pool_windows(maps, everywhere[used])))[0]
    scores = texts @ F.normalize(seen.float(), dim=-1).T
    centres = (torch.arange(cells, device=everywhere.device) + 0.5) / cells
    across = (everywhere[:, 0:1] <= centres) & (centres < everywhere[:, 2:3])
    down = (everywhere[:, 1:2] <= centres) & (centres < everywhere[:, 3:4])
    cover = (down[:, :, None] & across[:, None, :]).to(scores)
    area = (everywhere[:, 2] - everywhere[:, 0]) * (everywhere[:, 3] - everywhere[:, 1])
    cover = cover / area[:, None, None]  # a small window says more about each of its places
    return torch.einsum("nw,wyx->nyx", scores, cover) / cover.sum(0)
