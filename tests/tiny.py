"""A tiny random model folder, and photos for it; shared by the tests that go through files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import toys
from PIL import Image

from mmgem.checkpoints.model_folder import save_model


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a whole model folder: EfficientNet with a small head, a two-layer LM, a word tokenizer."""
    network = toys.network(seed=seed)
    save_model(folder, network, toys.tokenizer(), "# A tiny random model\n")
    return folder


def save_photo(path: Path, seed: int = 0, size: tuple[int, int] = (48, 36)) -> Path:
    """Write one picture of four random colours; the suffix chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), np.uint8)
    Image.fromarray(colours).resize(size, Image.Resampling.NEAREST).save(path)
    return path


def save_photos(folder: Path, count: int) -> list[Path]:
    """Write ``count`` different pictures."""
    return [save_photo(folder / f"{i:04}.png", seed=i) for i in range(count)]
