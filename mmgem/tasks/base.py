"""What a task is: one thing that a network learns, with all that belongs to it.

A task is a class in one file. It owns a section of the recipe (``Config``, a dataclass), reads what it learns
from, turns a step of it into named losses, evaluates, and writes what a model needs of it into its folder.
Training, resuming, several processes, gradient caching and ``mmgem plan`` know tasks by this protocol alone.
A recipe may name several: their losses add up.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from mmgem.config import ModelConfig, Recipe
from mmgem.data.tokens import Tokenizer
from mmgem.distributed.world import World
from mmgem.models.network import MMGEMNetwork

B = TypeVar("B")
B_co = TypeVar("B_co", covariant=True)

Terms = dict[str, Tensor]
"""Scalars of a forward pass: each ``*_loss`` goes backward, the others are for the log. A value is this
process's share: the values of all processes add up to that of the whole batch."""

FakeTensorFactory = Callable[..., Tensor]
"""Makes a float tensor of a shape that holds no data."""


class Batches(Protocol[B_co]):
    """The batches of a run, by step: a pure function of the seed and the step, so that a run can resume."""

    @property
    def per_epoch(self) -> float:
        """Steps in which everything is seen once."""
        ...

    @property
    def fingerprint(self) -> str:
        """Tells whether two runs learn from the same data."""
        ...

    def __getitem__(self, step: int) -> B_co: ...


class GradCache(Protocol[B]):
    """A loss over the embeddings of a whole batch whose activations are kept for a part at a time (gradient
    caching, Gao et al. 2021, arXiv 2101.06983): every part is embedded without activations, the gradients of
    the loss at the embeddings are taken, and each part is run again against its share of them."""

    @property
    def over_embeddings(self) -> bool:
        """Whether any loss needs the embeddings of the whole batch; else parts are only replayed."""
        ...

    def split(self, batch: B, size: int) -> Sequence[B]:
        """``batch`` in parts of at most ``size`` items (more where they cannot be parted)."""
        ...

    def sizes(self, part: B) -> dict[str, int]:
        """How many embeddings :meth:`embed` gives of a part, by name."""
        ...

    def embed(self, network: MMGEMNetwork, part: B) -> dict[str, Tensor]:
        """The embeddings ``(n, D)`` of a part by name."""
        ...

    def embedding_loss(
        self, network: MMGEMNetwork, embeddings: dict[str, Tensor], batch: B, world: World
    ) -> Terms:
        """The losses over the embeddings of all parts, one after the other."""
        ...

    def totals(self, batch: B, world: World) -> dict[str, float]:
        """Counts over the whole batch of all processes that :meth:`replay` divides by."""
        ...

    def replay(
        self, network: MMGEMNetwork, part: B, embedding_grads: dict[str, Tensor], totals: dict[str, float]
    ) -> Terms:
        """A part again, with activations: ``surrogate``, the product of its embeddings and
        ``embedding_grads`` (empty where none were embedded), and the part's share of all losses that are
        sums over items. The calls of :meth:`embed` come first and in its order, so that dropout draws the
        same numbers."""
        ...


@dataclass(frozen=True)
class StepSize:
    """``pairs`` of what is learned together, and ``images`` (boxes too), of a step of all processes;
    ``per_epoch``: steps of an epoch, None if nobody can know."""

    pairs: int
    images: int
    per_epoch: int | None


@dataclass(frozen=True)
class FakeBatch:
    """What a dry run goes through in the place of data: ``batch`` of one process, ``weight``: the work of a
    mean step for each of its, ``pairs`` and ``images`` in it, ``logit_widths``: over how many tokens its
    output heads run."""

    batch: Any
    pairs: int
    images: int
    logit_widths: frozenset[int]
    weight: float = 1.0


