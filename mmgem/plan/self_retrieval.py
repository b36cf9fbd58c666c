"""The corpus a run will learn, or one of the usual shape where there is none yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmgem.config import Recipe
from mmgem.data.tokens import Tokenizer
from mmgem.plan.lengths import WordTokens
from mmgem.self_retrieval.batches import CorpusBatch, CorpusBatches
from mmgem.self_retrieval.passages import Passage, Query, load_corpus, load_queries
from mmgem.self_retrieval.prompts import Prompts

_PASSAGES, _SENTENCES, _ASKED = 1000, 5, 3
_TRIED = 32


def corpus_batches(recipe: Recipe, tokenizer: Tokenizer | None, ranks: int) -> tuple[CorpusBatches, str]:
    """The batches of the last of ``ranks``, and what had to be assumed, in words.

    Raises ``DataError`` for files that are there and cannot be read.
    """
    config = recipe.corpus
    assert config.passages is not None
    assumed = ""
    if config.passages.exists():
        passages = load_corpus(config.passages)
        known = {p.id for p in passages}
        queries = [q for path in config.queries if path.exists() for q in load_queries(path, known)]
    else:
        passages, queries = _usual()
        assumed = f"{config.passages} is not here: {_PASSAGES} passages of 150 words, {_ASKED} questions each"
    asked = {i for query in queries for i in query.positives}
    silent = [p for p in passages if p.id not in asked]
    queries += [_question(p, n) for p in silent for n in range(config.questions)]
    prompts: Any = Prompts(tokenizer or WordTokens())  # type: ignore[arg-type]
    part = (ranks - 1, ranks)
    return CorpusBatches(passages, queries, prompts, config, recipe.train.seed, part), assumed


def largest(batches: CorpusBatches) -> tuple[CorpusBatch, float]:
    """Of the first steps that with most tokens, and how many the mean step has for each of its."""
    found = [batches[step] for step in range(min(_TRIED, batches.per_epoch))]
    tokens = [_tokens(batch.names) + _tokens(batch.reads) for batch in found]
    return found[tokens.index(max(tokens))], sum(tokens) / len(tokens) / max(tokens)


def _tokens(sequences: Sequence[Any]) -> int:
    return sum(map(len, sequences))


def _usual() -> tuple[list[Passage], list[Query]]:
    sentence = " ".join(["word"] * 29) + " Word."
    passages = [
        Passage(str(n), f"title {n // 5}", " ".join([sentence] * _SENTENCES)) for n in range(_PASSAGES)
    ]
    return passages, [_question(p, n) for p in passages for n in range(_ASKED)]


def _question(passage: Passage, number: int) -> Query:
    return Query(f"{passage.id}-{number}", " ".join(["what"] * 11), (passage.id,), ("an answer",))
