"""Heat maps drawn over their photo."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmgem.data.images import ImageSource, open_image

# From cold to hot: evenly spaced stops of a dark-to-bright ramp, RGB.
_STOPS = np.array([(20, 20, 60), (80, 30, 130), (190, 50, 110), (250, 130, 60), (255, 235, 140)], np.float32)
_LEAST, _MOST = 0.35, 0.72  # how much of the colour shows where the map is cold and hot


def draw_heat(image: ImageSource, heat: np.ndarray, side: int = 760) -> Image.Image:
    """The photo, its longest side at most ``side`` pixels, under the colours of ``heat`` (h, w).

    Colours span the map's own range: they say where, not how much. Raises ImageError for a photo that cannot
    be read.
    """
    photo = open_image(image, min_side=side)
    photo.thumbnail((side, side))
    low, high = float(heat.min()), float(heat.max())
    level = (heat - low) / max(high - low, 1e-9)
    smooth = Image.fromarray(level.astype(np.float32)).resize(photo.size, Image.Resampling.BICUBIC)
    level = np.asarray(smooth).clip(0, 1)[..., None]
    at = level[..., 0] * (len(_STOPS) - 1)
    below = at.astype(int).clip(0, len(_STOPS) - 2)
    share = (at - below)[..., None]
    colour = _STOPS[below] * (1 - share) + _STOPS[below + 1] * share
    alpha = _LEAST + (_MOST - _LEAST) * level
    mixed = np.asarray(photo, np.float32) * (1 - alpha) + colour * alpha
    return Image.fromarray(mixed.round().astype(np.uint8))
