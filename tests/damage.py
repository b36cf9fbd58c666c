"""What damages files, as disks and cables do."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def flip_bits(path: Path, seed: int, bits: int = 8, start: int = 0, stop: int | None = None) -> None:
    """Flip ``bits`` different bits at random places of bytes ``start`` to ``stop`` of a file."""
    data = bytearray(path.read_bytes())
    places = np.arange(start * 8, (len(data) if stop is None else stop) * 8)
    for place in np.random.default_rng(seed).choice(places, bits, replace=False).tolist():
        data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def cut_off(path: Path) -> None:
    """Leave out the last third of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def lengthen(path: Path) -> None:
    """Put bytes after the end of a file."""
    path.write_bytes(path.read_bytes() + b"\1" * 100)


TORN = (cut_off, lengthen)
