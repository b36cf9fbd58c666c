"""Scripts that put no space between words, and the marks that end sentences in any script.

Chinese and Japanese are counted and cut by characters; Thai, Lao, Burmese and Khmer by four characters, about
a word, marks staying with the letter they sit on. Korean has spaces and is read by them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

CJK = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303b\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff"
    "\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    "\U00020000-\U0003fffd"
)
"""Characters of Chinese and Japanese, for a character class of a regular expression."""
SOUTHEAST_ASIAN = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0eff\u1000-\u109f\u1780-\u17d3\ua9e0-\ua9fe\uaa60-\uaa7f"
)
"""The same of Thai, Lao, Burmese and Khmer."""

FULL_STOPS = ".\u3002\uff0e\uff61\u0964\u0589\u06d4\u1362\u17d4\u104b"
"""Full stops: of Latin, Chinese (three widths), Hindi, Armenian, Urdu, Amharic, Khmer and Burmese."""
MARKS_WITHOUT_SPACE = "\u3002\uff01\uff1f\uff61"
"""Marks of Chinese and Japanese, after which the next sentence begins without a space."""
SENTENCE_MARKS = f"!?\u2026\u061f\u055c\u055e\u1367\uff01\uff1f{FULL_STOPS}"
"""All that ends a sentence."""

_UNSPACED = f"{CJK}{SOUTHEAST_ASIAN}"
_UNIT = re.compile(
    rf"(?:[{CJK}]|[{SOUTHEAST_ASIAN}]{{1,4}}|[^{_UNSPACED}]+?(?=[{_UNSPACED}]|$))[^\w]*", re.DOTALL
)
_NEEDLESS_SPACE = re.compile(
    rf"(?<=[{CJK}{MARKS_WITHOUT_SPACE}\u300d\u300f\uff0c\u3001]) (?=[{CJK}\u300c\u300e])"
)


def text_units(text: str) -> list[str]:
    """What ``text`` is counted and cut by: its words, and the characters of text without spaces.

    Each has a space before it where a word begins, so that :func:`join_units` gives the text again, its
    white space made single spaces.
    """
    units: list[str] = []
    for word in text.split():
        if word.isascii():
            units.append(f" {word}")
        else:
            first, *rest = _UNIT.findall(word)
            units += (f" {first}", *rest)
    return units


def join_units(units: Iterable[str]) -> str:
    """The text of ``units``; Chinese and Japanese sentences are joined without a space."""
    text = "".join(units).strip()
    return text if text.isascii() else _NEEDLESS_SPACE.sub("", text)


@lru_cache(maxsize=1)
def unspaced_characters() -> re.Pattern[str]:
    """Matches one character of a script without spaces, with the marks on it."""
    return re.compile(rf"[{CJK}]|[{SOUTHEAST_ASIAN}](?:(?!\w)[{SOUTHEAST_ASIAN}])*")
