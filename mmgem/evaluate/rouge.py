"""ROUGE-L (Lin 2004) as the COCO caption evaluation computes it: per image, then the mean.

The longest common subsequence is found bit by bit in Python integers (Hyyrö 2004): one pass over the words of
the reference with a few operations each, instead of a table.
"""

from __future__ import annotations

from collections.abc import Sequence

_BETA = 1.2  # recall weighs this much more than precision


def rouge_l(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> float:
    """Return the mean over images of ROUGE-L, from 0 to 1.

    Of an image, precision is the best over its references and so is recall, not necessarily of the same one;
    they make one F-score with beta 1.2. A sentence without words counts as one empty word. ``predictions``
    are one list of words an image, ``references`` at least one list of words for each of them.
    """
    scores = []
    for prediction, refs in zip(predictions, references, strict=True):
        words = prediction or [""]
        common = [(common_length(words, ref or [""]), len(ref) or 1) for ref in refs]
        precision = max(length for length, _ in common) / len(words)
        recall = max(length / reference_length for length, reference_length in common)
        divisor = recall + _BETA**2 * precision
        scores.append((1 + _BETA**2) * precision * recall / divisor if divisor else 0.0)
    return sum(scores) / len(scores)


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """Return the length of the longest common subsequence of two word lists."""
    positions: dict[str, int] = {}
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    all_bits = (1 << len(a)) - 1
    unmatched = all_bits
    for word in b:
        hits = unmatched & positions.get(word, 0)
        unmatched = ((unmatched + hits) | (unmatched - hits)) & all_bits
    return len(a) - unmatched.bit_count()
