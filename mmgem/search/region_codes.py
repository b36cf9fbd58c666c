"""Short codes of the vectors of regions: 168 bytes for a box and 512 numbers, where float32 takes 2,048.

Vectors lose their mean, are turned to their principal axes, along which their variance falls, and each number
is rounded to a step of its axis: to 8 bits along the first axes, 4 and 2 along those that come after, none
along the last. The bits go where they lower the error of a dot product most:
Lagrangian bit allocation, Shoham & Gersho 1988, doi:10.1109/29.90373, with the distortions of uniform
quantizers of a normal variable, Max 1960, doi:10.1109/TIT.1960.1057548. A query stays float32. Axes, steps
and bits are fitted on an index's own regions, once, and kept in its manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmgem.data.records import Box
from mmgem.inference.pca import MAX_FIT_ROWS

CODE_BYTES = 160
"""Of a vector, at most."""
BOX_BYTES = 8
_SHARES = 65535  # of a photo's side, in which a box is kept
_BITS = (0, 2, 4, 8)
_DISTORTION = np.array([1, 0.1188, 0.01154, 9.5e-5])  # of unit variance, with the best step
_STEP = {2: 0.9957, 4: 0.3352, 8: 0.0308}  # in standard deviations
_WIDER = (1.0, 1.2, 1.5, 2.0)  # steps that are tried, for heavy tails
# Texts lie less along the first axes than regions do: what they have of the mean variance on every axis.
_QUERY_FLOOR = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class RegionCodec:
    """``mean`` (D,), ``axes`` (D, d) and ``steps`` (d,) float32; ``widths``: how many axes have 8, 4 and 2
    bits, in this order. A record is a row of ``record_bytes`` uint8: the box, then the codes."""

    mean: np.ndarray
    axes: np.ndarray
    steps: np.ndarray
    widths: tuple[int, int, int]

    @classmethod
    def fit(cls, vectors: np.ndarray, code_bytes: int = CODE_BYTES) -> RegionCodec:
        """The codec for vectors such as ``vectors`` (n, D) float32."""
        sample = np.asarray(vectors[:: max(1, len(vectors) // MAX_FIT_ROWS)], np.float32)
        mean = sample.mean(0)
        centred = sample - mean
        variance, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(sample))
        variance, axes = np.maximum(variance[::-1], 1e-12), axes[:, ::-1].astype(np.float32)
        bits = _allocate(variance * (variance + _QUERY_FLOOR * variance.mean()), code_bytes * 8)
        n8, n4, n2 = (int((bits == b).sum()) for b in (8, 4, 2))
        n4, n2 = n4 // 2 * 2, n2 // 4 * 4  # whole bytes
        # What is cut off a group is taken from its end: the axes after it move up.
        axes = np.ascontiguousarray(axes[:, : n8 + n4 + n2])
        deviation = np.sqrt(variance[: n8 + n4 + n2])
        projected, steps, at = centred @ axes, [], 0
        for width, count in zip((8, 4, 2), (n8, n4, n2), strict=True):
            group = slice(at, at + count)
            steps.append(_best_steps(projected[:, group], deviation[group] * _STEP[width], width))
            at += count
        return cls(mean, axes, np.concatenate(steps).astype(np.float32), (n8, n4, n2))

    @property
    def record_bytes(self) -> int:
        """Of a region: its box and its codes."""
        n8, n4, n2 = self.widths
        return BOX_BYTES + n8 + n4 // 2 + n2 // 4

    def encode(self, vectors: np.ndarray, relative_boxes: np.ndarray) -> np.ndarray:
        """Records (n, record_bytes) uint8 of ``vectors`` (n, D) float32 with their boxes (n, 4), in shares of
        their photo."""
        codes = self._levels((np.asarray(vectors, np.float32) - self.mean) @ self.axes)
        n8, n4, _ = self.widths
        fours = codes[:, n8 : n8 + n4]
        twos = codes[:, n8 + n4 :]
        parts = (
            np.rint(relative_boxes.clip(0, 1) * _SHARES).astype("<u2").view(np.uint8).reshape(-1, BOX_BYTES),
            codes[:, :n8],
            fours[:, 0::2] | fours[:, 1::2] << 4,
            twos[:, 0::4] | twos[:, 1::4] << 2 | twos[:, 2::4] << 4 | twos[:, 3::4] << 6,
        )
        return np.concatenate(parts, axis=1)

    def _levels(self, projected: np.ndarray) -> np.ndarray:
        half = self._half_levels()
        return (np.floor(projected / self.steps) + half).clip(0, 2 * half - 1).astype(np.uint8)

    def _half_levels(self) -> np.ndarray:
        """Half the number of levels of each axis, (d,) float32."""
        return np.repeat(np.array([128, 8, 2], np.float32), self.widths)

    def units(self, records: np.ndarray, axes: int | None = None) -> np.ndarray:
        """The coordinates of records (n, record_bytes) on the first ``axes`` (None: all), in steps: (n, d)
        float32."""
        n8, n4, n2 = self.widths
        total = n8 + n4 + n2
        count = total if axes is None else min(axes, total)
        codes = np.empty((len(records), total if count > n8 else count), np.uint8)
        start = BOX_BYTES
        codes[:, :n8] = records[:, start : start + min(n8, count)]
        if count > n8:
            fours = records[:, start + n8 : start + n8 + n4 // 2]
            codes[:, n8 : n8 + n4 : 2], codes[:, n8 + 1 : n8 + n4 : 2] = fours & 15, fours >> 4
            twos = records[:, start + n8 + n4 // 2 :]
            for shift in range(4):
                codes[:, n8 + n4 + shift :: 4] = twos >> 2 * shift & 3
        units = codes[:, :count].astype(np.float32)
        units += 0.5 - self._half_levels()[:count]
        return units

    def project(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Queries (q, D) float32 as :meth:`units` are multiplied with, (q, d), and what is added to their
        products, (q,): dot products with the vectors that records stand for."""
        return (queries @ self.axes) * self.steps, queries @ self.mean

    def decode(self, records: np.ndarray) -> np.ndarray:
        """The vectors (n, D) float32, about of unit length, that records stand for."""
        return (self.units(records) * self.steps) @ self.axes.T + self.mean

    @staticmethod
    def boxes(records: np.ndarray) -> np.ndarray:
        """The boxes (n, 4) float32 of records, in shares of their photo."""
        shares = np.ascontiguousarray(records[:, :BOX_BYTES]).view("<u2")
        return shares.astype(np.float32) / np.float32(_SHARES)

    def to_bytes(self) -> bytes:
        """The codec as safetensors."""
        from safetensors.numpy import save

        widths = np.array(self.widths, np.int32)
        return save({"mean": self.mean, "axes": self.axes, "steps": self.steps, "widths": widths})

    @classmethod
    def from_bytes(cls, data: bytes) -> RegionCodec:
        """What :meth:`to_bytes` gave."""
        from safetensors.numpy import load

        tensors = load(data)
        n8, n4, n2 = tensors["widths"].tolist()
        return cls(tensors["mean"], tensors["axes"], tensors["steps"], (n8, n4, n2))


