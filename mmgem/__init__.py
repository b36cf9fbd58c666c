"""mmgem: one vision encoder and one LLM that embed, search, classify and caption images.

import mmgem
model = mmgem.MMGEM.from_pretrained("tiny")
index = model.index("photos/", "photos.idx")
print(index.search_text("two dogs in the snow", k=5))
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmgem.api import MMGEM, open_index
    from mmgem.bulk import embed_collection
    from mmgem.config import Recipe
    from mmgem.config.fields import setting
    from mmgem.config.recipe import load_recipe
    from mmgem.config.tasks import TASKS
    from mmgem.data.clips import find_shots
    from mmgem.data.images import ImageSource
    from mmgem.data.readers import load_dataset
    from mmgem.data.records import Box, Media, Record, Region, read_jsonl, write_jsonl
    from mmgem.data.shots import Shot
    from mmgem.encoders import ENCODERS
    from mmgem.encoders.base import Encoder
    from mmgem.errors import (
        CheckpointError,
        ConfigError,
        DataError,
        DownloadError,
        ImageError,
        MMGEMError,
        SearchIndexError,
        UsageError,
    )
    from mmgem.evaluate.answers import answer_scores
    from mmgem.evaluate.captions import caption_scores
    from mmgem.evaluate.classify import class_embeddings, classification_scores
    from mmgem.evaluate.presets import load_preset
    from mmgem.evaluate.ranking import ranking_scores
    from mmgem.evaluate.regions import region_scores
    from mmgem.evaluate.retrieval import retrieval_scores
    from mmgem.inference.caption_options import CaptionOptions
    from mmgem.models.connectors import CONNECTORS
    from mmgem.models.connectors.base import Connector
    from mmgem.models.network import MMGEMNetwork
    from mmgem.models.networks import NETWORKS
    from mmgem.search.filters import Filters
    from mmgem.search.hits import Hit
    from mmgem.search.query_terms import QueryTerm, parse_terms
    from mmgem.search.rerank import RerankedHit, RerankOptions
    from mmgem.search.search import PhotoIndex
    from mmgem.search.spatial_filter import SpatialFilter, parse_spatial_filter
    from mmgem.search.stores import STORES, open_store
    from mmgem.search.stores.base import VectorStore, search_store
    from mmgem.search.stores.push import push as push_index
    from mmgem.self_retrieval.model import Answer, SelfRetrieval
    from mmgem.self_retrieval.passages import Passage, Query, load_corpus, load_queries
    from mmgem.tasks.base import Task
    from mmgem.tasks.image_text.captioning import CaptionTerm
    from mmgem.tasks.image_text.config import CaptionConfig, ContrastiveConfig
    from mmgem.tasks.image_text.contrastive import ContrastiveTerm, GatheredBatch, gather_batch
    from mmgem.tasks.image_text.task import ImageTextTask
    from mmgem.tasks.image_text.terms import EmbeddingTerm, Term, TextTerm, TokenTerm
    from mmgem.tasks.self_retrieval.task import SelfRetrievalTask
    from mmgem.train.loop import train as train_model
    from mmgem.utils.plugins import load_plugin

__version__ = "0.2.0.dev0"

# Where each name is defined, `module` or `module:name`; imported when it is first asked for, so that
# `import mmgem` and `mmgem --help` are fast. `mmgem.train` is the package: its function is train_model here.
_EXPORTS = {
    "Answer": "self_retrieval.model",
    "Box": "data.records",
    "CONNECTORS": "models.connectors",
    "CaptionConfig": "tasks.image_text.config",
    "CaptionOptions": "inference.caption_options",
    "CaptionTerm": "tasks.image_text.captioning",
    "CheckpointError": "errors",
    "ConfigError": "errors",
    "Connector": "models.connectors.base",
    "ContrastiveConfig": "tasks.image_text.config",
    "ContrastiveTerm": "tasks.image_text.contrastive",
    "DataError": "errors",
    "DownloadError": "errors",
    "ENCODERS": "encoders",
    "EmbeddingTerm": "tasks.image_text.terms",
    "Encoder": "encoders.base",
    "Filters": "search.filters",
    "GatheredBatch": "tasks.image_text.contrastive",
    "Hit": "search.hits",
    "ImageError": "errors",
    "ImageSource": "data.images",
    "ImageTextTask": "tasks.image_text.task",
    "MMGEM": "api",
    "MMGEMError": "errors",
    "MMGEMNetwork": "models.network",
    "Media": "data.records",
    "NETWORKS": "models.networks",
    "Passage": "self_retrieval.passages",
    "PhotoIndex": "search.search",
    "Query": "self_retrieval.passages",
    "Recipe": "config",
    "Record": "data.records",
    "Region": "data.records",
    "QueryTerm": "search.query_terms",
    "RerankOptions": "search.rerank",
    "RerankedHit": "search.rerank",
    "STORES": "search.stores",
    "SearchIndexError": "errors",
    "SelfRetrieval": "self_retrieval.model",
    "SelfRetrievalTask": "tasks.self_retrieval.task",
    "Shot": "data.shots",
    "SpatialFilter": "search.spatial_filter",
    "TASKS": "config.tasks",
    "Task": "tasks.base",
    "Term": "tasks.image_text.terms",
    "TextTerm": "tasks.image_text.terms",
    "TokenTerm": "tasks.image_text.terms",
    "UsageError": "errors",
    "VectorStore": "search.stores.base",
    "answer_scores": "evaluate.answers",
    "caption_scores": "evaluate.captions",
    "class_embeddings": "evaluate.classify",
    "classification_scores": "evaluate.classify",
    "embed_collection": "bulk",
    "find_shots": "data.clips",
    "gather_batch": "tasks.image_text.contrastive",
    "load_corpus": "self_retrieval.passages",
    "load_dataset": "data.readers",
    "load_plugin": "utils.plugins",
    "load_preset": "evaluate.presets",
    "load_queries": "self_retrieval.passages",
    "load_recipe": "config.recipe",
    "open_index": "api",
    "open_store": "search.stores",
    "parse_spatial_filter": "search.spatial_filter",
    "parse_terms": "search.query_terms",
    "push_index": "search.stores.push:push",
    "ranking_scores": "evaluate.ranking",
    "read_jsonl": "data.records",
    "region_scores": "evaluate.regions",
    "retrieval_scores": "evaluate.retrieval",
    "search_store": "search.stores.base",
    "setting": "config.fields",
    "train_model": "train.loop:train",
    "write_jsonl": "data.records",
}

__all__ = [
    "CONNECTORS",
    "ENCODERS",
    "MMGEM",
    "NETWORKS",
    "STORES",
    "TASKS",
    "Answer",
    "Box",
    "CaptionConfig",
    "CaptionOptions",
    "CaptionTerm",
    "CheckpointError",
    "ConfigError",
    "Connector",
    "ContrastiveConfig",
    "ContrastiveTerm",
    "DataError",
    "DownloadError",
    "EmbeddingTerm",
    "Encoder",
    "Filters",
    "GatheredBatch",
    "Hit",
    "ImageError",
    "ImageSource",
    "ImageTextTask",
    "MMGEMError",
    "MMGEMNetwork",
    "Media",
    "Passage",
    "PhotoIndex",
    "Query",
    "QueryTerm",
    "Recipe",
    "Record",
    "Region",
    "RerankOptions",
    "RerankedHit",
    "SearchIndexError",
    "SelfRetrieval",
    "SelfRetrievalTask",
    "Shot",
    "SpatialFilter",
    "Task",
    "Term",
    "TextTerm",
    "TokenTerm",
    "UsageError",
    "VectorStore",
    "__version__",
    "answer_scores",
    "caption_scores",
    "class_embeddings",
    "classification_scores",
    "embed_collection",
    "find_shots",
    "gather_batch",
    "load_corpus",
    "load_dataset",
    "load_plugin",
    "load_preset",
    "load_queries",
    "load_recipe",
    "open_index",
    "open_store",
    "parse_spatial_filter",
    "parse_terms",
    "push_index",
    "ranking_scores",
    "read_jsonl",
    "region_scores",
    "retrieval_scores",
    "search_store",
    "setting",
    "train_model",
    "write_jsonl",
]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'mmgem' has no attribute {name!r}")
    module, _, defined = _EXPORTS[name].partition(":")
    value = getattr(import_module(f"mmgem.{module}"), defined or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
