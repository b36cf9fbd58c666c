"""A model and the corpus it has learned, from its folder: search, ask, measure, add, remove."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmgem.checkpoints.model_lock import lock_model
from mmgem.checkpoints.resolve import complete, fingerprint, resolve
from mmgem.data.texts import check_text, check_texts
from mmgem.data.tokens import Tokenizer
from mmgem.errors import CheckpointError, MissingCorpusError, UsageError
from mmgem.inference.texts import embed_texts
from mmgem.models.network import MMGEMNetwork
from mmgem.self_retrieval.config import Scoring
from mmgem.self_retrieval.corpus import FOLDER, Corpus
from mmgem.self_retrieval.corpus_changes import CorpusChange, plan_change
from mmgem.self_retrieval.document_ranking import rank_documents
from mmgem.self_retrieval.embedding import embed_passages
from mmgem.self_retrieval.passages import Passage, Query
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.retriever import Candidate, Retriever, ScoredPassage
from mmgem.utils.files import is_folder


@dataclass(frozen=True)
class Answer:
    """``text``, the model's answer from the passage with id ``source``; both None if no passage holds one."""

    text: str | None
    source: str | None
    hits: list[ScoredPassage]


class SelfRetrieval:
    """One LLM as index, retriever, reranker and reader of a corpus (arXiv 2403.00801)."""

    def __init__(
        self, network: MMGEMNetwork, tokenizer: Tokenizer, corpus: Corpus, folder: Path | None = None
    ):
        self.network, self.tokenizer, self.corpus, self.folder = network.eval(), tokenizer, corpus, folder
        self.prompts = Prompts(tokenizer)
        self._retriever: Retriever | None = None
        self._fingerprint: str | None = None  # of the folder's model when it was loaded

    @classmethod
    def from_pretrained(
        cls,
        name: str | os.PathLike[str],
        device: str = "cpu",
        precision: Literal["float32", "bfloat16"] = "float32",
    ) -> SelfRetrieval:
        """Load a model folder (or hub id) that holds a corpus. Raises ``CheckpointError``;
        ``MissingCorpusError`` if there is none."""
        from mmgem.checkpoints.model_folder import load_model

        folder = resolve(name)
        if not is_folder(folder / FOLDER):
            raise MissingCorpusError(f"{folder}: this model has learned no corpus; see mmgem corpus train")
        before = fingerprint(complete(folder))
        network, tokenizer = load_model(folder)
        network = network.to(device).to_inference_dtype(precision)
        engine = cls(network, tokenizer, Corpus.open(folder / FOLDER), folder)
        engine._fingerprint = before
        return engine

    @property
    def retriever(self) -> Retriever:
        """What searches; new after :meth:`add`."""
        if self._retriever is None:
            device = self.network.emb_token.device
            parts = (self.network.llm, self.prompts, self.corpus, self.corpus.scoring, device)
            self._retriever = Retriever(*parts, self.embed_queries)
        return self._retriever

    def search(
        self, questions: Sequence[str], k: int = 5, abandoned: Callable[[int], bool] | None = None
    ) -> list[list[ScoredPassage]]:
        """The best ``k`` passages for each question. ``abandoned``: as of :meth:`Retriever.search`. Raises
        ``UsageError`` for an empty question and for what is no list of texts, ``DataError`` for half a
        character."""
        questions = check_texts(questions, "questions")
        for question in questions:
            if not question.strip():
                raise UsageError("the question is empty")
        return self.retriever.search(questions, k, abandoned)

    def ask(self, question: str, k: int = 3) -> Answer:
        """Answer from the first of the best ``k`` passages in which the model finds an answer."""
        (hits,) = self.search([check_text(question, "question")], k)
        return self.answer(question, hits)

    def embed_queries(self, questions: Sequence[str]) -> np.ndarray:
        """Unit embeddings ``(n, D)`` float32, to compare with ``corpus.vectors``."""
        return embed_texts(self.network, self.tokenizer, check_texts(questions, "questions"), 64)

    def embed_passages(self, passages: Sequence[Passage]) -> np.ndarray:
        """Unit embeddings ``(n, D)`` float32 of passages and their titles, as ``corpus.vectors`` has them."""
        return embed_passages(self.network, self.prompts, list(passages))

    def add(self, passages: Sequence[Passage], documents: Collection[str] = ()) -> CorpusChange:
        """Put passages into the corpus, here and, if it has one, in the model's folder, in the place of those
        with the same ids; those that are there already cost nothing. ``documents``: names (ids ``NAME#...``)
        of those that these are all passages of; what else there is of them goes.

        What others have put into the folder since it was read stays, and is here too from now on; one who
        changes it at this moment is waited for. Raises ``DataError`` for two different passages of one id,
        ``CheckpointError`` if the folder holds another model by now, ``BusyError`` if that is still in
        training; then nothing has changed."""
        return self._change(passages, (), documents)

    def remove(self, names: Sequence[str]) -> CorpusChange:
        """Take passages out of the corpus as :meth:`add` puts them in: ids, or names of documents (all ids
        ``NAME#...``). Raises ``DataError`` for one of nothing and if no passage would be left, else as
        :meth:`add` does."""
        return self._change((), names, ())

    def _change(
        self, passages: Sequence[Passage], removed: Sequence[str], documents: Collection[str]
    ) -> CorpusChange:
        with nullcontext() if self.folder is None else lock_model(self.folder):
            before = self._corpus_on_disk()
            change = plan_change(before.passages, passages, removed, documents)
            corpus = before
            if not change.is_empty:
                corpus = before.changed(change, self.prompts)
                if before.vectors is not None:
                    new = change.former < 0
                    corpus.vectors = before.vectors[change.former]
                    corpus.vectors[new] = self.embed_passages([corpus.passages[n] for n in new.nonzero()[0]])
                if self.folder is not None:
                    corpus.save_in(self.folder)
        self.corpus, self._retriever = corpus, None
        return change

    def _corpus_on_disk(self) -> Corpus:
        """The corpus as the model's folder has it now, if there is one."""
        if self.folder is None or not is_folder(self.folder / FOLDER):
            return self.corpus
        if self._fingerprint not in (None, fingerprint(complete(self.folder))):
            raise CheckpointError(f"{self.folder}: holds another model than was loaded; load it again")
        corpus = Corpus.open(self.folder / FOLDER)
        corpus.scoring = self.corpus.scoring
        return corpus

    def measure(
        self,
        queries: Sequence[Query],
        answers: bool = False,
        baselines: bool = False,
        documents: bool = False,
        at_once: int = 8,
    ) -> dict[str, Any]:
        """Of :func:`ranking_scores`, and seconds a query; ``answers``: exact match and F1; ``baselines``:
        other searchers and their mixtures with this one. ``documents``: what is ranked are titles, by the sum
        of their passages (:func:`rank_documents`)."""
        from mmgem.evaluate.answers import answer_scores
        from mmgem.utils.progress import track

        hits_by_query: dict[str, list[ScoredPassage]] = {}
        seconds = 0.0
        batches = [queries[start : start + at_once] for start in range(0, len(queries), at_once)]
        for batch in track(batches, "Searching", sizes=[len(c) for c in batches], unit=" queries"):
            started = time.monotonic()
            for query, hits in zip(batch, self.search([q.query for q in batch], 50), strict=True):
                hits_by_query[query.id] = hits
            seconds += time.monotonic() - started
        titles = {p.id: p.title for p in self.corpus.passages} if documents else None
        scores = _timed_ranking_scores([hits_by_query[q.id] for q in queries], queries, seconds, titles)
        if answers:
            answerable = [q for q in queries if q.answers]
            predictions = [
                self.answer(q.query, hits_by_query[q.id][:3]).text or ""
                for q in track(answerable, "Answering")
            ]
            scores |= answer_scores(predictions, [q.answers for q in answerable])
        if baselines:
            scores["baselines"] = self._baselines(queries, answers, titles)
        return scores

    def answer(
        self, question: str, hits: list[ScoredPassage], abandoned: Callable[[], bool] | None = None
    ) -> Answer:
        """Answer from the first of ``hits`` in which the model finds an answer. ``abandoned``: asked at every
        step whether nobody waits for it any more; then there is none."""
        number = {p.id: n for n, p in enumerate(self.corpus.passages)}
        for hit in hits:
            if abandoned is not None and abandoned():
                break
            text, _ = self.retriever.reader.answer(question, number[hit.id], abandoned=abandoned)
            if text is not None:
                return Answer(text, hit.id, hits)
        return Answer(None, None, hits)

    def _baselines(
        self, queries: Sequence[Query], answers: bool, titles: Mapping[str, str] | None
    ) -> dict[str, dict[str, float]]:
        from mmgem.evaluate.answers import answer_scores
        from mmgem.self_retrieval.baselines import BM25, Dense, minilm_embedder
        from mmgem.utils.progress import track

        passages = self.corpus.passages
        texts = [f"{p.title} {p.text}" for p in passages]
        retriever = self.retriever
        embed = minilm_embedder()
        rankers: dict[str, Any] = {"BM25": BM25(passages)}
        if self.corpus.vectors is not None:
            rankers["our embeddings"] = Dense(self.corpus.vectors, self.embed_queries)
        rankers["MiniLM"] = Dense(embed(texts), embed)
        rows: dict[str, dict[str, float]] = {}
        questions = [q.query for q in queries]
        started = time.monotonic()
        generated = [
            candidates
            for start in range(0, len(questions), 8)
            for candidates in retriever.generate_candidates(questions[start : start + 8])
        ]
        seconds = time.monotonic() - started
        rows["names alone"] = _timed_ranking_scores(
            [
                [retriever.to_scored_passage(candidate) for candidate in candidates]
                for candidates in generated
            ],
            queries,
            seconds,
            titles,
        )
        started, reranked = time.monotonic(), []
        for question, candidates in track(list(zip(questions, generated, strict=True)), "Judging names"):
            reranked.append(retriever.score_candidates(question, candidates))
        seconds += time.monotonic() - started
        rows["names, judged"] = _timed_ranking_scores(reranked, queries, seconds, titles)
        for name, ranker in rankers.items():
            started = time.monotonic()
            ranked = ranker.rank(questions, 50)
            seconds = time.monotonic() - started
            hits = [
                [retriever.to_scored_passage(Candidate(passage), score) for passage, score in candidates]
                for candidates in ranked
            ]
            rows[name] = _timed_ranking_scores(hits, queries, seconds, titles)
            if answers and name == "BM25":
                answerable = [
                    (q, candidates) for q, candidates in zip(queries, hits, strict=True) if q.answers
                ]
                predictions = [
                    self.answer(q.query, candidates[:1]).text or "" for q, candidates in answerable
                ]
                rows[name] |= answer_scores(predictions, [q.answers for q, _ in answerable])
            started, reranked = time.monotonic(), []
            for question, candidates in track(list(zip(questions, ranked, strict=True)), f"Judging {name}"):
                reranked.append(
                    retriever.score_candidates(question, [Candidate(passage) for passage, _ in candidates])
                )
            seconds += time.monotonic() - started
            rows[f"{name}, judged"] = _timed_ranking_scores(reranked, queries, seconds, titles)
        return rows


def _timed_ranking_scores(
    hits_by_query: Sequence[Sequence[ScoredPassage]],
    queries: Sequence[Query],
    seconds: float,
    titles: Mapping[str, str] | None,
) -> dict[str, Any]:
    """``titles``: of the passages by id, if documents are ranked."""
    from mmgem.evaluate.ranking import ranking_scores

    ranked = [[hit.id for hit in hits] for hits in hits_by_query]
    positives: list[Sequence[str]] = [q.positives for q in queries]
    if titles is not None:
        ranked = [[document.title for document in rank_documents(hits)] for hits in hits_by_query]
        positives = [[titles[i] for i in of_query] for of_query in positives]
    scores = ranking_scores(ranked, positives)
    return {**scores, "seconds_per_query": round(seconds / max(1, len(queries)), 4)}


__all__ = ["Answer", "Scoring", "SelfRetrieval"]
