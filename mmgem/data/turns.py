"""Whose turn it is: what a rank has of a batch, and which captions an image shows next."""

from __future__ import annotations

import numpy as np

from mmgem.errors import ConfigError


def shard_slice(count: int, part: tuple[int, int]) -> slice:
    """The contiguous part of ``count`` things that a rank has, as even as can be; ``part``: rank and number
    of ranks."""
    rank, ranks = part
    return slice(rank * count // ranks, (rank + 1) * count // ranks)


def check_enough(count: int, what: str, ranks: int, field: str = "train.batch_size") -> None:
    """Raise ``ConfigError`` naming ``field`` if a step has ``count`` of something, too few for ``ranks``."""
    if count < ranks:
        raise ConfigError(f"{field}: {count} {what} a step, fewer than the {ranks} processes")


def round_robin_sample(seed: tuple[int, ...], turn: int, count: int, want: int) -> list[int]:
    """``want`` of ``count`` things in their ``turn`` (from 0): walks through rounds of all of them, each
    shuffled by ``seed`` and its number."""
    picked: list[int] = []
    for at in range(turn * want, (turn + 1) * want):
        round_, place = divmod(at, count)
        picked.append(int(np.random.default_rng((*seed, round_)).permutation(count)[place]))
    return picked
