"""What the losses over images and texts are made of: terms, each with a table of its own in the recipe.

A term is over the embeddings of all images and texts of a step, or over the predicted tokens of captions. The
task computes what its terms need in one pass; a weight of 0 leaves a term out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from mmgem.config import Recipe
from mmgem.data.batches import Batch, DrawnTexts
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.world import World
from mmgem.errors import ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.tasks.base import FakeTensorFactory, Terms


class Term:
    """A weighted loss. ``config``: its table in a recipe, a dataclass with a ``weight``; ``section``: the
    table's name."""

    uses_logit_bias: bool = True
    """Whether ``network.logit_bias`` has a part in it (``model.logit_bias`` is refused where it has in
    none)."""

    def __init__(self, config: Any, section: str):
        self.config, self.section = config, section

    @property
    def teacher(self) -> tuple[str, str] | None:
        """The sentence encoder that is to embed the texts of the images, if there is one, and the field that
        names it: ``teacher`` of a table with a ``distill_weight``."""
        if getattr(self.config, "distill_weight", 0) and self.config.teacher is not None:
            return str(self.config.teacher), f"{self.section}.teacher"
        return None

    def check(self, recipe: Recipe) -> None:
        """Raise ``ConfigError`` naming the field for what cannot work."""

    def weighted(self, terms: Terms) -> Terms:
        """What :meth:`loss` gave, its losses times the weight. Raises ``ConfigError`` for what is no dict of
        scalars of which one is a loss."""
        scalars = isinstance(terms, dict) and all(
            isinstance(x, Tensor) and x.ndim == 0 for x in terms.values()
        )
        if not scalars or not any(name.endswith("_loss") for name in terms):
            raise ConfigError(
                f"{self.section}: {type(self).__name__}.loss has to return a dict of scalar tensors with a "
                "name that ends in _loss"
            )
        weight = self.config.weight
        return {name: weight * x if name.endswith("_loss") else x for name, x in terms.items()}


class EmbeddingTerm(Term, ABC):
    """A loss over all embeddings of a step, which may be cached."""

    @abstractmethod
    def loss(self, network: MMGEMNetwork, images: Tensor, texts: Tensor, batch: Batch, world: World) -> Terms:
        """``{"..._loss": scalar}`` of this process's ``images`` ``(V, D)`` and ``texts`` ``(N, D)``, not
        normalised, of which ``batch.text_owner`` ``(N,)`` says whose each is. Others in the dict are for the
        log. The weight is not its business.

        The values of all processes are added up: sum over the rows of this one, divide by the number of all.
        :func:`~mmgem.tasks.image_text.contrastive.gather_batch` gives the images and texts of all, negatives
        of each other. Temperature and bias: ``network.logit_scale.exp()``, ``network.logit_bias``."""


class TextTerm(Term, ABC):
    """A loss that embeds texts of its own beside those of the images."""

    def prepare(
        self, recipe: Recipe, network: MMGEMNetwork, tokenizer: Tokenizer, steps: int, world: World
    ) -> None:
        """Read what it draws from in the ``steps`` of a run. Called once, in every process; raises
        ``ConfigError`` or ``DataError``."""

    @abstractmethod
    def draw(self, batch: Batch, step: int, world: World) -> DrawnTexts:
        """The texts of a step for this process, whose images are ``batch``. A function of the seed, ``step``
        and the batch alone. Called in every process."""

    @abstractmethod
    def loss(
        self,
        network: MMGEMNetwork,
        images: Tensor,
        texts: Tensor,
        own: Tensor,
        drawn: DrawnTexts,
        batch: Batch,
        world: World,
    ) -> Terms:
        """As :meth:`EmbeddingTerm.loss`; ``own`` ``(T, D)``: the embeddings of the texts of ``drawn``."""

    def token_loss(self, network: MMGEMNetwork, own: Tensor, drawn: DrawnTexts) -> Terms:
        """Losses that are sums over the drawn texts, for a part of them whose embeddings are ``own``; called
        after :meth:`loss` of all. None: ``{}``."""
        return {}

    @abstractmethod
    def fake_draw(
        self, network: MMGEMNetwork, batch: Batch, fake_tensor: FakeTensorFactory, world: World
    ) -> DrawnTexts:
        """What :meth:`draw` gives, for a dry run without data and without :meth:`prepare`."""


class PairTerm(Term, ABC):
    """A loss over images and texts that are read together: its parts see each other, so it is not cached."""

    @abstractmethod
    def loss(
        self,
        network: MMGEMNetwork,
        visual: Tensor,
        images: Tensor,
        texts: Tensor,
        batch: Batch,
        world: World,
    ) -> Terms:
        """As :meth:`EmbeddingTerm.loss`; ``visual`` ``(V, n, W)``: what is kept of each image."""


class TextTokenTerm(Term, ABC):
    """A loss that is a sum over the tokens of the texts that are embedded."""

    @abstractmethod
    def loss(self, network: MMGEMNetwork, states: Tensor, batch: Batch, total: float) -> Terms:
        """``{"..._loss": scalar}`` of the hidden ``states`` ``(T, H)`` at the tokens of ``batch.texts``, one
        text after the other, summed and divided by ``total``, the tokens of all processes."""


class TokenTerm(Term, ABC):
    """A loss that is a sum over caption tokens."""

    @abstractmethod
    def loss(self, network: MMGEMNetwork, states: Tensor, batch: Batch, total: float) -> Terms:
        """``{"..._loss": scalar}`` of hidden ``states`` ``(T, H)`` that predict ``batch.caption_targets``
        ``(T,)``, summed and divided by ``total``, the tokens of all processes. The weight is not its
        business."""
