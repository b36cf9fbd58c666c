"""The section of a recipe that says what corpus is learned and how, and what travels with the corpus."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass
class Scoring:
    """How passages are found and ranked; travels with the corpus."""

    title_beams: int = 5
    """Titles that are followed."""
    passage_beams: int = 10
    """Passages that are followed under each title."""
    greedy_after_first: bool = False
    """Branch at the first differing token of a passage only, as Self-Retrieval's released code does."""
    dense_candidates: int = 50
    """Passages nearest to the question's embedding that are candidates too, if the corpus is embedded."""
    rerank_depth: int = 16
    """Most candidates that are assessed: the first of both lists by reciprocal rank."""
    kind: Literal["judged", "paper", "named"] = "judged"
    """``judged``: softmax of a weighted sum of the log-probabilities of title and passage, the log-odds of
    acceptance and the log-likelihood of the question; ``paper``: Self-Retrieval's product; ``named``: the
    probability of the name alone."""
    title_weight: float = 0.5
    passage_weight: float = 0.25
    accept_weight: float = 1.0
    query_likelihood_weight: float = 0.3
    tau: float = 0.4
    delta: float = 0.4


@dataclass
class SelfRetrievalConfig:
    """A corpus of texts that the LLM learns to search, judge and answer from (Self-Retrieval)."""

    passages: Path | None = None
    """Anything :func:`mmgem.self_retrieval.passages.load_corpus` reads."""
    queries: list[Path] = field(default_factory=list)
    """Files of queries with the passages that answer them."""
    generated_queries: int = 0
    """Questions the starting model writes for each passage that no query asks about."""
    dev: Path | None = None
    """Queries that the model is scored on at evaluations; None, or "": none."""
    dev_queries: int = 100
    """How many of them."""
    batch_size: int = 64
    """Sentences and queries in a step; passages are dealt out evenly over an epoch."""
    memorise: bool = True
    """Learn to name the passage of each of its sentences."""
    titles: bool = True
    """Name the title first, then the passage."""
    prefix_tokens: int = 16
    """First tokens of a passage that are learned as its name."""
    hard_negatives: int = 4
    """Questions of other passages that each passage is shown to reject, half of its own title."""
    max_passage_tokens: int = 1024
    """Longest passage; never cut silently."""
    retrieve_weight: float = 1.0
    """Of the loss question -> title -> passage."""
    ask_weight: float = 1.0
    """Of passage -> question."""
    assess_weight: float = 1.0
    """Of passage and question -> answer, or rejection."""
    embed_weight: float = 1.0
    """Of question and passage, contrasted."""
    scoring: Scoring = field(default_factory=Scoring)
