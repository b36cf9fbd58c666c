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
from mmgem.data.pictures import Frame, decode_frames, pictures_of
from mmgem.data.records import Box, Media
from mmgem.data.transforms import normalise, place_box, shown_part, to_square
from mmgem.errors import UsageError
from mmgem.inference.pyramid import assign_pyramid_levels, global_sizes, input_sizes
from mmgem.inference.region_proposals import (
    embed_windows,
    pool_windows,
    select_windows,
    sliding_windows,
    spread_windows,
)
from mmgem.models.network import MMGEMNetwork
from mmgem.models.pooling import pool_segments

S = TypeVar("S")
T = TypeVar("T")
VisualSource = ImageSource | Media | tuple[ImageSource, ...]
"""An image, a clip, or the frames of one."""

_BATCH_SIZE = 8  # images; bounds what their windows, or their maps at a large side, need to some 100 MB


def encode_images(
    network: MMGEMNetwork,
    prep: Preprocessing,
    images: Sequence[VisualSource],
    boxes: Sequence[Sequence[Box | None]] | None = None,
) -> Tensor:
    """Visual embeddings ``(n, 1 + tiles, D)``, not normalised, of the images, or of every box of each in turn
    (None: the whole image); of a clip the mean of its frames'. Raises ``ImageError``, and ``UsageError`` for
    a box that cannot be, or is of a clip."""
    if boxes is None or all(box is None for image_boxes in boxes for box in image_boxes):
        frames = map_images(partial(_preprocess_frames, network, prep), images)
        seen = encode_prepared(network, prep, [frame for own in frames for frame in own])
        whole = pool_segments(seen, list(map(len, frames)))
        if boxes is None:
            return whole
        return whole[[i for i, image_boxes in enumerate(boxes) for _ in image_boxes]]
    stills = [_still(network, image) for image in images]
    input_boxes = [
        [None if box is None else box_to_input_pixels(image, box, prep) for box in image_boxes]
        for image, image_boxes in zip(stills, boxes, strict=True)
    ]
    embeddings = []
    for at in range(0, len(stills), _BATCH_SIZE):
        decoded = map_images(partial(open_for_sizes, input_sizes(prep)), stills[at : at + _BATCH_SIZE])
        embeddings.append(_encode_boxes(network, prep, decoded, input_boxes[at : at + _BATCH_SIZE]))
    return torch.cat(embeddings)


def preprocess_image(prep: Preprocessing, image: ImageSource) -> list[np.ndarray]:
    """What the encoder reads of a whole image: ``(side, side, 3)`` uint8 for each of ``global_sizes``. Needs
    no model, so many can be made ahead of it. Raises ``ImageError``."""
    sides = global_sizes(prep)
    decoded = open_for_sizes(sides, image)
    return [to_square(decoded, dataclasses.replace(prep, size=side)) for side in sides]


def _preprocess_frames(
    network: MMGEMNetwork, prep: Preprocessing, source: VisualSource
) -> list[list[np.ndarray]]:
    """:func:`preprocess_image` of an image, or of each frame of a clip."""
    if isinstance(source, Media):
        source = _decoded(network, source)
    else:
        network.encoder.check_media("image")
    return [preprocess_image(prep, frame) for frame in (source if isinstance(source, tuple) else (source,))]


def _still(network: MMGEMNetwork, source: VisualSource) -> ImageSource:
    """What boxes are of: an image, or the picture of a sound."""
    if isinstance(source, tuple) or (isinstance(source, Media) and source.kind == "video"):
        raise UsageError("a box is one of an image or a sound, not of a clip")
    if isinstance(source, Media):
        return _decoded(network, source)[0]
    network.encoder.check_media("image")
    return source


def _decoded(network: MMGEMNetwork, media: Media) -> tuple[ImageSource, ...]:
    """What is looked at of media; a photo is not decoded yet."""
    network.encoder.check_media(media.kind)
    pictures = pictures_of(media)
    if media.kind == "image":
        return (media.path,)
    return tuple(decode_frames(media, [frame.time for frame in pictures if isinstance(frame, Frame)]))


