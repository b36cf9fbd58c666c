"""The corpus of a training run: its batches, its scores on held-out queries, what the model folder holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmgem.config import CorpusConfig, Recipe
from mmgem.data.tokens import Tokenizer
from mmgem.data.turns import check_enough
from mmgem.distributed.world import SINGLE_PROCESS, World
from mmgem.errors import ConfigError
from mmgem.evaluate.ranking import ranking_scores
from mmgem.inference.texts import embed_texts, unit_rows
from mmgem.models.network import MMGEMNetwork
from mmgem.self_retrieval.batches import CorpusBatches
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.passages import Passage, Query, load_corpus, load_queries
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.query_generation import cached_questions
from mmgem.self_retrieval.retriever import Retriever


@dataclass
class CorpusSide:
    """What a run knows of its corpus."""

    config: CorpusConfig
    passages: list[Passage]
    tokenizer: Tokenizer
    prompts: Prompts
    batches: CorpusBatches
    dev: list[Query]

    def corpus(self) -> Corpus:
        """The corpus to search; its tries depend on the tokenizer alone."""
        return Corpus.build(self.passages, self.prompts, self.config.titles, self.config.scoring)

    def written(self, network: MMGEMNetwork) -> Callable[[Path], None]:
        """What writes the corpus into the model's folder, passages embedded by ``network``."""
        corpus = self.corpus()
        corpus.vectors = embed_passages(network, self.prompts, self.passages)
        return corpus.save_in


def corpus_side(
    recipe: Recipe, network: MMGEMNetwork, tokenizer: Tokenizer, world: World = SINGLE_PROCESS
) -> CorpusSide:
    """Read corpus and queries. Raises ``ConfigError`` or ``DataError``, naming the field, file or line."""
    config = recipe.corpus
    assert config.passages is not None
    held_out = config.dev if config.dev != Path() else None  # "" in a recipe: none
    if network.config.attention != "causal" or network.config.text_pool != "emb":
        raise ConfigError('corpus: needs model.attention = "causal" and model.text_pool = "emb"')
    passages = load_corpus(config.passages)
    known = {p.id for p in passages}
    queries = [q for path in config.queries for q in load_queries(path, known)]
    dev = load_queries(held_out, known)[: config.dev_queries] if held_out else []
    prompts = Prompts(tokenizer)
    if config.questions:
        asked = {i for q in queries for i in q.positives}
        silent = [p for p in passages if p.id not in asked]
        model = f"{recipe.init.checkpoint} {recipe.init.llm} {recipe.init.keep_layers} {recipe.init.layers}"
        count, seed = config.questions, recipe.train.seed
        queries += cached_questions(network.eval().llm, prompts, silent, count, seed, model)
    part = (world.rank, world.size)
    batches = CorpusBatches(passages, queries, prompts, config, recipe.train.seed, part)
    if batches.longest > network.llm.positions:
        raise ConfigError(
            f"corpus.max_passage_tokens: a passage and a question take up to {batches.longest} tokens, "
            f"the LLM reads {network.llm.positions}"
        )
    tokenizer.encode_parts([q.query for q in dev])  # a query that is too long is said now
    for count, what in ((len(passages), "passages"), (len(batches.pairs), "sentences and queries")):
        # Every rank has to have some at every step.
        check_enough(count // batches.per_epoch, what, world.size, "corpus.batch")
    return CorpusSide(config, passages, tokenizer, prompts, batches, dev)


def evaluate_corpus(network: MMGEMNetwork, side: CorpusSide) -> dict[str, Any]:
    """H@1, H@5 and MRR@5 (percent) of the dev queries, and H@1 of what the model names before it judges."""
    corpus = side.corpus()
    corpus.vectors = embed_passages(network, side.prompts, side.passages)
    parts = (network.llm, side.prompts, corpus, side.config.scoring, network.emb_token.device)
    retriever = Retriever(*parts, lambda questions: embed_texts(network, side.tokenizer, questions, 64))
    named: list[list[str]] = []
    found: list[list[str]] = []
    for at in range(0, len(side.dev), 8):
        questions = [q.query for q in side.dev[at : at + 8]]
        named += [[corpus.passages[c.passage].id for c in own] for own in retriever.name(questions)]
        found += [[hit.id for hit in hits] for hits in retriever.search(questions)]
    positives = [q.positives for q in side.dev]
    scores, before = ranking_scores(found, positives), ranking_scores(named, positives)
    kept = {name: round(scores[name], 2) for name in ("H@1", "H@5", "MRR@5")}
    return {**kept, "named H@1": round(before["H@1"], 2), "named H@5": round(before["H@5"], 2)}


@torch.inference_mode()
def embed_passages(
    network: MMGEMNetwork, prompts: Prompts, passages: list[Passage], batch: int = 16
) -> np.ndarray:
    """Unit embeddings ``(n, D)`` float32 of passages with their titles, read as training reads them."""
    titles = prompts.pieces([p.title for p in passages])
    texts = prompts.pieces([p.text for p in passages])
    ids = [torch.tensor(prompts.document(a, b)) for a, b in zip(titles, texts, strict=True)]
    out = np.empty((len(ids), network.config.dim), np.float32)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        out[rows] = unit_rows(network.encode_text([ids[i] for i in rows]))
    return out
