"""Plans a recipe, and changed forms of it that read the same data with the same model."""

from __future__ import annotations

import math

from mmgem.config import Recipe
from mmgem.distributed.world import World
from mmgem.models.parameter_count import parameter_table
from mmgem.plan.dry_run import DryRun, dry_run
from mmgem.plan.hardware import Hardware
from mmgem.plan.result import Plan
from mmgem.plan.shape import ModelShape, model_shape
from mmgem.plan.times import bounds, photo_seconds, update_bytes
from mmgem.tasks.base import tasks_of
from mmgem.train.checks import check


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
        measured = dry_run(recipe, [(t, self.data[t.name]) for t in tasks], network, self.device, self.count)
        operations: dict[str, float] = {}
        for (dtype, count, _), repeats in measured.work.items():
            if count:
                name = str(dtype).removeprefix("torch.")
                operations[name] = operations.get(name, 0.0) + count * repeats / 1e12
        lower_bounds = None
        if self.hardware is not None:
            sharded = self.count if recipe.train.strategy == "fsdp" else 1
            updated = update_bytes(sum(measured.trained.values()) // sharded, recipe.optim.ema_decay > 0)
            photos = 0.0 if recipe.data.cached else self.photo * measured.images
            lower_bounds = bounds(measured.work, updated, photos, recipe.data.workers, self.hardware)
        sizes = [task.step_size(self.data[task.name]) for task in tasks]
        pairs_a_step = sum(size.pairs for size in sizes)
        per_epoch = sizes[0].per_epoch
        steps = recipe.train.steps if per_epoch is None else recipe.train.total_steps(per_epoch)
        return Plan(
            parameters=parameters,
            trained=measured.trained,
            pairs=pairs_a_step,
            images=sum(size.images for size in sizes),
            memory={kind: size / 1e9 for kind, size in measured.memory.items() if size},
            operations=operations,
            operations_a_pair=sum(operations.values()) / measured.pairs,
            communication=self._communication(recipe, parameters["total"], measured) / 1e9,
            hardware=self.hardware,
            bounds=lower_bounds,
            steps=math.ceil(pairs / pairs_a_step) if pairs else steps,
            assumed=[assumption for assumption in self.assumed if assumption],
        )

    def _communication(self, recipe: Recipe, parameters: int, measured: DryRun) -> float:
        """Bytes a device sends in a step: gradients once around (DDP), or weights twice and gradients once
        in shards (FSDP)."""
        ring_bytes = 4 * (self.count - 1) / self.count
        trained = sum(measured.trained.values())
        if recipe.train.strategy == "fsdp":
            return ring_bytes * (2 * parameters + trained)
        return ring_bytes * 2 * trained
