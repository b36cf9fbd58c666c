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


def answer_scores(answers: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Return ``{"EM", "F1"}`` in percent, means over questions of the best match with any gold answer.

    ``answers``: an answer a question, "" for none; ``gold``: its right answers. As in SQuAD 2, where either
    side has no words, both scores ask whether the other has none either. Raises ``UsageError`` without
    questions, if there are not as many of one as of the other, and for a question without gold answers.
    """
    if len(answers) != len(gold) or not answers:
        raise UsageError(f"{len(answers)} answers for {len(gold)} questions; there must be one each")
    exact = f1 = 0.0
    for n, (answer, gold_answers) in enumerate(zip(answers, gold, strict=True)):
        if isinstance(gold_answers, str):
            raise UsageError(f"question {n}: gold answers must be a list of strings, not one string")
        if not gold_answers:
            raise UsageError(f"question {n} has no gold answers; leave such questions out")
        predicted_words = answer_words(answer)
        gold_words = [answer_words(gold_answer) for gold_answer in gold_answers]
        exact += predicted_words in gold_words
        f1 += max(_f1(predicted_words, words) for words in gold_words)
    return {"EM": 100 * exact / len(answers), "F1": 100 * f1 / len(answers)}


def answer_words(answer: str) -> list[str]:
    """The words of an answer that are compared."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", answer).casefold())
    bare = "".join(c for c in folded if c not in string.punctuation and unicodedata.category(c)[0] != "P")
    return _ARTICLES.sub(" ", bare).split()


def _f1(predicted: list[str], reference: list[str]) -> float:
    if not predicted or not reference:
        return float(predicted == reference)
    shared = sum((Counter(predicted) & Counter(reference)).values())
    return 2 * shared / (len(predicted) + len(reference))
