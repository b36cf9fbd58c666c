"""Where a clip changes: cuts between shots, from small pictures of its frames.

How much two frames differ is the mean difference of their pixels plus half the distance of their colour
histograms (half of L1, between 0 and 1): motion moves the first, a cut both. Of frames in a row, one begins
another shot if it differs from the one before it by more than ``_HARD`` and by several times what its
neighbours differ by, so that neither fast motion nor a moving camera is cut up (the adaptive threshold that
PySceneDetect has, too). A dissolve has no such frame: if there is none, but the last frame is another picture
than the first, the frame that is as far from both is where the shot changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

SMALL = (32, 18)
"""Width and height in pixels of the pictures that are compared."""
MIN_SECONDS = 0.4
"""A shorter shot is a flash, and belongs to the one after it."""
MAX_SECONDS = 30.0
"""A longer shot is told in pieces, so that its second says something."""
SECONDS_A_FRAME = 2.0  # of a shot that is embedded
MAX_FRAMES = 4  # of a shot that are embedded
FRAME_SIDE = 384
"""Pixels of the shorter side of the frames of a shot, at most."""
KEPT_STEP = 0.3  # seconds between frames that are kept
CHUNK = 250  # frames that are looked at together

_HARD, _SOFT = 0.16, 0.35
_TIMES_NEIGHBOURS = 3.0
_NEIGHBOURS = 6  # steps on either side
_SAME = 0.02  # frames that differ by less tell nothing new
_BINS = 4  # a colour
_CANDIDATES = 16  # frames of the open shot that are held


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """A frame that was looked at: ``time`` in seconds, ``small`` (h, w, 3) uint8 of :data:`SMALL`, the
    ``image`` if it was kept, and whether it begins another shot than the sample before it."""

    time: float
    small: np.ndarray
    image: Image.Image | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Shot:
    """A part of a clip without a cut, ``start`` and ``end`` in seconds, and pictures spread over it."""

    start: float
    end: float
    frames: tuple[Image.Image, ...]


def change(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """How much frames ``one`` and ``two`` ``(..., h, w, 3)`` uint8 differ, ``(...,)`` float32 from 0 to
    1.5."""
    pixels = np.abs(one.astype(np.int16) - two.astype(np.int16)).mean((-3, -2, -1), dtype=np.float32) / 255
    return pixels + _histogram_distance(_histograms(one), _histograms(two)) / 2


def find_cuts(small: np.ndarray) -> list[int]:
    """The numbers of those of consecutive frames ``(n, h, w, 3)`` uint8 that begin another shot, ascending
    and never 0."""
    if len(small) < 2:
        return []
    steps = change(small[:-1], small[1:])
    cuts = []
    for i in np.flatnonzero(steps > _HARD).tolist():
        around = np.delete(steps[max(0, i - _NEIGHBOURS) : i + _NEIGHBOURS + 1], min(i, _NEIGHBOURS))
        quiet = float(np.median(around)) if len(around) else 0.0
        if steps[i] > _TIMES_NEIGHBOURS * quiet:
            cuts.append(i + 1)
    if not cuts and float(change(small[0], small[-1])) > _SOFT:
        balance = np.abs(change(small, small[:1]) - change(small, small[-1:]))
        cuts = [max(1, int(balance.argmin()))]
    return cuts


def build_shots(samples: Iterable[Sample]) -> Iterator[Shot]:
    """The shots of a clip from its ``samples``, in the order of time; the last one says when it ends. Few of
    their pictures are held at once."""
    shot: _OpenShot | None = None
    end = 0.0
    for sample in samples:
        end = sample.time
        shot = shot or _OpenShot(end)
        elapsed = end - shot.start
        if shot.samples and (elapsed >= MAX_SECONDS or (sample.cut and elapsed >= MIN_SECONDS)):
            yield shot.close(end)
            shot = _OpenShot(end)
        elif sample.cut:
            shot.samples.clear()  # a flash: its start is that of what follows
        if sample.image is not None:
            shot.add(sample)
    if shot is not None and shot.samples:
        yield shot.close(end)


@dataclass(slots=True)
class _OpenShot:
    start: float
    samples: list[Sample] = field(default_factory=list)

    def add(self, sample: Sample) -> None:
        self.samples.append(sample)
        if len(self.samples) > _CANDIDATES:
            del self.samples[1::2]

    def close(self, end: float) -> Shot:
        """The shot, with those of its frames that are nearest to the middles of equal parts of it."""
        count = min(MAX_FRAMES, max(1, round((end - self.start) / SECONDS_A_FRAME)))
        targets = self.start + (np.arange(count) + 0.5) * (end - self.start) / count
        times = np.array([sample.time for sample in self.samples])
        numbers = sorted({int(np.abs(times - target).argmin()) for target in targets})
        chosen: list[Sample] = []
        for sample in (self.samples[number] for number in numbers):
            if not chosen or float(change(chosen[-1].small, sample.small)) >= _SAME:
                chosen.append(sample)
        frames = tuple(sample.image for sample in chosen if sample.image is not None)
        return Shot(round(self.start, 3), round(end, 3), frames)


def _histograms(small: np.ndarray) -> np.ndarray:
    """Shares of the pixels ``(..., h, w, 3)`` of each of 4 x 4 x 4 colours, ``(..., 64)`` float32."""
    levels = small.reshape(-1, small.shape[-3] * small.shape[-2], 3) // (256 // _BINS)
    colours = (levels[..., 0] * _BINS + levels[..., 1]) * _BINS + levels[..., 2]
    colours = colours.astype(np.int64) + np.arange(len(colours))[:, None] * _BINS**3
    counts = np.bincount(colours.ravel(), minlength=len(colours) * _BINS**3)
    shares = counts.reshape(-1, _BINS**3).astype(np.float32) / levels.shape[1]
    return shares.reshape(*small.shape[:-3], _BINS**3)


def _histogram_distance(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    return np.asarray(np.abs(one - two).sum(-1) / 2, np.float32)
