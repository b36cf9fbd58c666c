"""A part of a person's own photos that is measured on and never learned from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmgem.data.records import Record


def hold_out(
    records: Sequence[Record], contents: Sequence[str], share: float, seed: int = 0
) -> tuple[list[Record], list[Record]]:
    """Part ``records`` at random, by ``seed``, into those that are learned and about a ``share`` of them that
    are not, each in their order.

    Of every label about that share is held out. ``contents``: a hash of each image's bytes; those of equal
    ones stay together, for a copy of a photo that was learned measures nothing.
    """
    labels = {content: record.label or "" for content, record in zip(contents, records, strict=True)}
    distinct = sorted(labels)
    order = [distinct[i] for i in np.random.default_rng(seed).permutation(len(distinct))]
    order.sort(key=labels.__getitem__)  # stable: the labels in turn, each in random order
    held = {content for i, content in enumerate(order) if int((i + 1) * share) > int(i * share)}
    parts: tuple[list[Record], list[Record]] = [], []
    for content, record in zip(contents, records, strict=True):
        parts[content in held].append(record)
    return parts
