"""Which of several captions, or questions, is shown next."""

from __future__ import annotations

import numpy as np


def round_robin_sample(seed: tuple[int, ...], turn: int, count: int, sample_size: int) -> list[int]:
    """``sample_size`` of ``count`` things in their ``turn`` (from 0): walks through rounds of all of them,
    each shuffled by ``seed`` and its number."""
    picked: list[int] = []
    for at in range(turn * sample_size, (turn + 1) * sample_size):
        round_, place = divmod(at, count)
        picked.append(int(np.random.default_rng((*seed, round_)).permutation(count)[place]))
    return picked