def encode_prepared(
    network: MMGEMNetwork, prep: Preprocessing, images: Sequence[Sequence[np.ndarray]]
) -> Tensor:
    """:func:`encode_images` of whole images made ready by :func:`preprocess_image`."""
    batches = []
    for at in range(0, len(images), _BATCH_SIZE):
        sides = zip(*images[at : at + _BATCH_SIZE], strict=True)
        embeddings = [network.encode_image(_feature_maps(network, prep, pixels)) for pixels in sides]
        batches.append(torch.stack(embeddings).mean(0))
    return torch.cat(batches)


def _encode_boxes(
    network: MMGEMNetwork,
    prep: Preprocessing,
    images: Sequence[Image.Image],
    boxes: Sequence[Sequence[Box | None]],
) -> Tensor:
    """As :func:`encode_images`, of ``boxes`` in pixels of the encoder's input: each read at its own sides."""
    image_of_box = np.array([i for i, image_boxes in enumerate(boxes) for _ in image_boxes])
    flat = [box for image_boxes in boxes for box in image_boxes]
    is_whole = np.array([box is None for box in flat])
    corners = torch.tensor([box or (0, 0, 0, 0) for box in flat], dtype=torch.float32)
    levels = assign_pyramid_levels(
        (((corners[:, 2:] - corners[:, :2]) / prep.size).prod(1)).sqrt().numpy(), prep
    )
    global_weights = np.isin(input_sizes(prep), global_sizes(prep)).astype(np.float32)
    levels[is_whole] = global_weights / global_weights.sum()
    device, total = network.emb_token.device, None
    for side, weight in zip(input_sizes(prep), levels.T, strict=True):
        selected = np.flatnonzero(weight)
        if not len(selected):
            continue
        image_numbers, row = np.unique(image_of_box[selected], return_inverse=True)
        maps = encode_feature_maps(network, prep, [images[i] for i in image_numbers], side)
        column = np.concatenate([np.arange(n) for n in np.bincount(row)])  # items come image by image
        grid = torch.zeros(len(image_numbers), int(column.max()) + 1, 4)
        grid[row, column] = corners[selected]
        embeddings = network.encode_image(maps, grid.to(device))[row, column]
        if is_whole[selected].any():
            whole_mask = torch.from_numpy(is_whole[selected]).to(device)[:, None, None]
            embeddings = torch.where(whole_mask, network.encode_image(maps)[row], embeddings)
        total = embeddings.new_zeros(len(flat), *embeddings.shape[1:]) if total is None else total
        total[selected] += torch.from_numpy(weight[selected]).to(device)[:, None, None] * embeddings
    assert total is not None
    return total


def open_for_sizes(sides: Sequence[int], image: ImageSource) -> Image.Image:
    """Decode a picture large enough to be read at all ``sides``; it may be smaller than the stored one.
    Raises ``ImageError``."""
    # Twice the side leaves the resize something to filter; boxes do not mind the scale.
    return open_image(image, min_side=2 * max(sides))


def map_images(function: Callable[[S], T], images: Sequence[S]) -> list[T]:
    """``function`` of each image (decoding, resizing), in order, by as many threads as torch uses
    (``OMP_NUM_THREADS``). Raises what the first image that fails raises."""
    threads = min(torch.get_num_threads(), len(images))
    pictures = (image for source in images for image in (source if isinstance(source, tuple) else (source,)))
    identities = [id(image) for image in pictures if isinstance(image, Image.Image)]
    if threads < 2 or len(set(identities)) < len(identities):  # one must not be loaded by two threads
        return [function(image) for image in images]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, images))


