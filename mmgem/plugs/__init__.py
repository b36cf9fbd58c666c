"""mmgem inside other libraries: sentence-transformers, mteb, LangChain.

    from mmgem.plugs import sentence_transformer
    model = sentence_transformer("tiny")  # a SentenceTransformer

Each is imported when it is asked for; a missing library is an error that names the extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmgem.errors import UsageError

if TYPE_CHECKING:
    from mmgem.plugs.langchain import TextEmbeddings
    from mmgem.plugs.mteb import MtebEncoder
    from mmgem.plugs.sbert import MMGEMModule, sentence_transformer

__all__ = ["MMGEMModule", "MtebEncoder", "TextEmbeddings", "sentence_transformer"]

_PLACES = {
    "MMGEMModule": "sbert",
    "MtebEncoder": "mteb",
    "TextEmbeddings": "langchain",
    "sentence_transformer": "sbert",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'mmgem.plugs' has no attribute {name!r}")
    try:
        return getattr(import_module(f"mmgem.plugs.{_PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "sentence_transformers":
            raise
        raise UsageError(f"{name} needs sentence-transformers: pip install 'mmgem[plugs]'") from error
