"""Beam search along a trie: what comes out is always one of its rows.

Only the children of a node are scored: those rows of the output head are gathered, and a step's probability
is the softmax over them, so the probabilities of all rows of the trie add up to 1. Tokens that have no
alternative have probability 1: a run of them is fed in one pass, and none at all behind the point where the
row is certain. The result is that of a plain beam search, token by token, with those probabilities: paths are
compared at equal depth, and one that is certain keeps its place.

:func:`vocabulary_beam_search` is the other convention, that of Self-Retrieval's released code and of
transformers: probabilities over the whole vocabulary, finished rows ranked by their mean a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mmgem.models.kv_cache import BatchedKVCache
from mmgem.self_retrieval.trie import Node, Trie


@dataclass(frozen=True)
class DecodedPath:
    """A row of the trie (or several equal ones) and its log-probability."""

    node: Node
    log_prob: float


@dataclass(frozen=True)
class _Hypothesis:
    """A beam of a ``query``: the row of the cache it continues, and its tokens that are not fed yet."""

    query: int
    row: int
    node: Node
    log_prob: float
    pending: tuple[int, ...]
    certain: bool


@torch.inference_mode()
def constrained_beam_search(
    rows: BatchedKVCache, trie: Trie, nodes: Sequence[Node], width: int, first_token_only: bool = False
) -> list[list[DecodedPath]]:
    """Continue each of R ``rows`` along ``trie`` from its own node; the best ``width`` paths of each, best
    first.

    ``first_token_only``: choose at the first branching only and follow the likeliest child afterwards (a
    beam of one token, as Self-Retrieval's released code does for passages).
    """
    beams = [[_follow_forced(_Hypothesis(g, g, node, 0.0, (), False), trie)] for g, node in enumerate(nodes)]
    start_depths = [query_beams[0].node.depth for query_beams in beams]
    while live := [b for query_beams in beams for b in query_beams if not b.certain]:
        rows = rows.select([b.row for b in live])
        if any(b.pending for b in live):
            rows.append([b.pending for b in live])
        live = [replace(b, row=row, pending=()) for row, b in enumerate(live)]
        expanded = [[b for b in query_beams if b.certain] for query_beams in beams]
        depths = [min((b.node.depth for b in live if b.query == g), default=0) for g in range(len(beams))]
        shallowest = [b for b in live if b.node.depth == depths[b.query]]
        for children in _expand(rows, trie, shallowest):
            query = children[0].query
            greedy = first_token_only and depths[query] > start_depths[query]
            expanded[query] += children[:1] if greedy else children
        for b in live:
            if b.node.depth > depths[b.query]:
                expanded[b.query].append(b)
        pruned = [sorted(query_beams, key=lambda b: -b.log_prob)[:width] for query_beams in expanded]
        beams = [[_follow_forced(b, trie) for b in query_beams] for query_beams in pruned]
    return [[DecodedPath(b.node, b.log_prob) for b in query_beams] for query_beams in beams]


@torch.inference_mode()
def vocabulary_beam_search(
    rows: BatchedKVCache, trie: Trie, nodes: Sequence[Node], width: int
) -> list[list[DecodedPath]]:
    """As :func:`constrained_beam_search`, with probabilities over the whole vocabulary; the ``log_prob`` of a
    path is the mean over its tokens, and paths that have ended are ranked by it (transformers' beam search
    with ``prefix_allowed_tokens_fn``, ``length_penalty=1`` and ``early_stopping="never"``)."""
    live = [_Hypothesis(g, g, node, 0.0, (), False) for g, node in enumerate(nodes)]
    finished: list[list[DecodedPath]] = [[] for _ in nodes]
    while live:
        rows = rows.select([b.row for b in live])
        if any(b.pending for b in live):
            rows.append([b.pending for b in live])
        live = [replace(b, row=row, pending=()) for row, b in enumerate(live)]
        children: list[list[_Hypothesis]] = [[] for _ in nodes]
        for expanded in _expand(rows, trie, live, whole_vocabulary=True):
            children[expanded[0].query] += expanded
        live = []
        for query, of in enumerate(children):
            best = sorted(of, key=lambda b: -b.log_prob)[: 2 * width]
            ended = [not len(trie.children(b.node)[0]) for b in best]
            # One may end only from among the best, as if the others were already pruned.
            for b, has_ended in zip(best[:width], ended, strict=False):
                if has_ended:
                    length = b.node.depth - nodes[query].depth
                    finished[query].append(DecodedPath(b.node, b.log_prob / length))
            live += [b for b, has_ended in zip(best, ended, strict=True) if not has_ended][:width]
    return [sorted(of, key=lambda path: -path.log_prob)[:width] for of in finished]


def _follow_forced(b: _Hypothesis, trie: Trie) -> _Hypothesis:
    """The same path followed to where there is a choice, or certainty."""
    forced, node = trie.forced(b.node)
    return replace(b, node=node, pending=(*b.pending, *forced), certain=trie.is_path(node))


def _expand(
    rows: BatchedKVCache, trie: Trie, beams: list[_Hypothesis], whole_vocabulary: bool = False
) -> list[list[_Hypothesis]]:
    """The children of each hypothesis, likeliest first; with ``whole_vocabulary`` of the softmax over it."""
    branches = [trie.children(b.node) for b in beams]
    union = np.unique(np.concatenate([tokens for tokens, _ in branches]))
    last = rows.last[[b.row for b in beams]]
    logits = rows.llm.logits_of(last, torch.from_numpy(union.astype(np.int64)).to(last.device)).float()
    if whole_vocabulary:
        logits -= rows.llm.logits(last).float().logsumexp(-1, keepdim=True)
    expansions = []
    for b, (tokens, starts), scores in zip(beams, branches, logits, strict=True):
        columns = torch.from_numpy(np.searchsorted(union, tokens)).to(scores.device)
        own = scores[columns] if whole_vocabulary else scores[columns].log_softmax(0)
        log_probs, order = own.sort(descending=True, stable=True)
        children = []
        for i, log_prob in zip(order.tolist(), log_probs.tolist(), strict=True):
            node = Node(int(starts[i]), int(starts[i + 1]), b.node.depth + 1)
            child = _Hypothesis(b.query, b.row, node, b.log_prob + log_prob, (int(tokens[i]),), False)
            children.append(child)
        expansions.append(children)
    return expansions
