"""How likely it is that what was found is what was asked for: cosines made probabilities, by data.

What cosine is good depends on the query, and on how many photos there are to be wrong about: the best of a
thousand that do not fit is nearer than the best of ten. So a pair is judged by its cosine, by the mean and
the spread of the query's cosines with photos in general (the background: mean and covariance of their
embeddings), and by the size of the index, in a logistic regression. :mod:`mmgem.evaluate.calibrate` fits it;
it lies in the model folder as one file, and is no part of the model's fingerprint. Needs no torch.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from mmgem.config import from_dict
from mmgem.errors import CheckpointError, ConfigError, UsageError
from mmgem.utils.checksums import sealed_json, unsealed_json
from mmgem.utils.files import write_atomic_bytes
from mmgem.utils.safetensors_files import load_arrays, read_header

CALIBRATION_FILE = "calibration.safetensors"
MATCH_THRESHOLD = 0.5
"""A hit whose probability is lower is probably no match."""

_FORMAT = 1  # of the file


@dataclass(frozen=True, slots=True, eq=False)
class Background:
    """Embeddings of photos in general: their mean, and their covariance as a few directions and a rest."""

    mean: np.ndarray
    """``(D,)`` float32."""
    components: np.ndarray
    """``(D, r)`` float32: principal directions, each as long as its standard deviation beyond the rest's."""
    residual: float
    """The variance along every direction."""

    @classmethod
    def of(cls, images: np.ndarray, rank: int) -> Background:
        """The background of unit embeddings ``(n, D)``, with ``rank`` directions or fewer."""
        mean = images.mean(axis=0, dtype=np.float64)
        centred = images - mean
        variances, directions = np.linalg.eigh(centred.T @ centred / len(images))
        variances, directions = variances[::-1].clip(min=0), directions[:, ::-1]
        rank = min(rank, len(mean) - 1)
        residual = float(variances[rank:].mean())
        components = directions[:, :rank] * np.sqrt((variances[:rank] - residual).clip(min=0))
        return cls(mean.astype(np.float32), np.ascontiguousarray(components, np.float32), residual)

    def cosines(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation ``(n,)`` of the cosines of photos with unit ``queries`` ``(n, D)``."""
        variances = np.square(queries @ self.components).sum(axis=1) + self.residual
        return queries @ self.mean, np.sqrt(variances)


def logistic(logits: np.ndarray) -> np.ndarray:
    """Probabilities ``(n,)`` of log odds ``(n,)``, of their dtype; never overflows."""
    return np.asarray(0.5 * (1 + np.tanh(logits / 2)))


@dataclass(frozen=True, slots=True)
class MatchWeights:
    """A logistic regression of "it is there" on what is known of the best cosine."""

    cosine: float
    """Never negative: the nearer, the likelier."""
    background_mean: float
    background_std: float
    log_size: float
    bias: float

    def probability(self, features: np.ndarray) -> np.ndarray:
        """Probabilities ``(n,)`` float32 of :func:`match_features` ``(n, 4)``."""
        weights = [self.cosine, self.background_mean, self.background_std, self.log_size]
        return logistic(features @ np.array(weights) + self.bias).astype(np.float32)


@dataclass(frozen=True, slots=True)
class CaptionWeights:
    """A logistic regression of the share of a caption's words that people say of the photo too."""

    log_prob: float
    """Of log P a token. Never negative: the surer, the likelier."""
    bias: float

    def confidence(self, log_prob: np.ndarray) -> np.ndarray:
        """Expected shares ``(n,)`` float32 of log P a token ``(n,)``."""
        return logistic(self.log_prob * log_prob + self.bias).astype(np.float32)


def match_features(cosines: np.ndarray, mean: np.ndarray, std: np.ndarray, size: Any) -> np.ndarray:
    """``(n, 4)`` float64: best cosines, mean and spread of the background's, log of how many there were."""
    return np.stack(np.broadcast_arrays(cosines, mean, std, np.log(size)), axis=-1).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class MatchCalibration:
    """What a model's cosines mean: of a text with photos, and of a photo with class names; and what log P of
    a caption does.

    Each is None if there was no data for it. The prior is even: as if half of what is asked for were there.
    """

    background: Background
    search: MatchWeights | None = None
    classes: MatchWeights | None = None
    captions: CaptionWeights | None = None

    def probability(self, cosines: np.ndarray, queries: np.ndarray, size: int) -> np.ndarray | None:
        """The probability that a text's photo is among the ``size`` photos of an index whose best has this
        cosine: ``(n,)`` float32 of ``cosines`` ``(n,)``, None if texts are not calibrated.

        ``queries``: unit embeddings of the texts, ``(n, D)`` or one for all ``(D,)``. For one text a lower
        cosine is never likelier, so it can be asked for every hit. Raises ``UsageError`` for a ``size`` below
        1 and queries of another width.
        """
        if self.search is None:
            return None
        mean, std = self._background_cosines(np.atleast_2d(queries), size)
        return self.search.probability(match_features(np.asarray(cosines), mean, std, size))

    def fits(self, image: np.ndarray, query: np.ndarray) -> float | None:
        """The probability that a photo fits a text, of unit embeddings ``(D,)``: :meth:`probability` of an
        index of that photo alone, a size below those it was fitted on (docs/results.md, "No match")."""
        probability = self.probability(np.array([image @ query]), query, 1)
        return None if probability is None else round(float(probability[0]), 6)

    def none_of_these(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray | None:
        """The probability that none of the classes fits: ``(n,)`` float32 for unit ``images`` ``(n, D)`` and
        class embeddings ``(c, D)`` (:func:`mmgem.evaluate.classify.class_embeddings`).

        None if classes are not calibrated. Raises ``UsageError`` for embeddings of another width.
        """
        if self.classes is None:
            return None
        mean, std = self._background_cosines(classes, len(classes))
        cosines = images @ classes.T
        best = cosines.argmax(axis=1)
        features = match_features(cosines.max(axis=1), mean[best], std[best], len(classes))
        return np.float32(1) - self.classes.probability(features)

    def rotated(self, components: np.ndarray) -> MatchCalibration:
        """That of a model whose embeddings ``v`` have become ``v @ components``, orthogonal ``(D, D)``."""
        old = self.background
        return replace(
            self, background=Background(old.mean @ components, components.T @ old.components, old.residual)
        )

    def save(self, folder: Path) -> None:
        """Write the file into a model folder; readers see the old one or the new one, never a part."""
        weights = {
            "search": self.search and asdict(self.search),
            "classes": self.classes and asdict(self.classes),
            "captions": self.captions and asdict(self.captions),
        }
        about = {"format": _FORMAT, "residual": self.background.residual, **weights}
        mean, components = self.background.mean, self.background.components
        about["tensors"] = _tensors_crc32(mean, components)
        data = save({"mean": mean, "components": components}, {"calibration": sealed_json(about)})
        write_atomic_bytes(folder / CALIBRATION_FILE, data)

    @classmethod
    def load(cls, folder: Path, dim: int) -> MatchCalibration | None:
        """That of a model folder whose embeddings have ``dim`` numbers, None if it has none.

        Raises ``CheckpointError`` for a file that is damaged or of another model.
        """
        path = folder / CALIBRATION_FILE
        if not path.exists():
            return None
        metadata, tensors = read_header(path).metadata, load_arrays(path)
        try:
            about = unsealed_json(metadata["calibration"], "tensors")
            mean, components = tensors["mean"], tensors["components"]
            if about.get("tensors", crc := _tensors_crc32(mean, components)) != crc:
                raise ValueError("its checksum does not match")
            if about["format"] != _FORMAT:
                raise CheckpointError(f"{path}: format {about['format']!r}, this version reads {_FORMAT}")
            search, classes = (
                about[name] and from_dict(MatchWeights, about[name], name) for name in ("search", "classes")
            )
            captions = about.get("captions") and from_dict(CaptionWeights, about["captions"], "captions")
            background = Background(mean, components, float(about["residual"]))
        except (ValueError, KeyError, TypeError, ConfigError) as error:
            raise CheckpointError(f"{path}: damaged calibration ({error})") from error
        if mean.shape != (dim,) or components.ndim != 2 or len(components) != dim:
            raise CheckpointError(f"{path}: of embeddings of {len(mean)} numbers, but the model's have {dim}")
        return cls(background, search, classes, captions)

    def _background_cosines(self, queries: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
        dim = len(self.background.mean)
        if queries.ndim != 2 or queries.shape[1] != dim:
            raise UsageError(f"queries must have {dim} numbers each, not {queries.shape[1:]}")
        if size < 1 or not math.isfinite(size):
            raise UsageError(f"size must be at least 1, not {size}")
        return self.background.cosines(np.asarray(queries, np.float32))


def _tensors_crc32(*tensors: np.ndarray) -> int:
    crc = 0
    for tensor in tensors:
        crc = zlib.crc32(f"{tensor.dtype} {tensor.shape}".encode() + tensor.tobytes(), crc)
    return crc
