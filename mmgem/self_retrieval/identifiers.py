"""What a passage is named by: its own first words, or the first words of any of its sentences.

A question is answered by a sentence, and the first words of a passage say little of what its last one tells;
so a passage has as many names as it has sentences, and the probabilities of its names add up. DSI and
Self-Retrieval name by a passage's beginning, SEAL (arXiv 2204.10628) by any n-gram, MINDER (arXiv 2305.16675)
by several views.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mmgem.data.sentences import passage_sentences
from mmgem.evaluate.answers import answer_words
from mmgem.self_retrieval.config import Identifiers

_FEWEST_KEPT, _MOST_KEPT = 0.3, 0.9


def identifier_texts(text: str, identifiers: Identifiers) -> list[str]:
    """The texts whose first tokens name a passage of ``text``, each once: at least one."""
    if identifiers == "prefix":
        return [text]
    return list(dict.fromkeys(passage_sentences(text))) or [text]


def answering_sentence(sentences: Sequence[str], query: str, answers: Sequence[str]) -> int:
    """The number of the sentence that answers ``query``: of those with one of ``answers`` in them, or of all
    if there are none, the first with most words of the query. Words are compared as answers are
    (:func:`~mmgem.evaluate.answers.answer_words`)."""
    words = [answer_words(sentence) for sentence in sentences]
    spoken = [f" {' '.join(of)} " for of in words]
    wanted = [f" {' '.join(found)} " for answer in answers if (found := answer_words(answer))]
    holding = [n for n, text in enumerate(spoken) if any(answer in text for answer in wanted)]
    asked = set(answer_words(query))
    return max(holding or range(len(sentences)), key=lambda n: (len(asked & set(words[n])), -n))


def drop_words(text: str, rng: np.random.Generator) -> str:
    """``text`` with a random share of its words, 30 to 90 percent and at least two: what somebody who looks
    for it may remember. A sentence that names itself would teach to copy."""
    words = text.split()
    count = max(min(2, len(words)), round(len(words) * rng.uniform(_FEWEST_KEPT, _MOST_KEPT)))
    return " ".join(words[i] for i in np.sort(rng.permutation(len(words))[:count]))
