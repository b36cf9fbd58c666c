"""Films with known cuts: pictures of random colours, each slowly growing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SIZE = (160, 96)


def scene(seed: int, at: float = 0.0, size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture of random colours, ``at`` (0 to 1) of the way through its growing by a tenth."""
    colours = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    picture = Image.fromarray(colours).resize((200, 160), Image.Resampling.BICUBIC)
    edge = 10 * at
    return picture.resize(size, Image.Resampling.BILINEAR, box=(edge, edge, 200 - edge, 160 - edge))


def frames(seeds: Sequence[int], seconds: float, fps: int, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    count = round(seconds * fps)
    return [scene(seed, i / count, size) for seed in seeds for i in range(count)]


def save_film(
    path: Path,
    seeds: Sequence[int] = (1, 2, 3),
    seconds: float = 2.0,
    fps: int = 12,
    codec: str = "libx264",
    gop: int | None = None,
    rotation: int = 0,
    **options: str,
) -> list[float]:
    """Write a film of a scene a seed; returns where it cuts, in seconds."""
    av: Any = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        if gop is not None:
            stream.gop_size = gop
        if rotation:
            if not hasattr(stream, "set_display_rotation"):
                pytest.skip("this PyAV writes no rotation")
            stream.set_display_rotation(rotation)
        for image in frames(seeds, seconds, fps):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode(None))
    return [number * seconds for number in range(1, len(seeds))]


def save_gif(path: Path, seeds: Sequence[int] = (1, 2), seconds: float = 1.0, fps: int = 5) -> list[float]:
    """The same as an animated picture, of the kind that its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = frames(seeds, seconds, fps)
    first.save(path, save_all=True, append_images=rest, duration=1000 // fps, loop=0)
    return [number * seconds for number in range(1, len(seeds))]
