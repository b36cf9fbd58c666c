"""Where in its file a sentence of a passage begins."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

_COMPARED = (48, 24, 12)  # letters; shorter where a mark or an address lies between
_NEAR = 4000  # letters ahead that are looked through


class SentencePlaces:
    """Finds the sentences of a file in their order, by their letters and digits alone: passages are in single
    spaces, without marks."""

    def __init__(self, lines: Sequence[tuple[int, str]]):
        """``lines``: numbers and texts."""
        letters = [_letters(line) for _, line in lines]
        self._text = "".join(letters)
        self._starts = list(accumulate(map(len, letters), initial=0))[:-1]
        self._numbers = [n for n, _ in lines]
        self._at = 0

    def next(self, sentence: str) -> int:
        """The number of the line where ``sentence`` begins, at or behind the end of the last one found; where
        it cannot be told, that of the place where the search stands."""
        key = _letters(sentence)
        for length in _COMPARED:
            part = key[:length]
            found = self._text.find(part, self._at, self._at + _NEAR + len(part)) if part else -1
            if found >= 0:
                self._at = found + len(part)
                return self._number(found)
        return self._number(self._at)

    def _number(self, at: int) -> int:
        return self._numbers[max(0, bisect_right(self._starts, at) - 1)]


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text)).lower()
