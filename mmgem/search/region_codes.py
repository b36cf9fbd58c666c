"""Short codes of the vectors of regions: 176 bytes for a box and 512 numbers, where float32 takes 2,048.

Vectors lose their mean, are turned to their principal axes, along which their variance falls, and each number
is rounded to a step of its axis: to as many as 12 bits along the first axes, to ever fewer along those that
come after, none along the last. The bits go where they lower the error of a dot product most: Lagrangian bit
allocation, Shoham & Gersho 1988, doi:10.1109/29.90373, with the distortions of uniform quantizers of a normal
variable, Max 1960, doi:10.1109/TIT.1960.1057548. They lie in planes: the highest bit of every axis, then the
next of those that have two, and so on. A query stays float32. Axes, steps and bits are fitted on an index's
own regions, once, and kept in its manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmgem.data.records import Box
from mmgem.inference.pca import fit_sample

CODE_BYTES = 168
"""Of a vector, at most."""
BOX_BYTES = 8
_SHARES = 65535  # of a photo's side, in which a box is kept
# By bits: the mean squared error at unit variance, and the step in standard deviations that gives it.
_DISTORTION = np.array(
    [*(1, 0.3634, 0.1188, 0.0374, 0.0115, 0.0035, 0.00104), *(3.04e-4, 8.77e-5, 2.5e-5, 7e-6, 1.9e-6, 5.4e-7)]
)
_STEP = np.array(
    [*(0, 1.596, 0.9957, 0.586, 0.3352, 0.1881, 0.1041), *(0.0569, 0.0308, 0.0165, 0.00879, 0.00465, 0.00245)]
)
_MAX_BITS = len(_STEP) - 1
_BYTE = 8  # planes that make the codes; what comes after refines those of the first axes
_WIDER = (1.0, 1.2, 1.5, 2.0)  # steps that are tried, for heavy tails
# Queries are as regions are, their mean included, but texts lie less along the first axes: what they have of
# the mean variance on every axis.
_QUERY_FLOOR = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class RegionCodec:
    """``mean`` (D,), ``axes`` (D, d) and ``steps`` (d,) float32; ``bits`` (d,) uint8 of each axis, never more
    than of the one before. A record is a row of ``record_bytes`` uint8: the box, then the codes."""

    mean: np.ndarray
    axes: np.ndarray
    steps: np.ndarray
    bits: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, code_bytes: int = CODE_BYTES) -> RegionCodec:
        """The codec for vectors such as ``vectors`` (n, D) float32."""
        sample = np.asarray(fit_sample(vectors), np.float32)
        mean = sample.mean(0)
        centred = sample - mean
        variance, axes = np.linalg.eigh((centred.T @ centred).astype(np.float64) / len(sample))
        variance, axes = np.maximum(variance[::-1], 1e-12), axes[:, ::-1].astype(np.float32)
        of_queries = variance + np.square(mean @ axes) + _QUERY_FLOOR * variance.mean()
        bits = _allocate(variance * of_queries, code_bytes * 8)
        order = np.argsort(-bits, kind="stable")[: int((bits > 0).sum())]
        bits, variance, axes = bits[order], variance[order], axes[:, order]
        axes = np.ascontiguousarray(axes)
        steps = _best_steps(centred @ axes, np.sqrt(variance) * _STEP[bits], bits)
        return cls(mean, axes, steps.astype(np.float32), bits.astype(np.uint8))

    @property
    def record_bytes(self) -> int:
        """Of a region: its box and its codes."""
        return BOX_BYTES + -(-int(self.bits.sum()) // 8)

    @property
    def _planes(self) -> list[int]:
        """How many axes each plane of bits has."""
        return [int((self.bits > plane).sum()) for plane in range(_MAX_BITS)]

    @property
    def _half_levels(self) -> np.ndarray:
        """Half the number of levels of each axis, (d,) float32."""
        return np.float32(0.5) * np.exp2(self.bits.astype(np.float32))

    def encode(self, vectors: np.ndarray, relative_boxes: np.ndarray) -> np.ndarray:
        """Records (n, record_bytes) uint8 of ``vectors`` (n, D) float32 with their boxes (n, 4), in shares of
        their photo."""
        projected = (np.asarray(vectors, np.float32) - self.mean) @ self.axes
        half = self._half_levels
        codes = (np.floor(projected / self.steps) + half).clip(0, 2 * half - 1).astype(np.uint16)
        planes = [
            codes[:, :axes] >> (self.bits[:axes] - plane - 1) & 1 for plane, axes in enumerate(self._planes)
        ]
        boxes = np.rint(relative_boxes.clip(0, 1) * _SHARES).astype("<u2")
        packed = np.packbits(np.concatenate(planes, axis=1).astype(np.uint8), axis=1)
        return np.concatenate([boxes.view(np.uint8).reshape(-1, BOX_BYTES), packed], axis=1)

    def units(self, records: np.ndarray, axes: int | None = None) -> np.ndarray:
        """The coordinates of records (n, record_bytes) on the first ``axes`` (None: all), in steps: (n, d)
        float32."""
        count = len(self.bits) if axes is None else min(axes, len(self.bits))
        bits = np.unpackbits(records[:, BOX_BYTES:], axis=1)
        codes = np.zeros((len(records), count), np.uint8)
        start, planes = 0, self._planes
        for plane_axes in planes[:_BYTE]:
            has = codes[:, : min(plane_axes, count)]
            np.left_shift(has, 1, out=has)
            has |= bits[:, start : start + has.shape[1]]
            start += plane_axes
        units = codes.astype(np.float32)
        for plane_axes in planes[_BYTE:]:
            fine = units[:, : min(plane_axes, count)]
            fine *= 2
            fine += bits[:, start : start + fine.shape[1]]
            start += plane_axes
        units += 0.5 - self._half_levels[:count]
        return units

    def project(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Queries (q, D) float32 as :meth:`units` are multiplied with, (q, d), and what is added to their
        products, (q,): dot products with the vectors that records stand for."""
        return (queries @ self.axes) * self.steps, queries @ self.mean

    def decode(self, records: np.ndarray) -> np.ndarray:
        """The vectors (n, D) float64, about of unit length, that records stand for; so wide that they are the
        same however many come at once."""
        return np.asarray((self.units(records) * self.steps.astype(np.float64)) @ self.axes.T + self.mean)

    @staticmethod
    def boxes(records: np.ndarray) -> np.ndarray:
        """The boxes (n, 4) float32 of records, in shares of their photo."""
        shares = np.ascontiguousarray(records[:, :BOX_BYTES]).view("<u2")
        return shares.astype(np.float32) / np.float32(_SHARES)

    def to_bytes(self) -> bytes:
        """The codec as safetensors."""
        from safetensors.numpy import save

        return save({"mean": self.mean, "axes": self.axes, "steps": self.steps, "bits": self.bits})

    @classmethod
    def from_bytes(cls, data: bytes) -> RegionCodec:
        """What :meth:`to_bytes` gave."""
        from safetensors.numpy import load

        tensors = load(data)
        return cls(tensors["mean"], tensors["axes"], tensors["steps"], tensors["bits"])


