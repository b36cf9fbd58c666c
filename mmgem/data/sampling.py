"""Which of several captions, or questions, is shown next; which images come in one batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def round_robin_sample(seed: tuple[int, ...], turn: int, count: int, sample_size: int) -> list[int]:
    """``sample_size`` of ``count`` things in their ``turn`` (from 0): walks through rounds of all of them,
    each shuffled by ``seed`` and its number."""
    picked: list[int] = []
    for at in range(turn * sample_size, (turn + 1) * sample_size):
        round_, place = divmod(at, count)
        picked.append(int(np.random.default_rng((*seed, round_)).permutation(count)[place]))
    return picked


def group_similar(
    rng: np.random.Generator, vectors: npt.NDArray[np.float32], similar: int
) -> npt.NDArray[np.int64]:
    """An order of all rows of ``vectors`` ``(N, D)``, unit rows: random ones, each before the ``similar``
    rows nearest to it of those that no other has taken. Batches that are cut from it are made of hard
    negatives (FaceNet, arXiv 1503.03832, chooses them within a batch; here the batch is chosen)."""
    order = rng.permutation(len(vectors))
    groups = len(order) // (similar + 1)
    first, others = order[:groups], order[groups:]
    free = np.ones(len(others), bool)
    found: list[npt.NDArray[np.int64]] = []
    for block in np.array_split(first, max(1, groups // 256)):
        cosines = vectors[block] @ vectors[others].T
        for row, seed in zip(cosines, block, strict=True):
            nearest = np.where(free, row, -np.inf).argpartition(-similar)[-similar:]
            free[nearest] = False
            found.append(np.concatenate([[seed], others[nearest]]))
    return np.concatenate([*found, others[free]])
