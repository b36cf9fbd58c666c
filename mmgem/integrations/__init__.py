"""mmgem inside other libraries: sentence-transformers, mteb, LangChain.

    from mmgem.integrations import sentence_transformer
    model = sentence_transformer("tiny")  # a SentenceTransformer

Each is imported when it is asked for; a missing library is an error that names the extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmgem.errors import UsageError

if TYPE_CHECKING:
    from mmgem.integrations.langchain import TextEmbeddings
    from mmgem.integrations.mteb_encoder import MtebEncoder
    from mmgem.integrations.sentence_transformers import MMGEMModule, sentence_transformer

__all__ = ["MMGEMModule", "MtebEncoder", "TextEmbeddings", "sentence_transformer"]

_PLACES = {
    "MMGEMModule": "sentence_transformers",
    "MtebEncoder": "mteb_encoder",
    "TextEmbeddings": "langchain",
    "sentence_transformer": "sentence_transformers",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'mmgem.integrations' has no attribute {name!r}")
    try:
        return getattr(import_module(f"mmgem.integrations.{_PLACES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sentence_transformers":
            raise
        raise UsageError(f"{name} needs sentence-transformers: pip install 'mmgem[integrations]'") from error
