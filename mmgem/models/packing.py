"""Packing: many short sequences in few rows, none of them padded to the longest.

Captions are 8 to 20 tokens, so a padded batch is half padding. Here sequences are laid into rows of a
fixed length, first fit, longest first; a block mask keeps them apart and positions restart at 0 in each.
Packed equals padded to rounding (tested).

Shared-prefix packing: a sequence and others that continue it lie side by side in one row; each sees the one
it continues and none of its siblings, so that what they share is read once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """A sequence to read in a packed pass of the LLM (:meth:`MMGEMNetwork.forward_packed`)."""

    ids: Tensor
    """Its tokens: 1-D int64 on the CPU."""
    prefix: Tensor | None = None
    """Vectors ``(P, H)`` before the tokens, of any number: of a caption, what is seen of the image, and
    ``[CAP]``."""
    pool: bool = False
    """Whether an embedding is taken: ``[EMB]`` follows the tokens."""
    parent: int = -1
    """The number of the segment that it continues and may look at, which continues none itself; -1: none."""
    causal: bool = True
    """Whether a position sees only those before it."""
    image: tuple[Tensor, int] | None = None
    """Vectors of images ``(N, M, W)``, and which of them cross-attention shows it, in networks that have
    some."""


@dataclass(frozen=True)
class PackedOutput:
    """What a packed pass over N segments of ``n_i`` tokens gives."""

    hidden_states: Tensor
    """``(R * L, H)``, all positions of all rows."""
    packing: Packing
    """Where the segments lie in them."""
    embeddings: Tensor
    """``(pooled, D)`` of the pooled segments in turn, not normalised."""
    token_indices: Tensor
    """``(sum of n_i,)`` int64 on the CPU: the place of every token in ``hidden_states``. The state before it
    predicts it, except for the first token of a segment without a prefix."""
    prediction_states: Tensor
    """``(T, H)``: of every segment with a prefix, in turn, the states that predict ``x_1 .. x_n, end`` (T =
    sum of n + 1). The head is worth running at no other of their positions."""


@dataclass(frozen=True)
class Packing:
    """Where each sequence lies. ``row``, ``start``: ``(N,)`` int64; ``segments``, ``positions``:
    ``(R, L)`` int64, segment -1 where nothing lies; ``parents``: ``(N,)`` int64 or None, the sequence that
    each continues, -1 for none."""

    row: Tensor
    start: Tensor
    segments: Tensor
    positions: Tensor
    parents: Tensor | None = None

    def allowed(self, causal: Tensor | bool = True) -> Tensor:
        """``(R, L, L)`` bool attention mask; ``causal`` may be a ``(N,)`` bool, one choice per sequence."""
        same = self.segments[:, :, None] == self.segments[:, None, :]
        if self.parents is not None:
            parent = torch.where(self.segments >= 0, self.parents[self.segments.clamp(min=0)], -1)
            same |= (parent[:, :, None] == self.segments[:, None, :]) & (parent >= 0)[:, :, None]
        length = self.segments.shape[1]
        lower = torch.ones(length, length, dtype=torch.bool).tril()
        if isinstance(causal, bool):
            return same & lower if causal else same
        look_ahead = ~causal[self.segments.clamp(min=0)]
        return same & (lower | look_ahead[:, :, None])

    def flat(self, offsets: Tensor, sequences: Tensor | None = None) -> Tensor:
        """Flat indices into ``(R * L)`` of position ``offsets`` of each sequence (or of ``sequences``)."""
        row, start = self.row, self.start
        if sequences is not None:
            row, start = row[sequences], start[sequences]
        return row * self.segments.shape[1] + start + offsets

    def span(self, offsets: Tensor, counts: Tensor, sequences: Tensor | None = None) -> Tensor:
        """Flat indices of ``counts[i]`` consecutive positions from ``offsets[i]``, in turn."""
        before = counts.cumsum(0) - counts
        base = self.flat(offsets, sequences) - before
        return torch.repeat_interleave(base, counts) + torch.arange(int(counts.sum()))


def pack(lengths: list[int], row_length: int = 128) -> Packing:
    """Lay sequences of ``lengths`` tokens into rows of ``row_length`` (or the longest, if longer)."""
    width = max(row_length, max(lengths))
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    free: list[int] = []
    row, start = [0] * len(lengths), [0] * len(lengths)
    first = 0
    for i in order:
        while first < len(free) and free[first] == 0:
            first += 1
        for r in range(first, len(free)):
            if free[r] >= lengths[i]:
                break
        else:
            r = len(free)
            free.append(width)
        row[i], start[i] = r, width - free[r]
        free[r] -= lengths[i]
    used = width - min(free)
    rows, starts = torch.tensor(row), torch.tensor(start)
    segments = torch.full((len(free), used), -1)
    positions = torch.zeros(len(free), used, dtype=torch.long)
    for i, n in enumerate(lengths):
        segments[row[i], start[i] : start[i] + n] = i
        positions[row[i], start[i] : start[i] + n] = torch.arange(n)
    return Packing(rows, starts, segments, positions)


def pack_shared_prefix(lengths: list[int], parents: Tensor | None, row_length: int = 128) -> Packing:
    """As :func:`pack`, but a sequence lies behind the one it continues (``parents`` ``(N,)``, -1 for none),
    in its row, at the positions that follow it. Raises ``ValueError`` if that one continues another."""
    if parents is None or (parents < 0).all():
        return pack(lengths, row_length)
    heads = (parents < 0).nonzero()[:, 0].tolist()
    groups = {head: [head] for head in heads}
    for child, parent in enumerate(parents.tolist()):
        if parent >= 0:
            if parent not in groups:
                raise ValueError(f"segment {child} continues {parent}, which continues another or is missing")
            groups[parent].append(child)
    sizes = [sum(lengths[i] for i in groups[head]) for head in heads]
    units = pack(sizes, row_length)
    row, start = [0] * len(lengths), [0] * len(lengths)
    segments = torch.full_like(units.segments, -1)
    positions = torch.zeros_like(units.positions)
    for unit, head in enumerate(heads):
        r, at = int(units.row[unit]), int(units.start[unit])
        for i in groups[head]:
            row[i], start[i] = r, at
            segments[r, at : at + lengths[i]] = i
            first = 0 if i == head else lengths[head]
            positions[r, at : at + lengths[i]] = torch.arange(first, first + lengths[i])
            at += lengths[i]
    return Packing(torch.tensor(row), torch.tensor(start), segments, positions, parents)
