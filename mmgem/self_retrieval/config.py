"""The section of a recipe that says what corpus is learned and how, and what travels with the corpus."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mmgem.config.fields import setting

Identifiers = Literal["prefix", "sentences"]


@dataclass
class Scoring:
    """How passages are found and ranked; travels with the corpus."""

    title_beams: int = setting(5, help="Titles that are followed.", low=1)
    passage_beams: int = setting(10, help="Passages that are followed under each title.", low=1)
    greedy_after_first: bool = setting(
        False,
        help="Branch at the first differing token of a passage only, as Self-Retrieval's released code does.",
    )
    dense_candidates: int = setting(
        50,
        help="Passages nearest to the question's embedding that are candidates too, if the corpus is "
        "embedded.",
        low=0,
    )
    rerank_depth: int = setting(
        16, help="Most candidates that are assessed: the first of both lists by reciprocal rank.", low=1
    )
    kind: Literal["judged", "paper", "named"] = setting(
        "judged",
        help="`judged`: softmax of a weighted sum of the log-probabilities of title and passage, the "
        "log-odds of acceptance and the log-likelihood of the question; `named`: the probability of the name "
        "alone; `paper`: Self-Retrieval as released, with titles scored over the whole vocabulary by their "
        "mean a token, passages followed by their likeliest child after the first, no neighbours by "
        "embedding (`dense_candidates`), all that was named assessed (`rerank_depth`), and the product of "
        "two softmax.",
    )
    title_weight: float = setting(0.5, help="Of the title's log-probability, where `judged`.")
    passage_weight: float = setting(0.25, help="Of the passage's log-probability, where `judged`.")
    accept_weight: float = setting(1.0, help="Of the log-odds of acceptance, where `judged`.")
    query_likelihood_weight: float = setting(0.3, help="Of the question's log-likelihood, where `judged`.")
    tau: float = setting(0.4, help="Temperature of the titles, where `paper`.", above=0)
    delta: float = setting(0.4, help="Temperature of the acceptance, where `paper`.", above=0)
    acceptance_softmax: Literal["all", "title"] = setting(
        "all",
        help="Where `paper`: over all passages that were named, as in the paper, or those of a title, as in "
        "its released code.",
    )


@dataclass
class SelfRetrievalConfig:
    """A corpus of texts that the LLM learns to search, judge and answer from (Self-Retrieval)."""

    passages: Path | None = setting(
        None,
        help="The corpus: JSON lines of `id`, `title` and `text`, a folder of Markdown and text files, or "
        "SQuAD, BEIR or KILT as they are.",
    )
    queries: list[Path] = setting(
        default_factory=list, help="Files of queries with the passages that answer them."
    )
    generated_queries: int = setting(
        0,
        help="Questions the starting model writes for each passage that no query asks about.",
        low=0,
    )
    round_trip_depth: int = setting(
        0,
        help="A generated question is kept only if its passage is among the first so many that "
        "`round_trip_by` finds for it; the number of those left out is logged. 0: all are kept.",
        low=0,
    )
    round_trip_by: Literal["bm25", "embedding"] = setting(
        "bm25",
        help="BM25 (`pip install 'mmgem[corpus]'`), or the starting model's own embeddings, which say "
        "nothing before it has learned any.",
    )
    dev: Path | None = setting(
        None, help='Queries that the model is scored on at evaluations; none, or "": none.'
    )
    dev_queries: int = setting(100, help="How many of them.", low=1)
    batch_size: int = setting(
        64,
        help="Sentences and queries in a step; passages are dealt out evenly over an epoch.",
        low=1,
    )
    memorise: bool = setting(True, help="Learn to name the passage of each of its sentences.")
    titles: bool = setting(True, help="Name the title first, then the passage.")
    identifiers: Identifiers = setting(
        "prefix",
        help="What names a passage: its first tokens, as in the paper (`prefix`), or those of any of its "
        "sentences (`sentences`). A query is then followed by the sentence that answers it, and what "
        "memorises is a sentence with words left out.",
    )
    prefix_tokens: int = setting(16, help="First tokens that are learned as a name.", low=1)
    hard_negatives: int = setting(
        4,
        help="Questions of other passages that each passage is shown to reject, half of its own title.",
        low=0,
    )
    max_passage_tokens: int = setting(1024, help="Longest passage; never cut silently.", low=1)
    retrieve_weight: float = setting(1.0, help="Of the loss question -> title -> passage.", low=0)
    ask_weight: float = setting(1.0, help="Of passage -> question.", low=0)
    assess_weight: float = setting(1.0, help="Of passage and question -> answer, or rejection.", low=0)
    embed_weight: float = setting(1.0, help="Of question and passage, contrasted.", low=0)
    scoring: Scoring = setting(default_factory=Scoring)