def pixel_box(relative_box: Sequence[float], width: int, height: int) -> Box:
    """A box in shares of a photo, in its pixels to a tenth."""
    x0, y0, x1, y1 = relative_box
    return round(x0 * width, 1), round(y0 * height, 1), round(x1 * width, 1), round(y1 * height, 1)


def _allocate(weights: np.ndarray, budget: int) -> np.ndarray:
    """Bits (n,) int of each axis, ``budget`` together at most, that make the sum of ``weights`` times
    distortion least."""
    choices, low, high = np.arange(_MAX_BITS + 1), 0.0, float(weights.max())
    for _ in range(100):
        price = (low + high) / 2
        bits = (weights[:, None] * _DISTORTION + price * choices).argmin(1)
        low, high = (price, high) if bits.sum() > budget else (low, price)
    return (weights[:, None] * _DISTORTION + high * choices).argmin(1)


def _best_steps(projected: np.ndarray, steps: np.ndarray, bits: np.ndarray) -> np.ndarray:
    """``steps`` (d,) times the factor that gives ``projected`` (n, d) the least error at ``bits`` (d,)."""
    half = np.exp2(bits - 1.0)
    errors = []
    for factor in _WIDER:
        levels = np.floor(projected / (steps * factor)).clip(-half, half - 1) + 0.5
        errors.append(np.square(levels * (steps * factor) - projected).mean(0))
    return steps * np.array(_WIDER)[np.argmin(errors, 0)]
