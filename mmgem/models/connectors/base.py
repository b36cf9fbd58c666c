"""What every connector is: visual embeddings in, LLM input vectors out.

To add one, subclass :class:`Connector` in a file of its own and register the class in
:data:`mmgem.models.connectors.CONNECTORS`.
"""

from __future__ import annotations

import inspect
from typing import Any, Self

from torch import Tensor, nn

from mmgem.errors import ConfigError, UsageError


class Connector(nn.Module):
    """h3: each visual embedding becomes k input vectors of the LLM.

    The constructor takes ``dim`` (D, the embedding's width), ``width`` (H, the LLM's), ``tokens`` (k), and
    the fields of ``model.connector.config``.
    """

    @classmethod
    def build(cls, dim: int, width: int, tokens: int, config: dict[str, Any]) -> Self:
        """A connector with random weights. Raises ``ConfigError`` for fields that it does not have."""
        try:
            inspect.signature(cls).bind(dim, width, tokens, **config)
        except TypeError as error:
            raise ConfigError(f"model.connector.config: {error}") from error
        return cls(dim, width, tokens, **config)

    def forward(self, visual: Tensor) -> Tensor:
        """Embeddings ``(B, n, D)`` float32, not normalised -> LLM input vectors ``(B, n * k, H)``."""
        raise NotImplementedError

    @property
    def memory_size(self) -> int:
        """How many embeddings of texts it keeps, see :meth:`remember`."""
        return 0

    def remember(self, texts: Tensor) -> None:
        """Keep unit embeddings of texts ``(memory_size, D)`` float32, of those that captions are learned
        from."""

    def from_text(self, texts: Tensor) -> Tensor:
        """As :meth:`forward`, of embeddings of texts that stand for images while captions are learned from
        texts alone."""
        vectors: Tensor = self(texts)
        return vectors

    def init_weights(self, std: float) -> None:
        """Draw the weights anew, so that what comes out has about the scale ``std`` of the LLM's own token
        vectors. The weights stay as they were built unless a connector says more."""

    def rotate_input(self, rotation: Tensor) -> None:
        """Let the connector read embeddings ``v @ rotation`` as it read ``v``; ``rotation`` is orthogonal,
        ``(D, D)`` float32. Raises ``UsageError`` where that cannot be folded into its weights."""
        raise UsageError(f"the embedding space cannot be rotated under a {type(self).__name__}")
