"""What a dry run goes through: the corpus a run will learn, or one of the usual shape until there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mmgem.config import Recipe
from mmgem.data.tokens import Tokenizer
from mmgem.data.word_tokens import WordTokens
from mmgem.distributed.world import World
from mmgem.self_retrieval.batches import SelfRetrievalBatch, SelfRetrievalBatches
from mmgem.self_retrieval.config import SelfRetrievalConfig
from mmgem.self_retrieval.passages import Passage, Query, load_corpus, load_queries
from mmgem.self_retrieval.prompts import Prompts

_PASSAGES, _SENTENCES, _QUESTIONS = 1000, 5, 3
_STEPS = 32


@dataclass(frozen=True)
class CorpusShape:
    """``batches`` of one process; ``largest``: of the first steps that with most tokens, ``mean_share``: how
    many the mean step has for each of its; ``assumed``: what could not be read, in words."""

    batches: SelfRetrievalBatches
    largest: SelfRetrievalBatch
    mean_share: float
    assumed: str

    @classmethod
    def read(
        cls, recipe: Recipe, config: SelfRetrievalConfig, tokenizer: Tokenizer | None, world: World
    ) -> CorpusShape:
        """Of the corpus that ``config`` names. Raises ``DataError`` for files that are there and cannot be
        read."""
        assert config.passages is not None
        assumed = ""
        if config.passages.exists():
            passages = load_corpus(config.passages)
            passage_ids = {p.id for p in passages}
            queries = [q for path in config.queries if path.exists() for q in load_queries(path, passage_ids)]
        else:
            passages, queries = _typical_corpus()
            shape = f"{_PASSAGES} passages of 150 words, {_QUESTIONS} questions each"
            assumed = f"{config.passages} is not here: {shape}"
        with_queries = {i for query in queries for i in query.positives}
        without_queries = [p for p in passages if p.id not in with_queries]
        queries += [_question(p, n) for p in without_queries for n in range(config.generated_queries)]
        prompts: Any = Prompts(tokenizer or WordTokens())  # type: ignore[arg-type]
        seed = recipe.train.seed
        batches = SelfRetrievalBatches(passages, queries, prompts, config, seed, world.rank, world.size)
        steps = [batches[step] for step in range(min(_STEPS, batches.per_epoch))]
        tokens = [_tokens(batch.names) + _tokens(batch.reads) for batch in steps]
        mean_share = sum(tokens) / len(tokens) / max(tokens)
        return cls(batches, steps[tokens.index(max(tokens))], mean_share, assumed)


def _tokens(sequences: Sequence[Any]) -> int:
    return sum(map(len, sequences))


def _typical_corpus() -> tuple[list[Passage], list[Query]]:
    sentence = " ".join(["word"] * 29) + " Word."
    passages = [
        Passage(str(n), f"title {n // 5}", " ".join([sentence] * _SENTENCES)) for n in range(_PASSAGES)
    ]
    return passages, [_question(p, n) for p in passages for n in range(_QUESTIONS)]


def _question(passage: Passage, number: int) -> Query:
    return Query(f"{passage.id}-{number}", " ".join(["what"] * 11), (passage.id,), ("an answer",))