class Task(ABC, Generic[B]):
    """Derive from this: ``name``, ``Config`` and the abstract methods are what a task cannot do without.

    ``Config`` is a dataclass, the task's section of a recipe. ``self.config`` is one; ``self.recipe`` is the
    whole recipe, for what tasks share (``data``, ``train``).
    """

    name: ClassVar[str]
    Config: ClassVar[type[Any]]
    batch_size_key: ClassVar[str] = "train.batch_size"
    """The recipe key that says how many items are in a step."""
    data_key: ClassVar[str] = "data.train"
    """The recipe key that names what is learned from."""
    uses_logit_bias: bool = True
    """Whether ``model.logit_bias`` means anything to its losses."""
    needs_loose_files: bool = False
    """Whether shards cannot do what the recipe asks of it."""
    batches: Batches[B]

    def __init__(self, config: Any, recipe: Recipe):
        self.config, self.recipe = config, recipe

    # Before a run.

    def check(self, world: World) -> None:
        """Raise ``ConfigError`` naming the field for what cannot work. Nothing is read yet."""

    def check_model(self, config: ModelConfig) -> None:
        """Raise ``ConfigError`` for a model that the recipe cannot train so, once it is known."""

    def check_files(self) -> None:
        """Raise ``ConfigError`` naming the field for a file that is not there: before base weights are
        fetched for nothing."""

    @abstractmethod
    def prepare(self, network: MMGEMNetwork, tokenizer: Tokenizer, world: World) -> None:
        """Read what is learned from and evaluated on, and set ``self.batches``. Called once, in every
        process; ``world.main_process_first`` for what goes into a cache."""

    # Steps.

    def load_batch(self, step: int, device: torch.device) -> B:
        """The batch of ``step``, ready for :meth:`forward` on ``device``."""
        return self.batches[step]

    def split(self, batch: B) -> Sequence[B]:
        """Parts of a batch that are forwarded one after the other, so that one part's activations are alive
        at a time."""
        return [batch]

    @abstractmethod
    def forward(self, network: MMGEMNetwork, batch: B, world: World) -> Terms:
        """The losses of a batch, or of a part of it that :meth:`split` made."""

    @property
    def grad_cache(self) -> GradCache[B] | None:
        """How its losses are cached (``train.grad_cache_chunk_size``); None: they cannot be, which is
        refused."""
        return None

    def pairs(self, batch: B) -> int:
        """How many pairs this process has in a batch, for the speed that is shown."""
        return 0

    def close(self) -> list[str]:
        """End what :meth:`prepare` began; returns what was found wrong with the data meanwhile."""
        return []

    # The model.

    @property
    def holds_out(self) -> bool:
        """Whether the recipe names something to measure a model on; nothing is read yet."""
        return False

    @property
    def evaluates(self) -> bool:
        """Whether there is anything to measure a model on."""
        return False

    def evaluate(self, network: MMGEMNetwork) -> dict[str, Any]:
        """Scores on what was held out. ``score``: what the best step is chosen by, more is better. Called on
        one process."""
        raise NotImplementedError(f"{self.name} evaluates nothing")

    def export(self, network: MMGEMNetwork, folder: Path) -> None:
        """Write into a model's folder what it needs of this task beside weights and tokenizer."""

    # Planning.

    def describe_data(self, tokenizer: Tokenizer | None, tokens: int | None, world: World) -> Any:
        """What a dry run has to know of the data, read once; the other two methods are given it. ``tokens``:
        the length of all texts, said by a user; ``tokenizer``: None if it is not on this machine. An
        ``assumed`` attribute says in words what could not be read."""
        return None

    def step_size(self, data: Any) -> StepSize:
        """How much is in a step."""
        raise NotImplementedError(f"{self.name} cannot be planned")

    def fake_batch(
        self, data: Any, network: MMGEMNetwork, world: World, fake_tensor: FakeTensorFactory
    ) -> FakeBatch:
        """A step's batch of the process ``world`` is, whose pixels and features hold no data."""
        raise NotImplementedError(f"{self.name} cannot be planned")


def tasks_of(recipe: Recipe) -> list[Task[Any]]:
    """The tasks that ``recipe`` names, in its order. Raises ``ConfigError`` for a name nobody knows."""
    from mmgem.config import TASKS

    return [TASKS[name](config, recipe) for name, config in recipe.tasks.items()]


def total_loss(terms: Terms) -> Tensor | None:
    """What goes backward of a forward pass; None if nothing does."""
    losses = list(_losses(terms))
    return torch.stack(losses).sum() if losses else None


def _losses(terms: Terms) -> Iterator[Tensor]:
    for name, value in terms.items():
        if name.endswith("_loss") or name == "surrogate":
            yield value
