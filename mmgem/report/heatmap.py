"""Heat maps drawn over their photo."""

from __future__ import annotations

import numpy as np
from PIL import Image

from mmgem.data.images import ImageSource, open_image

# From cold to hot: evenly spaced stops of a dark-to-bright ramp, RGB.
_STOPS = np.array([(20, 20, 60), (80, 30, 130), (190, 50, 110), (250, 130, 60), (255, 235, 140)], np.float32)
_MIN_ALPHA, _MAX_ALPHA = 0.35, 0.72  # how much of the colour shows where the map is cold and hot


def draw_heatmap(image: ImageSource, heatmap: np.ndarray, side: int = 760) -> Image.Image:
    """The photo, its longest side at most ``side`` pixels, under the colours of ``heatmap`` (h, w).

    Colours span the map's own range: they say where, not how much. Raises ImageError for a photo that cannot
    be read.
    """
    photo = open_image(image, min_side=side)
    photo.thumbnail((side, side))
    low, high = float(heatmap.min()), float(heatmap.max())
    level = (heatmap - low) / max(high - low, 1e-9)
    smooth = Image.fromarray(level.astype(np.float32)).resize(photo.size, Image.Resampling.BICUBIC)
    level = np.asarray(smooth).clip(0, 1)[..., None]
    at = level[..., 0] * (len(_STOPS) - 1)
    below = at.astype(int).clip(0, len(_STOPS) - 2)
    fraction = (at - below)[..., None]
    colour = _STOPS[below] * (1 - fraction) + _STOPS[below + 1] * fraction
    alpha = _MIN_ALPHA + (_MAX_ALPHA - _MIN_ALPHA) * level
    blended = np.asarray(photo, np.float32) * (1 - alpha) + colour * alpha
    return Image.fromarray(blended.round().astype(np.uint8))
