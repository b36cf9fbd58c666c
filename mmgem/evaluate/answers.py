"""Answers to questions: exact match and token F1, as SQuAD counts them (Rajpurkar et al. 2016).

Answers are compared in lower case without punctuation, the articles a, an, the and extra white space.
Punctuation is all that Unicode calls so and ASCII's signs, so curly quotes and dashes go like straight ones.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

from mmgem.errors import UsageError

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def answer_scores(said: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ``{"EM", "F1"}`` in percent, means over questions of the best match with any gold answer.

    ``said``: an answer a question, "" for none; ``gold``: its right answers. As in SQuAD 2, where either side
    has no words, both scores ask whether the other has none either. Raises ``UsageError`` without questions,
    if there are not as many of one as of the other, and for a question without gold answers.
    """
    if len(said) != len(gold) or not said:
        raise UsageError(f"{len(said)} answers for {len(gold)} questions; there must be one each")
    exact = f1 = 0.0
    for n, (answer, right) in enumerate(zip(said, gold, strict=True)):
        if isinstance(right, str):
            raise UsageError(f"question {n}: gold answers must be a list of strings, not one string")
        if not right:
            raise UsageError(f"question {n} has no gold answers; leave such questions out")
        words = answer_words(answer)
        rights = [answer_words(one) for one in right]
        exact += words in rights
        f1 += max(_f1(words, one) for one in rights)
    return {"EM": 100 * exact / len(said), "F1": 100 * f1 / len(said)}


def answer_words(answer: str) -> list[str]:
    """The words of an answer that are compared."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", answer).casefold())
    bare = "".join(c for c in folded if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return _ARTICLES.sub(" ", bare).split()


def _f1(said: list[str], right: list[str]) -> float:
    if not said or not right:
        return float(said == right)
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right))
