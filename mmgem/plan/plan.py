"""What a recipe takes: parameters, memory, operations, time and money, and what to change where it does not
fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from mmgem.config import Recipe
from mmgem.distributed.world import World
from mmgem.errors import UsageError
from mmgem.models.parameter_count import parameter_table
from mmgem.plan.dry_run import DryRun, dry_run
from mmgem.plan.hardware import Hardware
from mmgem.plan.shape import ModelShape, model_shape
from mmgem.plan.times import Bounds, bounds, photo_seconds, update_bytes
from mmgem.tasks.base import tasks_of
from mmgem.train.checks import check
from mmgem.utils.progress import doing

USABLE = 0.9
"""Share of a device's memory that tensors may fill: the rest is for its context, the libraries' workspaces
and what lies unused between tensors."""


@dataclass(frozen=True)
class Advice:
    """A change and what it is paid with; with it and those before it: ``memory_gb`` of a device, ``seconds``
    a pair at least, and whether it fits."""

    change: str
    cost: str
    memory_gb: float
    seconds: float
    fits: bool


@dataclass
class Plan:
    """``parameters``: by part, ``trained``: by group of the optimiser; ``pairs`` and ``images`` (boxes too)
    of a step on all devices; ``memory``: GB (10^9 bytes) of one device by kind, when they are most;
    ``operations``: 10^12 of one device's step, by type, ``operations_a_pair``: of each of its pairs, where
    devices differ of one that has most; ``communication``: GB it sends in a step; ``bounds``: None without
    hardware; ``steps``: of the run, None if nobody says how long it is; ``assumed``: what could not be read,
    in words."""

    parameters: dict[str, int]
    trained: dict[str, int]
    pairs: int
    images: int
    memory: dict[str, float]
    operations: dict[str, float]
    operations_a_pair: float
    communication: float
    hardware: Hardware | None
    bounds: Bounds | None
    steps: int | None
    assumed: list[str]
    advice: list[Advice] = field(default_factory=list)

    @property
    def total_memory(self) -> float:
        """GB a device."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool | None:
        """Whether the memory is enough; None without hardware."""
        return None if self.hardware is None else self.total_memory <= USABLE * self.hardware.memory

    @property
    def days(self) -> float | None:
        """Of the whole run, at least."""
        return None if self.bounds is None or not self.steps else self.bounds.step * self.steps / 86400

    @property
    def cost(self) -> float | None:
        """$ of the whole run, at least."""
        if self.days is None or self.hardware is None or self.hardware.price is None:
            return None
        return self.days * 24 * self.hardware.price * self.hardware.count

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        hardware = None if self.hardware is None else dict(vars(self.hardware))
        return {
            "parameters": {**self.parameters, "trained": sum(self.trained.values())},
            "trained": self.trained,
            "pairs": self.pairs,
            "images": self.images,
            "memory_gb": {**self.memory, "total": self.total_memory},
            "tflop": {**self.operations, "pair": self.operations_a_pair},
            "communication_gb": self.communication,
            "hardware": hardware,
            "fits": self.fits,
            "seconds": None if self.bounds is None else vars(self.bounds),
            "steps": self.steps,
            "days": self.days,
            "cost": self.cost,
            "assumed": self.assumed,
            "advice": [vars(a) for a in self.advice],
        }


class Planner:
    """Plans ``recipe`` and changed forms of it that read the same data with the same model."""

    def __init__(self, recipe: Recipe, hardware: Hardware | None, tokens: int | None):
        """``tokens``: the length of all captions; None: as the data says. Raises ``ConfigError`` or
        ``DataError``."""
        self.hardware = hardware
        self.count = hardware.count if hardware else 1
        self.device = hardware.device if hardware else "cpu" if recipe.train.device == "cpu" else "cuda"
        tasks = check(recipe, World(size=self.count))
        self.shape: ModelShape = model_shape(recipe)
        tokenizer = self.shape.tokenizer()
        last = World(self.count - 1, self.count)
        self.data = {task.name: task.describe_data(tokenizer, tokens, last) for task in tasks}
        self.assumed = [getattr(data, "assumed", "") for data in self.data.values()]
        self.photo = photo_seconds(recipe, self.shape.prep)

    def plan(self, recipe: Recipe, pairs: int | None) -> Plan:
        """What ``recipe`` takes, without advice; ``pairs``: the length of the run, None: its epochs."""
        tasks = tasks_of(recipe)
        for task in tasks:
            task.check_model(self.shape.config)
        network = self.shape.network()
        parameters = dict(parameter_table(network))
        found = dry_run(recipe, [(t, self.data[t.name]) for t in tasks], network, self.device, self.count)
        operations: dict[str, float] = {}
        for (dtype, count, _), times in found.work.items():
            if count:
                name = str(dtype).removeprefix("torch.")
                operations[name] = operations.get(name, 0.0) + count * times / 1e12
        at_least = None
        if self.hardware is not None:
            sharded = self.count if recipe.train.strategy == "fsdp" else 1
            updated = update_bytes(sum(found.trained.values()) // sharded, recipe.optim.ema_decay > 0)
            photos = 0.0 if recipe.data.cached else self.photo * found.images
            at_least = bounds(found.work, updated, photos, recipe.data.workers, self.hardware)
        sizes = [task.step_size(self.data[task.name]) for task in tasks]
        pairs_a_step = sum(size.pairs for size in sizes)
        per_epoch = sizes[0].per_epoch
        steps = None if per_epoch is None else max(1, round(recipe.train.epochs * per_epoch))
        return Plan(
            parameters=parameters,
            trained=found.trained,
            pairs=pairs_a_step,
            images=sum(size.images for size in sizes),
            memory={kind: size / 1e9 for kind, size in found.memory.items() if size},
            operations=operations,
            operations_a_pair=sum(operations.values()) / found.pairs,
            communication=self._communication(recipe, parameters["total"], found) / 1e9,
            hardware=self.hardware,
            bounds=at_least,
            steps=math.ceil(pairs / pairs_a_step) if pairs else steps,
            assumed=[said for said in self.assumed if said],
        )

    def _communication(self, recipe: Recipe, parameters: int, found: DryRun) -> float:
        """Bytes a device sends in a step: gradients once around (DDP), or weights twice and gradients once
        in shards (FSDP)."""
        share = 4 * (self.count - 1) / self.count
        trained = sum(found.trained.values())
        if recipe.train.strategy == "fsdp":
            return share * (2 * parameters + trained)
        return share * 2 * trained


def plan(
    recipe: Recipe, hardware: Hardware | None = None, pairs: int | None = None, tokens: int | None = None
) -> Plan:
    """Plan ``recipe`` on ``hardware`` for ``pairs`` (None: its epochs), with texts of ``tokens`` each (None:
    as its data says), and with what to change where it does not fit, or waits for photos.

    Nothing is trained or downloaded but configurations of base models that have a hub id. Raises
    ``ConfigError`` or ``DataError`` for what would not train, ``UsageError`` for numbers not above 0.
    """
    from mmgem.plan.advice import advice

    for name, value in (("pairs", pairs), ("tokens", tokens)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}, not a number above 0")
    recipe = replace(recipe, train=replace(recipe.train, compile=False))
    with doing("reading what is trained on"):
        planner = Planner(recipe, hardware, tokens)
    with doing("going through a step"):
        made = planner.plan(recipe, pairs)
    made.advice = advice(planner, recipe, made)
    return made
