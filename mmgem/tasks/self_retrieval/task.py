"""The task of a corpus: to name the passage of a question, to read it, ask of it, judge and answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmgem.config import ModelConfig, Recipe
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.partition import check_enough
from mmgem.distributed.world import World
from mmgem.errors import ConfigError
from mmgem.evaluate.ranking import ranking_scores
from mmgem.inference.texts import embed_texts
from mmgem.models.network import MMGEMNetwork
from mmgem.models.networks import network_class
from mmgem.self_retrieval.baselines import BM25, Dense, Ranker
from mmgem.self_retrieval.batches import SelfRetrievalBatch, SelfRetrievalBatches
from mmgem.self_retrieval.config import SelfRetrievalConfig
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.embedding import embed_passages
from mmgem.self_retrieval.losses import reading_losses, retrieval_loss
from mmgem.self_retrieval.passages import Passage, Query, load_corpus, load_queries
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.query_generation import cached_generated_queries
from mmgem.self_retrieval.retriever import Retriever
from mmgem.self_retrieval.round_trip import round_trip
from mmgem.tasks.base import FakeBatch, FakeTensorFactory, StepSize, Task, Terms

_log = logging.getLogger(__name__)


class SelfRetrievalTask(Task[SelfRetrievalBatch]):
    """A corpus that the LLM memorises, and queries that its passages answer."""

    name = "self_retrieval"
    Config = SelfRetrievalConfig
    batch_size_key = "self_retrieval.batch_size"
    data_key = "self_retrieval"
    uses_logit_bias = False

    config: SelfRetrievalConfig
    batches: SelfRetrievalBatches

    def __init__(self, config: SelfRetrievalConfig, recipe: Recipe):
        super().__init__(config, recipe)
        self.dev_file = config.dev if config.dev != Path() else None  # "" in a recipe: none
        self.dev: list[Query] = []

    def check(self, world: World) -> None:
        """Raise ``ConfigError`` naming the field for what cannot work."""
        config, model = self.config, self.recipe.model
        if config.passages is None:
            raise ConfigError("self_retrieval.passages: missing")
        if not (config.retrieve_weight or config.ask_weight or config.assess_weight or config.embed_weight):
            raise ConfigError("self_retrieval: every loss has the weight 0")
        self.check_model(model)
        if config.batch_size < world.size:
            raise ConfigError(
                f"self_retrieval.batch_size: {config.batch_size} is too small for {world.size} processes"
            )

    def check_model(self, config: ModelConfig) -> None:
        """Raise ``ConfigError`` for a model whose embedding of a text is not the state behind its tokens, or
        which does not write."""
        network = network_class(config)
        if not (network.plain_embedding and network.captions):
            raise ConfigError(f"self_retrieval: a network of kind {config.kind!r} cannot learn a corpus")
        if config.attention != "causal" or config.text_pool != "emb":
            raise ConfigError('self_retrieval: needs model.attention = "causal" and model.text_pool = "emb"')

    def check_files(self) -> None:
        """Raise ``ConfigError`` for a file that is not there."""
        config = self.config
        for field, paths in (
            ("passages", [config.passages]),
            ("queries", config.queries),
            ("dev", [self.dev_file]),
        ):
            if missing := [path for path in paths if path is not None and not path.exists()]:
                raise ConfigError(f"self_retrieval.{field}: {missing[0]}: No such file")

    def prepare(self, network: MMGEMNetwork, tokenizer: Tokenizer, world: World) -> None:
        """Read corpus and queries. Raises ``ConfigError`` or ``DataError`` naming the field, file or line."""
        world.main_process_first(lambda: self._prepare(network, tokenizer, world))

    def _prepare(self, network: MMGEMNetwork, tokenizer: Tokenizer, world: World) -> None:
        config, init, seed = self.config, self.recipe.init, self.recipe.train.seed
        assert config.passages is not None
        self.check_model(network.config)
        self.tokenizer, self.prompts = tokenizer, Prompts(tokenizer)
        self.passages: list[Passage] = load_corpus(config.passages)
        passage_ids = {p.id for p in self.passages}
        queries = [q for path in config.queries for q in load_queries(path, passage_ids)]
        if self.dev_file is not None:
            self.dev = load_queries(self.dev_file, passage_ids)[: config.dev_queries]
        if config.generated_queries:
            with_queries = {i for q in queries for i in q.positives}
            without_queries = [p for p in self.passages if p.id not in with_queries]
            model = f"{init.checkpoint} {init.llm} {init.keep_layers} {init.layers}"
            llm = network.eval().llm
            generated = cached_generated_queries(
                llm, self.prompts, without_queries, config.generated_queries, seed, model
            )
            queries += self._found_again(generated, network) if config.round_trip_depth else generated
        self.batches = SelfRetrievalBatches(
            self.passages, queries, self.prompts, config, seed, world.rank, world.size
        )
        if self.batches.max_sequence_length > network.llm.positions:
            raise ConfigError(
                f"self_retrieval.max_passage_tokens: a passage and a question take up to "
                f"{self.batches.max_sequence_length} tokens, the LLM reads {network.llm.positions}"
            )
        tokenizer.encode_parts([q.query for q in self.dev])  # a query that is too long is said now
        for count, what in (
            (len(self.passages), "passages"),
            (len(self.batches.pairs), "sentences and queries"),
        ):
            # Every process has to have some at every step.
            check_enough(count // self.batches.per_epoch, what, world.size, self.batch_size_key)

    def _found_again(self, generated: list[Query], network: MMGEMNetwork) -> list[Query]:
        """The generated questions that pass ``round_trip_depth``."""
        config, passages = self.config, self.passages
        ranker: Ranker
        if config.round_trip_by == "bm25":
            ranker = BM25(passages)
        else:
            ranker = Dense(
                embed_passages(network, self.prompts, passages),
                lambda questions: embed_texts(network, self.tokenizer, questions, 64),
            )
        kept = round_trip(generated, passages, ranker, config.round_trip_depth)
        _log.warning(
            "%d of %d generated questions are left out: their passage is not among the first %d by %s",
            len(generated) - len(kept),
            len(generated),
            config.round_trip_depth,
            config.round_trip_by,
        )
        return kept

    def split(self, batch: SelfRetrievalBatch) -> Sequence[SelfRetrievalBatch]:
        """What is named, then what is read, as far as a loss is over it."""
        config = self.config
        parts = []
        if config.retrieve_weight and batch.names:
            parts.append(replace(batch, reads=[]))
        if batch.reads and (config.ask_weight or config.assess_weight or config.embed_weight):
            parts.append(replace(batch, names=[]))
        return parts

    def forward(self, network: MMGEMNetwork, batch: SelfRetrievalBatch, world: World) -> Terms:
        """The losses of what is named and of what is read."""
        losses: Terms = {}
        if batch.names:
            losses |= retrieval_loss(network, batch, self.config, world)
        if batch.reads:
            losses |= reading_losses(network, batch, self.config, world)
        return losses

    def pairs(self, batch: SelfRetrievalBatch) -> int:
        """Sentences and queries that a name follows."""
        return len(batch.names) if self.config.retrieve_weight else 0

    def corpus(self) -> Corpus:
        """The corpus to search; its tries depend on the tokenizer alone."""
        config = self.config
        return Corpus.build(self.passages, self.prompts, config.titles, config.scoring, config.identifiers)

    @property
    def holds_out(self) -> bool:
        """Whether there is a file of dev queries."""
        return self.dev_file is not None

    @property
    def evaluates(self) -> bool:
        """Whether there are dev queries."""
        return bool(self.dev)

    def evaluate(self, network: MMGEMNetwork) -> dict[str, Any]:
        """H@1, H@5 and MRR@5 (percent) of the dev queries, and H@1 and H@5 of what the model names before it
        judges. ``score``: H@1."""
        corpus = self.corpus()
        corpus.vectors = embed_passages(network, self.prompts, self.passages)
        retriever = Retriever(
            network.llm,
            self.prompts,
            corpus,
            self.config.scoring,
            network.emb_token.device,
            lambda questions: embed_texts(network, self.tokenizer, questions, 64),
        )
        generated: list[list[str]] = []
        ranked: list[list[str]] = []
        for start in range(0, len(self.dev), 8):
            questions = [q.query for q in self.dev[start : start + 8]]
            generated += [
                [corpus.passages[c.passage].id for c in row]
                for row in retriever.generate_candidates(questions)
            ]
            ranked += [[hit.id for hit in hits] for hits in retriever.search(questions)]
        positives = [q.positives for q in self.dev]
        scores, generated_scores = ranking_scores(ranked, positives), ranking_scores(generated, positives)
        rounded = {name: round(scores[name], 2) for name in ("H@1", "H@5", "MRR@5")}
        rounded |= {f"named {name}": round(generated_scores[name], 2) for name in ("H@1", "H@5")}
        return {**rounded, "score": rounded["H@1"]}

    def export(self, network: MMGEMNetwork, folder: Path) -> None:
        """Write the corpus into the model's folder, passages embedded by ``network``."""
        corpus = self.corpus()
        corpus.vectors = embed_passages(network, self.prompts, self.passages)
        corpus.save_in(folder)

    def describe_data(self, tokenizer: Tokenizer | None, tokens: int | None, world: World) -> Any:
        """The batches of one process, of the corpus or of one of the usual shape."""
        from mmgem.tasks.self_retrieval.fake_batch import CorpusShape

        return CorpusShape.read(self.recipe, self.config, tokenizer, world)

    def step_size(self, data: Any) -> StepSize:
        """Pairs of a step, steps of an epoch."""
        batches = data.batches
        return StepSize(-(-len(batches.pairs) // batches.per_epoch), 0, batches.per_epoch)

    def fake_batch(
        self, data: Any, network: MMGEMNetwork, world: World, fake_tensor: FakeTensorFactory
    ) -> FakeBatch:
        """Of the first steps that with most tokens."""
        return FakeBatch(
            data.largest, len(data.largest.names), 0, frozenset({network.llm.vocabulary}), data.mean_share
        )
