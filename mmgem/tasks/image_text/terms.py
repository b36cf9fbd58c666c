"""What the losses over images and texts are made of: terms, each with a table of its own in the recipe.

A term is over the embeddings of all images and texts of a step, or over the predicted tokens of captions. The
task computes what its terms need in one pass; a weight of 0 leaves a term out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor

from mmgem.config import Recipe
from mmgem.data.batches import Batch
from mmgem.distributed.world import World
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.base import Terms


class Term:
    """A weighted loss. ``Config``: a dataclass with a ``weight``; ``section``: its table in a recipe."""

    Config: ClassVar[type[Any]]
    uses_logit_bias: bool = True

    def __init__(self, config: Any, section: str):
        self.config, self.section = config, section

    def check(self, recipe: Recipe) -> None:
        """Raise ``ConfigError`` naming the field for what cannot work."""


class EmbeddingTerm(Term, ABC):
    """A loss over all embeddings of a step, which may be cached."""

    @abstractmethod
    def loss(self, network: MMGEMNetwork, images: Tensor, texts: Tensor, batch: Batch, world: World) -> Terms:
        """Losses of ``images`` ``(V, D)`` and ``texts`` ``(N, D)``, not normalised, of which
        ``batch.text_owner`` ``(N,)`` says whose each is: this process's share of those of all processes,
        times the weight."""


class TokenTerm(Term, ABC):
    """A loss that is a sum over caption tokens."""

    @abstractmethod
    def loss(self, network: MMGEMNetwork, states: Tensor, batch: Batch, total: float) -> Terms:
        """Losses of hidden ``states`` ``(T, H)`` that predict ``batch.caption_targets`` ``(T,)``, summed and
        divided by ``total``, the tokens of all processes; times the weight."""
