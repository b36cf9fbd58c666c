"""Beam search along a trie: what comes out is always one of its rows.

Only the children of a node are scored: those rows of the output head are gathered, and a step's probability
is the softmax over them, so the probabilities of all rows of the trie add up to 1. Tokens that have no
alternative have probability 1: a run of them is fed in one pass, and none at all behind the point where the
row is certain. The result is that of a plain beam search, token by token, with those probabilities: paths are
compared at equal depth, and one that is certain keeps its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mmgem.models.kv_cache import BatchedKVCache
from mmgem.self_retrieval.trie import Node, Trie


@dataclass(frozen=True)
class Path:
    """A row of the trie (or several equal ones) and the log-probability of getting there."""

    node: Node
    log_prob: float


@dataclass(frozen=True)
class _Beam:
    """A path in the making: the row of the cache it continues, and its tokens that are not fed yet."""

    group: int
    row: int
    node: Node
    log_prob: float
    pending: tuple[int, ...]
    certain: bool


@torch.inference_mode()
def constrained_beam(
    rows: BatchedKVCache, trie: Trie, nodes: Sequence[Node], width: int, first_token_only: bool = False
) -> list[list[Path]]:
    """Continue each of R ``rows`` along ``trie`` from its own node; the best ``width`` paths of each, best
    first.

    ``first_token_only``: choose at the first branching only and follow the likeliest child afterwards (a
    beam of one token, as Self-Retrieval's released code does for passages).
    """
    beams = [[_settled(_Beam(g, g, node, 0.0, (), False), trie)] for g, node in enumerate(nodes)]
    first = [own[0].node.depth for own in beams]
    while live := [b for own in beams for b in own if not b.certain]:
        rows = rows.select([b.row for b in live])
        if any(b.pending for b in live):
            rows.append([b.pending for b in live])
        live = [replace(b, row=row, pending=()) for row, b in enumerate(live)]
        grown = [[b for b in own if b.certain] for own in beams]
        now = [min((b.node.depth for b in live if b.group == g), default=0) for g in range(len(beams))]
        grow = [b for b in live if b.node.depth == now[b.group]]
        for children in _children(rows, trie, grow):
            group = children[0].group
            greedy = first_token_only and now[group] > first[group]
            grown[group] += children[:1] if greedy else children
        for b in live:
            if b.node.depth > now[b.group]:
                grown[b.group].append(b)
        kept = [sorted(own, key=lambda b: -b.log_prob)[:width] for own in grown]
        beams = [[_settled(b, trie) for b in own] for own in kept]
    return [[Path(b.node, b.log_prob) for b in own] for own in beams]


def _settled(b: _Beam, trie: Trie) -> _Beam:
    """The same path followed to where there is a choice, or certainty."""
    run, node = trie.forced(b.node)
    return replace(b, node=node, pending=(*b.pending, *run), certain=trie.is_path(node))


def _children(rows: BatchedKVCache, trie: Trie, beams: list[_Beam]) -> list[list[_Beam]]:
    """The children of each path, likeliest first."""
    families = [trie.children(b.node) for b in beams]
    union = np.unique(np.concatenate([tokens for tokens, _ in families]))
    last = rows.last[[b.row for b in beams]]
    logits = rows.llm.logits_of(last, torch.from_numpy(union.astype(np.int64)).to(last.device)).float()
    grown = []
    for b, (tokens, starts), scores in zip(beams, families, logits, strict=True):
        own = torch.from_numpy(np.searchsorted(union, tokens)).to(scores.device)
        log_probs, order = scores[own].log_softmax(0).sort(descending=True, stable=True)
        children = []
        for i, log_prob in zip(order.tolist(), log_probs.tolist(), strict=True):
            node = Node(int(starts[i]), int(starts[i + 1]), b.node.depth + 1)
            child = _Beam(b.group, b.row, node, b.log_prob + log_prob, (int(tokens[i]),), False)
            children.append(child)
        grown.append(children)
    return grown
