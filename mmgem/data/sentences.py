"""Where one sentence of a text ends and the next begins.

Full stops, question and exclamation marks and line breaks end a sentence. What is left of one in fewer than
three words ("Mr.", "No. 5") is no sentence: it goes with its neighbour.
"""

from __future__ import annotations

import re

_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\s*\n\s*")
_LEAST_WORDS = 3


def split_sentences(text: str) -> list[str]:
    """The sentences of ``text`` in turn, white space at their ends dropped; no words are lost.

    A text without words gives an empty list.
    """
    sentences: list[str] = []
    short = ""
    for piece in filter(None, (part.strip() for part in _END.split(text))):
        piece = f"{short} {piece}".strip()
        short = ""
        if sum(any(map(str.isalnum, word)) for word in piece.split()) < _LEAST_WORDS:
            short = piece
        else:
            sentences.append(piece)
    if short:  # nothing follows
        sentences = [*sentences[:-1], f"{sentences[-1]} {short}"] if sentences else [short]
    return sentences
