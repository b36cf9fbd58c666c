"""A corpus and its queries in files as a retrieval task of mteb: its own evaluation, of any of its models.

mteb.evaluate(MtebSearch.from_pretrained("runs/xquad/model"), mteb_task("beir/scifact"))
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mmgem.errors import UsageError
from mmgem.self_retrieval.passages import load_corpus, load_queries

_SPLIT = "test"


def mteb_task(
    corpus: str | os.PathLike[str], queries: str | os.PathLike[str] | None = None, name: str | None = None
) -> Any:
    """A task of mteb from what :func:`load_corpus` and :func:`load_queries` read; ``queries``: in ``corpus``
    (a folder of BEIR, SQuAD) if not given; ``name``: that of the file or folder if not given.

    Its main score is nDCG@10. Raises as they do, and ``UsageError`` if mteb is not installed.
    """
    try:
        from datasets import Dataset
        from mteb.abstasks.retrieval import AbsTaskRetrieval
        from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
        from mteb.abstasks.task_metadata import TaskMetadata
    except ImportError as error:
        raise UsageError("a task of mteb needs mteb: pip install 'mmgem[eval]'") from error

    passages = load_corpus(corpus)
    asked = load_queries(corpus if queries is None else queries, {p.id for p in passages})
    name = name or Path(corpus).stem
    about = TaskMetadata(
        type="Retrieval",
        name=name,
        main_score="ndcg_at_10",
        description=f"Passages and queries of {name}.",
        reference=None,
        dataset={"path": name, "revision": "local"},
        category="t2t",
        modalities=["text"],
        eval_splits=[_SPLIT],
        eval_langs=["eng-Latn"],
    )
    split = RetrievalSplitData(
        corpus=Dataset.from_list([{"id": p.id, "title": p.title, "text": p.text} for p in passages]),
        queries=Dataset.from_list([{"id": q.id, "text": q.query} for q in asked]),
        relevant_docs={q.id: dict.fromkeys(q.positives, 1) for q in asked},
        top_ranked=None,
    )

    def load_data(task: Any, *_: Any, **__: Any) -> None:
        task.dataset, task.data_loaded = {"default": {_SPLIT: split}}, True

    return type("FilesTask", (AbsTaskRetrieval,), {"metadata": about, "load_data": load_data})()
