"""Which input sides a box is read at: those that show it about as large as the model saw photos.

An encoder trained on photos of ``size`` pixels knows things at the sizes they have there; a box a third as
wide
is a photo three times too small. So every box is pooled from the maps of the input sides that bring it near
the known size: boxes are assigned to the levels of an image pyramid by their area (feature pyramids, Lin
et al. 2017, arXiv 1612.03144, eq. 1). The whole image is the box that is right at ``size`` and at each of
``scales``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mmgem.config import Preprocessing

_SIZE_TOLERANCE = 1.1  # a box this much smaller or larger than a photo may be is still of a known size


def input_sizes(prep: Preprocessing) -> list[int]:
    """Every input side in pixels the model reads at, ascending."""
    return sorted({prep.size, *prep.scales, *prep.region_scales})


def global_sizes(prep: Preprocessing) -> list[int]:
    """The input sides in pixels whole images are read at, ascending."""
    return sorted({prep.size, *prep.scales})


def assign_pyramid_levels(relative_sizes: npt.ArrayLike, prep: Preprocessing) -> np.ndarray:
    """``(n, len(input_sizes))`` float32, rows of sum 1: how much each input side counts for each box.

    ``relative_sizes``: ``(n,)`` floats, the square root of each box's share of the square the encoder reads.
    Sides at which the box is as large as ``size`` and ``scales`` show a photo count alike; where there is
    none, the side that comes nearest counts alone.
    """
    sides, global_sides = np.array(input_sizes(prep)), global_sizes(prep)
    shown_sizes = np.asarray(relative_sizes, np.float64).reshape(-1, 1) * sides
    in_range = (shown_sizes >= global_sides[0] / _SIZE_TOLERANCE) & (
        shown_sizes <= global_sides[-1] * _SIZE_TOLERANCE
    )
    log_distance = np.abs(np.log(np.maximum(shown_sizes, 1e-9) / prep.size))
    nearest = np.eye(len(sides), dtype=bool)[log_distance.argmin(1)]
    weights = np.where(in_range.any(1, keepdims=True), in_range, nearest).astype(np.float32)
    return weights / weights.sum(1, keepdims=True)
