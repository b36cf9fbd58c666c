"""The text side as LangChain's embeddings, by their methods alone: neither library is imported.

InMemoryVectorStore(TextEmbeddings.from_pretrained("tiny"))
"""

from __future__ import annotations

import asyncio
import os

from mmgem.api import MMGEM
from mmgem.data.texts import check_text


class TextEmbeddings:
    """``embed_documents`` and ``embed_query``, and the same to await: lists of D floats of unit length."""

    def __init__(self, model: MMGEM):
        self.model = model

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike[str] = "tiny") -> TextEmbeddings:
        """Load what :meth:`MMGEM.from_pretrained` loads. Raises ``CheckpointError``."""
        return cls(MMGEM.from_pretrained(name))

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text. Raises as :meth:`MMGEM.embed_texts` does."""
        return self.model.embed_texts(texts).tolist()

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text that is searched for (:meth:`MMGEM.embed_queries`)."""
        return self.model.embed_queries([check_text(text)])[0].tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """:meth:`embed_documents` in a thread."""
        return await asyncio.to_thread(self.embed_documents, texts)

    async def aembed_query(self, text: str) -> list[float]:
        """:meth:`embed_query` in a thread."""
        return await asyncio.to_thread(self.embed_query, text)
