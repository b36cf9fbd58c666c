"""Sequences of unlike lengths that grow together on one KV cache.

The cache is a rectangle with holes: what a row has not is masked, and each row counts its own positions,
which also decide what the model's attention windows reach. So rows may have runs of different lengths
appended in one pass, be doubled, dropped and started from parts exported before, and none of them depends on
the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from mmgem.models.llm import LLM

KeyValues = list[tuple[Tensor, Tensor]]
"""Keys and values of one sequence in each block, ``(heads, L, d)``."""


class BatchedKVCache:
    """R sequences; ``last`` ``(R, H)`` is the hidden state behind each one's newest token."""

    def __init__(self, llm: LLM, cache: DynamicCache, valid: Tensor, last: Tensor):
        self.llm, self.cache, self.valid, self.last = llm, cache, valid, last

    @classmethod
    def empty(cls, llm: LLM, count: int, device: torch.device) -> BatchedKVCache:
        """``count`` rows of no tokens."""
        valid = torch.zeros(count, 0, dtype=torch.bool, device=device)
        return cls(llm, DynamicCache(), valid, torch.zeros(count, llm.width, device=device))

    @classmethod
    def load(cls, llm: LLM, exported: Sequence[KeyValues], device: torch.device) -> BatchedKVCache:
        """Rows that continue sequences read before (see :meth:`export`)."""
        lengths = torch.tensor([parts[0][0].shape[1] for parts in exported])
        most = int(lengths.max())
        cache = DynamicCache()
        for block in range(len(exported[0])):
            pair = []
            for which, part in enumerate(exported[0][block]):  # keys and values may differ in width
                shape = len(exported), part.shape[0], most, part.shape[2]
                together = torch.zeros(shape, dtype=llm.dtype, device=device)
                for row, parts in enumerate(exported):
                    together[row, :, : parts[block][which].shape[1]] = parts[block][which]
                pair.append(together)
            cache.update(*pair, block)
        valid = (torch.arange(most)[None] < lengths[:, None]).to(device)
        return cls(llm, cache, valid, torch.zeros(len(exported), llm.width, device=device))

    def export(self, row: int, dtype: torch.dtype = torch.float16) -> KeyValues:
        """Copies of a row's keys and values, for :meth:`load`."""
        where = self.valid[row]
        return [(x.keys[row][:, where].to(dtype), x.values[row][:, where].to(dtype)) for x in self._layers()]

    def append(self, tokens: Sequence[Sequence[int]]) -> Tensor:
        """Append ``tokens[r]``, perhaps none, to row r. Returns the hidden states ``(R, L, H)``; behind a
        row's own tokens they mean nothing."""
        device = self.valid.device
        counts = torch.tensor([len(t) for t in tokens], device=device)
        length = int(counts.max())
        ids = torch.zeros(len(tokens), length, dtype=torch.long)
        for row, own in enumerate(tokens):
            ids[row, : len(own)] = torch.tensor(own, dtype=torch.long)
        steps = torch.arange(length, device=device)
        new = steps[None] < counts[:, None]
        positions = self.valid.sum(1, keepdim=True) + steps.clamp(max=length - 1)
        causal = steps[:, None] >= steps[None]
        allowed = torch.cat([self.valid[:, None].expand(-1, length, -1), causal & new[:, None]], 2)
        self.valid = torch.cat([self.valid, new], 1)
        key_positions = (self.valid.cumsum(1) - 1).clamp(min=0)
        states = self.llm(self.llm.embed(ids.to(device)), positions, allowed, self.cache, key_positions)
        ends = states[torch.arange(len(tokens), device=device), (counts - 1).clamp(min=0)]
        self.last = torch.where((counts > 0)[:, None], ends, self.last)
        return states

    def select(self, rows: Sequence[int]) -> BatchedKVCache:
        """New rows, copies of ``rows``; these stay as they are."""
        index = torch.tensor(rows, dtype=torch.long, device=self.valid.device)
        valid = self.valid[index]
        used = valid.any(0)  # columns that no row has any more
        cache = DynamicCache()
        for block, layer in enumerate(self._layers()):
            cache.update(layer.keys[index][:, :, used], layer.values[index][:, :, used], block)
        return BatchedKVCache(self.llm, cache, valid[:, used], self.last[index])

    def _layers(self) -> list:
        return list(self.cache.layers)
