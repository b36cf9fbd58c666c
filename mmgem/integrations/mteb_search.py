"""Self-Retrieval as a searcher of mteb (its ``SearchProtocol``), to be scored like any other.

    mteb.evaluate(MtebSearch.from_pretrained("runs/xquad/model"), tasks)

mteb hands over the corpus of the task. The model names only what it has learned, so scores mean something for
a corpus it was trained on; any other is searched by what titles, first words and reading tell.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mmgem.errors import UsageError
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.model import SelfRetrieval
from mmgem.self_retrieval.passages import Passage
from mmgem.self_retrieval.retriever import Candidate


class MtebSearch:
    """``index`` a corpus, then ``search``; rows are mappings with ``id``, ``text`` and perhaps ``title``."""

    def __init__(self, engine: SelfRetrieval, name: str = "mmgem/self-retrieval"):
        self.engine, self.name = engine, name
        self._number: dict[str, int] = {}

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str]) -> MtebSearch:
        """Load a model folder with a corpus. Raises ``CheckpointError``."""
        return cls(SelfRetrieval.from_pretrained(name), f"mmgem/{Path(name).name}")

    @property
    def mteb_model_meta(self) -> Any:
        """mteb's description of a model. Needs mteb."""
        try:
            from mteb.models.model_meta import ModelMeta
        except ImportError as error:
            raise UsageError("its description for mteb needs mteb: pip install 'mmgem[eval]'") from error

        return ModelMeta.create_empty({"name": self.name, "revision": "local"})

    def index(self, corpus: Iterable[Mapping[str, Any]], **_: Any) -> None:
        """Take ``corpus`` in the place of the one the model came with; nothing on disk changes."""
        passages = [
            Passage(str(row["id"]), _words(row, "title") or "-", _words(row, "text", "body"))
            for row in corpus
        ]
        engine = self.engine
        like = engine.corpus
        task_corpus = Corpus.build(passages, engine.prompts, like.titled, like.scoring, like.identifiers)
        self.engine = SelfRetrieval(engine.network, engine.tokenizer, task_corpus)
        self._number = {p.id: n for n, p in enumerate(passages)}

    def search(
        self,
        queries: Iterable[Mapping[str, Any]],
        *,
        top_k: int,
        top_ranked: Mapping[str, list[str]] | None = None,
        **_: Any,
    ) -> dict[str, dict[str, float]]:
        """Scores of the best ``top_k`` passages of each query, by its id; with ``top_ranked`` (reranking
        tasks) those of the passages named there. Raises ``UsageError`` before :meth:`index`."""
        if not self._number:
            raise UsageError("nothing to search: index a corpus first")
        scores: dict[str, dict[str, float]] = {}
        retriever = self.engine.retriever
        for row in queries:
            question, name = _words(row, "text", "query"), str(row["id"])
            if top_ranked is None:
                hits = self.engine.search([question], top_k)[0]
            else:
                candidates = [Candidate(self._number[str(i)]) for i in top_ranked[name]]
                hits = retriever.score_candidates(question, candidates)[:top_k]
            # Passages that were named and not judged have a score of 0 each; keep their order.
            scores[name] = {hit.id: hit.score - 1e-9 * place for place, hit in enumerate(hits)}
        return scores


def _words(row: Mapping[str, Any], *keys: str) -> str:
    return next((" ".join(str(row[key]).split()) for key in keys if row.get(key)), "")
