"""Self-Retrieval (arXiv 2403.00801): the model names titles, then passages, then judges what it named.

    S = softmax_i(P(t_i | q) / tau) * softmax_ij((1 - P(reject | q, t_i, p_ij)) / delta)

is the paper's score. Ours adds what the same reading of a passage gives for nothing, log P(q | p), and judges
what the same model's embeddings find as well, fused with the names by reciprocal rank (Cormack et al. 2009):
see :class:`~mmgem.self_retrieval.config.Scoring`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mmgem.models.kv_cache import BatchedKVCache
from mmgem.models.llm import LLM
from mmgem.self_retrieval.config import Scoring
from mmgem.self_retrieval.constrained_decoding import constrained_beam
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.reader import Reader


@dataclass(frozen=True)
class Candidate:
    """A passage to judge: its number and, if the model named it, log P(title | question) and log P(passage |
    question, title)."""

    passage: int
    title_log_prob: float | None = None
    passage_log_prob: float | None = None


@dataclass(frozen=True)
class Found:
    """A passage that was found. ``score`` ranks; the others say why: probabilities of the title and of the
    passage below it (None: not named), of a rejection, and the log-likelihood of the question (None: not
    assessed)."""

    id: str
    title: str
    text: str
    score: float
    title_prob: float | None
    passage_prob: float | None
    rejection: float | None = None
    likelihood: float | None = None


class Retriever:
    """Searches a corpus with the LLM that learned it."""

    def __init__(
        self,
        llm: LLM,
        prompts: Prompts,
        corpus: Corpus,
        scoring: Scoring,
        device: torch.device,
        embed: Callable[[Sequence[str]], np.ndarray] | None = None,
    ):
        """``embed``: questions to unit rows ``(n, D)``, as ``corpus.vectors``; None: names alone count."""
        self.llm, self.prompts, self.corpus, self.scoring, self.device = llm, prompts, corpus, scoring, device
        self.embed = embed
        self.reader = Reader(llm, prompts, corpus, device)

    @torch.inference_mode()
    def name(self, questions: Sequence[str]) -> list[list[Candidate]]:
        """The passages the model names for each question, likeliest first."""
        scoring, corpus = self.scoring, self.corpus
        marker = self.prompts.then_title if corpus.titled else self.prompts.then_passage
        asked = BatchedKVCache.empty(self.llm, len(questions), self.device)
        asked.append(self.prompts.retrieving(questions, marker))
        start: list[tuple[int, int, float]] = []
        if corpus.titled:
            titles = constrained_beam(
                asked, corpus.titles, [corpus.titles.root] * len(questions), scoring.title_beams
            )
            start = [
                (q, int(title), path.log_prob)
                for q, paths in enumerate(titles)
                for path in paths
                for title in corpus.titles.ids_of(path.node)
            ]
            rows = asked.select([q for q, _, _ in start])
            names = self.prompts.ended([corpus.names[t] for _, t, _ in start])
            rows.append([[*name, *self.prompts.then_passage] for name in names])
        else:
            start = [(q, 0, 0.0) for q in range(len(questions))]
            rows = asked
        nodes = [corpus.rows.child(corpus.rows.root, title) for _, title, _ in start]
        found: list[list[Candidate]] = [[] for _ in questions]
        paths = constrained_beam(rows, corpus.rows, nodes, scoring.passage_beams, scoring.greedy_after_first)
        for (q, _, title_log_prob), own in zip(start, paths, strict=True):
            for path in own:
                ids = corpus.rows.ids_of(path.node)
                found[q] += [Candidate(int(i), title_log_prob, path.log_prob) for i in ids]
        for named in found:
            named.sort(key=lambda c: (-(c.title_log_prob or 0.0) - (c.passage_log_prob or 0.0), c.passage))
        return found

    def candidates(self, questions: Sequence[str]) -> list[list[Candidate]]:
        """What is worth judging for each question, best first: names, and neighbours by embedding."""
        named = self.name(questions)
        vectors, count = self.corpus.vectors, self.scoring.dense_candidates
        if self.embed is None or vectors is None or not count:
            return named
        near = np.argsort(-(self.embed(questions) @ vectors.T), axis=1, kind="stable")[:, :count]
        return [fused(own, row.tolist()) for own, row in zip(named, near, strict=True)]

    def search(self, questions: Sequence[str], k: int = 5) -> list[list[Found]]:
        """The best ``k`` passages for each question."""
        return [
            self.judged(question, candidates)[:k]
            for question, candidates in zip(questions, self.candidates(questions), strict=True)
        ]

    def judged(self, question: str, candidates: Sequence[Candidate]) -> list[Found]:
        """Candidates, perhaps another searcher's, ordered by the score; the first ``scoring.rerank_depth`` of
        them are assessed and go before the others."""
        scoring = self.scoring
        head, tail = candidates[: scoring.rerank_depth], candidates[scoring.rerank_depth :]
        judged = self.reader.judge(question, [c.passage for c in head])
        scores = score(head, judged.rejection, judged.likelihood, scoring)
        found = [
            self.found(c, float(s), float(r), float(log_likelihood))
            for c, s, r, log_likelihood in zip(head, scores, judged.rejection, judged.likelihood, strict=True)
        ]
        found.sort(key=lambda f: -f.score)
        return found + [self.found(c) for c in tail]

    def found(
        self,
        c: Candidate,
        score: float = 0.0,
        rejection: float | None = None,
        likelihood: float | None = None,
    ) -> Found:
        """A candidate as a result."""
        passage = self.corpus.passages[c.passage]
        log_probs = (c.title_log_prob, c.passage_log_prob)
        title, own = (None if x is None else float(np.exp(x)) for x in log_probs)
        return Found(passage.id, passage.title, passage.text, score, title, own, rejection, likelihood)


def score(
    candidates: Sequence[Candidate], rejection: np.ndarray, likelihood: np.ndarray, scoring: Scoring
) -> np.ndarray:
    """Scores ``(n,)`` of candidates, adding up to 1 at most; see :class:`Scoring`."""
    if not len(candidates):
        return np.zeros(0)
    title = _filled([c.title_log_prob for c in candidates])
    passage = _filled([c.passage_log_prob for c in candidates])
    if scoring.kind == "named":
        return np.exp(title + passage)
    if scoring.kind == "paper":
        distinct, owner = np.unique(title, return_inverse=True)
        weight = _softmax(np.exp(distinct) / scoring.tau)[owner]
        return weight * _softmax((1 - rejection) / scoring.delta)
    odds = np.log(np.clip(1 - rejection, 1e-6, 1)) - np.log(np.clip(rejection, 1e-6, 1))
    total = (
        scoring.title_weight * title
        + scoring.passage_weight * passage
        + scoring.accept_weight * odds
        + scoring.query_likelihood_weight * likelihood
    )
    return _softmax(total)


def fused(named: Sequence[Candidate], near: Sequence[int]) -> list[Candidate]:
    """Both lists in one, by the sum of 1 / (60 + place)."""
    by_passage = {n: Candidate(n) for n in near} | {c.passage: c for c in named}
    worth: dict[int, float] = defaultdict(float)
    for ranked in ([c.passage for c in named], near):
        for place, n in enumerate(dict.fromkeys(ranked), 1):
            worth[n] += 1 / (60 + place)
    return [by_passage[n] for n in sorted(worth, key=lambda n: (-worth[n], n))]


def _filled(log_probs: Sequence[float | None]) -> np.ndarray:
    """What was not named counts as the least likely that was."""
    least = min((x for x in log_probs if x is not None), default=0.0)
    return np.array([least if x is None else x for x in log_probs])


def _softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()