def encode_feature_maps(
    network: MMGEMNetwork, prep: Preprocessing, images: Sequence[Image.Image], side: int
) -> Tensor:
    """Feature maps ``(B, h, w, C)`` of pictures read at ``side`` pixels."""
    scaled = dataclasses.replace(prep, size=side)
    return _feature_maps(network, prep, [to_square(image, scaled) for image in images])


def _feature_maps(network: MMGEMNetwork, prep: Preprocessing, pixels: Sequence[np.ndarray]) -> Tensor:
    return network.encoder(normalise(np.stack(pixels), prep).to(network.emb_token.device))


def box_to_input_pixels(image: ImageSource, box: Box, prep: Preprocessing) -> Box:
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


def _window_levels(prep: Preprocessing, windows: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Input sides, the numbers of the windows ``(n, 4)`` read at each, and how much it counts for them."""
    relative_sizes = (windows[:, 2:] - windows[:, :2]).prod(1).sqrt().cpu().numpy()
    for side, weights in zip(input_sizes(prep), assign_pyramid_levels(relative_sizes, prep).T, strict=True):
        (selected,) = np.nonzero(weights)
        if len(selected):
            window_weights = torch.from_numpy(weights[selected]).to(windows)
            yield side, torch.from_numpy(selected).to(windows.device), window_weights[None, :, None]


def find_regions(
    network: MMGEMNetwork, prep: Preprocessing, images: Sequence[ImageSource], count: int
) -> list[tuple[list[Box], Tensor]]:
    """Up to ``count`` telling boxes of each image, in pixels of the stored image, and their embeddings
    ``(k, D)``, not normalised; the most telling first. See :mod:`mmgem.inference.region_proposals`."""
    regions = []
    windows = sliding_windows().to(network.emb_token.device)
    for at in range(0, len(images), _BATCH_SIZE):
        chunk = images[at : at + _BATCH_SIZE]
        decoded = map_images(partial(open_for_sizes, input_sizes(prep)), chunk)
        window_embeddings = windows.new_zeros(len(chunk), len(windows), network.config.dim)
        surround_embeddings = torch.zeros_like(window_embeddings)
        for side, selected, weight in _window_levels(prep, windows):
            inside, around = embed_windows(
                network, encode_feature_maps(network, prep, decoded, side), windows[selected]
            )
            window_embeddings[:, selected] += weight * inside
            surround_embeddings[:, selected] += weight * around
        for image, inside, around in zip(chunk, window_embeddings, surround_embeddings, strict=True):
            keep = select_windows(windows, inside, around, count)
            left, top, width, height = shown_part(image_size(image), prep)
            scale = torch.tensor([width, height, width, height])
            pixels = windows[keep].cpu() * scale + torch.tensor([left, top, left, top])
            boxes: Any = [tuple(round(x, 1) for x in box) for box in pixels.tolist()]
            regions.append((boxes, inside[keep]))
    return regions


def text_heatmaps(
    network: MMGEMNetwork, prep: Preprocessing, image: ImageSource, texts: Tensor, cells: int = 28
) -> Tensor:
    """How well each place of an image fits each text: ``(n, cells, cells)`` cosines for unit ``texts``
    ``(n, D)``; the mean over all windows around the place, see :func:`spread_windows`. An image's windows
    all share much of what the whole shows, so their mean embedding is taken from each before."""
    windows = sliding_windows().to(network.emb_token.device)
    decoded = [open_for_sizes(input_sizes(prep), image)]
    embeddings = windows.new_zeros(len(windows), network.config.dim)
    for side, selected, weight in _window_levels(prep, windows):
        maps = network.encoder.split_map(encode_feature_maps(network, prep, decoded, side))[0]
        embeddings[selected] += (weight * network.window_embeddings(pool_windows(maps, windows[selected])))[0]
    own = F.normalize(embeddings.float() - embeddings.float().mean(0), dim=-1)
    return torch.einsum("nw,wyx->nyx", texts @ own.T, spread_windows(windows, cells))
