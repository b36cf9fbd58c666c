"""mmgem: one vision encoder and one LLM that embed, search, classify and caption images.

from mmgem import MMGEM
model = MMGEM.from_pretrained("tiny")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from mmgem.utils.plugins import load_plugin

if TYPE_CHECKING:
    from mmgem.api import MMGEM
    from mmgem.self_retrieval.model import SelfRetrieval

__version__ = "0.1.0"

__all__ = [
    "MMGEM",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DownloadError",
    "ImageError",
    "MMGEMError",
    "SearchIndexError",
    "SelfRetrieval",
    "UsageError",
    "__version__",
    "load_plugin",
]


def __getattr__(name: str) -> Any:
    # torch is imported only when the model is: `mmgem --help` must be fast.
    if name == "MMGEM":
        from mmgem.api import MMGEM

        return MMGEM
    if name == "SelfRetrieval":
        from mmgem.self_retrieval.model import SelfRetrieval

        return SelfRetrieval
    raise AttributeError(f"module 'mmgem' has no attribute {name!r}")