def pixel_box(relative_box: Sequence[float], width: int, height: int) -> Box:
    """A box in shares of a photo, in its pixels to a tenth."""
    x0, y0, x1, y1 = relative_box
    return round(x0 * width, 1), round(y0 * height, 1), round(x1 * width, 1), round(y1 * height, 1)


def _allocate(weights: np.ndarray, budget: int) -> np.ndarray:
    """Bits (n,) int of each axis, ``budget`` together at most, that make the sum of ``weights`` times
    distortion least."""
    bits, low, high = np.array(_BITS), 0.0, float(weights.max())
    for _ in range(100):
        price = (low + high) / 2
        chosen = bits[(weights[:, None] * _DISTORTION + price * bits).argmin(1)]
        low, high = (price, high) if chosen.sum() > budget else (low, price)
    return bits[(weights[:, None] * _DISTORTION + high * bits).argmin(1)]


def _best_steps(projected: np.ndarray, steps: np.ndarray, width: int) -> np.ndarray:
    """``steps`` (m,) times the factor that gives ``projected`` (n, m) the least error at ``width`` bits."""
    half = 2 ** (width - 1)
    errors = []
    for factor in _WIDER:
        levels = np.floor(projected / (steps * factor)).clip(-half, half - 1) + 0.5
        errors.append(np.square(levels * (steps * factor) - projected).mean(0))
    best = np.argmin(errors, 0) if projected.size else np.zeros(len(steps), int)
    return steps * np.array(_WIDER)[best]
