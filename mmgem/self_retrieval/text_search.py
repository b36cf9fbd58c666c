"""Search of an index of texts by a model that has not learned them.

Candidates are the passages nearest to the question's embedding and those that BM25 ranks first, fused by
reciprocal rank; the model reads the first of them. One that has learned a corpus judges as it does there, but
for the names; any other by log P(question | passage) alone. The sentence that is quoted is the one after
which the question is likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mmgem.checkpoints.resolve import complete, fingerprint, resolve
from mmgem.data.scripts import text_units
from mmgem.data.sentences import split_lines
from mmgem.data.tokens import Tokenizer
from mmgem.errors import SearchIndexError, UsageError
from mmgem.inference.texts import embed_texts
from mmgem.models.network import MMGEMNetwork
from mmgem.models.networks import network_class
from mmgem.self_retrieval.config import Scoring
from mmgem.self_retrieval.corpus import FOLDER, Corpus
from mmgem.self_retrieval.embedding import embed_passages
from mmgem.self_retrieval.passages import Passage
from mmgem.self_retrieval.prompts import Prompts
from mmgem.self_retrieval.reader import Reader
from mmgem.self_retrieval.retriever import Candidate, combine_scores, reciprocal_rank_fusion
from mmgem.self_retrieval.source_texts import PDF
from mmgem.self_retrieval.text_index import TextModel, TextSnapshot, open_text_index, rank_by_words
from mmgem.utils.files import is_folder

_LEAST_WORDS = 4  # of what is quoted, where there is more than that
_QUESTION_TOKENS, _ANSWER_TOKENS = 80, 48  # that the LLM has room for after a passage, markers included


@dataclass(frozen=True)
class TextHit:
    """A passage of the file ``file`` (below the indexed folder) with the sentence of it that answers best,
    which begins on ``line``; in a PDF that is a page."""

    id: str
    title: str
    text: str
    score: float
    file: str
    sentence: str
    line: int

    @property
    def place(self) -> str:
        """File and line as people write them."""
        if Path(self.file).suffix.lower() in PDF:
            return f"{self.file}, page {self.line}"
        return f"{self.file}:{self.line}"

    def to_json(self) -> dict[str, Any]:
        """Plain form, as commands print it."""
        return asdict(self)


@dataclass(frozen=True)
class TextAnswer:
    """``text``: the answer in the model's words, None if it has not learned to answer or found none;
    ``source``: the hit that is quoted."""

    text: str | None
    source: TextHit
    hits: list[TextHit]


class TextSearch:
    """A model and the index of texts it made."""

    def __init__(
        self,
        network: MMGEMNetwork,
        tokenizer: Tokenizer,
        out: Path,
        snapshot: TextSnapshot,
        scoring: Scoring | None,
    ):
        """``scoring``: of the corpus the model has learned, None if there is none."""
        self.network, self.tokenizer, self.out, self.snapshot = network.eval(), tokenizer, out, snapshot
        self.prompts, self.answers = Prompts(tokenizer), scoring is not None
        learned = scoring or Scoring(accept_weight=0, query_likelihood_weight=1)
        self.scoring = replace(learned, kind="judged", title_weight=0, passage_weight=0)
        self._device = network.emb_token.device
        self._number = {row: n for n, row in enumerate(snapshot.rows)}
        self.reader = self._reader(snapshot.passages)

    @classmethod
    def open(
        cls, out: Path, device: str = "cpu", precision: Literal["float32", "bfloat16"] = "float32"
    ) -> TextSearch:
        """Open an index, and load its model onto ``device``. Raises ``SearchIndexError`` if there is none, it
        is damaged or its model is another by now, ``CheckpointError``."""
        from mmgem.checkpoints.model_folder import load_model

        snapshot = open_text_index(out)
        folder = resolve(snapshot.model)
        if fingerprint(complete(folder)) != snapshot.fingerprint:
            raise SearchIndexError(f"{out}: {snapshot.model} is another model by now; index again elsewhere")
        learned = Corpus.open(folder / FOLDER).scoring if is_folder(folder / FOLDER) else None
        network, tokenizer = load_model(folder)
        network = network.to(device).to_inference_dtype(precision)
        return cls(network, tokenizer, out, snapshot, learned)

    def search(self, question: str, k: int = 5) -> list[TextHit]:
        """The best ``k`` passages. Raises ``UsageError`` for an empty question and one of too many tokens."""
        if not question.strip():
            raise UsageError("the question is empty")
        (ids,) = self.prompts.pieces([question])
        if len(ids) > _QUESTION_TOKENS:
            raise UsageError(f"the question has {len(ids)} tokens, {_QUESTION_TOKENS} at most are read")
        scoring = self.scoring
        vectors = self.snapshot.vectors
        similarity = vectors @ embed_texts(self.network, self.tokenizer, [question], 1)[0]
        count = scoring.dense_candidates
        near = np.argsort(-similarity, kind="stable")[:count].tolist()
        by_words = [self._number.get(row) for row in rank_by_words(self.out, question, count)]
        spoken = [Candidate(n) for n in by_words if n is not None]  # not what was added since
        candidates = reciprocal_rank_fusion(spoken, near)[: max(k, scoring.rerank_depth)]
        read = self.reader.score_passages(question, [c.passage for c in candidates])
        scores = combine_scores(candidates, read.reject_prob, read.query_likelihood, scoring)
        order = np.argsort(-scores, kind="stable")[:k]
        return [self._hit(question, candidates[n].passage, float(scores[n])) for n in order]

    def ask(self, question: str, k: int = 3) -> TextAnswer:
        """The answer from the best passage, or from the first of ``k`` in which a model that has learned to
        answer finds one. Raises as :meth:`search` does."""
        hits = self.search(question, k)
        number = {p.id: n for n, p in enumerate(self.snapshot.passages)}
        for hit in hits if self.answers else ():
            text, _ = self.reader.answer(question, number[hit.id])
            if text is not None:
                return TextAnswer(text, hit, hits)
        return TextAnswer(None, hits[0], hits)

    def _hit(self, question: str, n: int, score: float) -> TextHit:
        passage, places = self.snapshot.passages[n], self.snapshot.places[n]
        sentences = split_lines(passage.text)
        whole = [m for m, sentence in enumerate(sentences) if len(text_units(sentence)) >= _LEAST_WORDS]
        quotable = whole or list(range(len(sentences)))  # rather a sentence than a heading
        best = quotable[0]
        if len(quotable) > 1:
            alone = [Passage("", passage.title, sentences[m]) for m in quotable]
            read = self._reader(alone).score_passages(question, range(len(alone)))
            best = quotable[int(read.query_likelihood.argmax())]
        file = passage.id.rpartition("#")[0]
        fields = (passage.id, passage.title, passage.text, score, file, sentences[best], places[best])
        return TextHit(*fields)

    def _reader(self, passages: Sequence[Passage]) -> Reader:
        return Reader(self.network.llm, self.prompts, passages, self._device)


def text_model(network: MMGEMNetwork, tokenizer: Tokenizer) -> TextModel:
    """What an index is made with, of a model. Raises ``UsageError`` for one that embeds no texts as an LLM
    reads them, or does not write."""
    config = network.config
    kind = network_class(config)
    plain = kind.plain_embedding and config.attention == "causal" and config.text_pool == "emb"
    if not (plain and kind.captions):
        raise UsageError("this model cannot search texts: its LLM does not embed and write them")
    prompts = Prompts(tokenizer)

    def tokens(title: str, text: str) -> int:
        return len(prompts.document(*prompts.pieces([title, text])))

    most = network.llm.positions - _QUESTION_TOKENS - _ANSWER_TOKENS
    if most < 1:
        raise UsageError(f"this model's LLM reads {network.llm.positions} tokens, too few for a passage")
    return TextModel(lambda passages: embed_passages(network, prompts, list(passages)), tokens, most)
