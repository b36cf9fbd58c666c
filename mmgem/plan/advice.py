"""What to change in a recipe that does not fit, the cheapest first, until it does; and in one whose device
waits for photos.

What leaves the result as it is comes first: arithmetic, shards, work done twice. Then comes what changes what
is learned: no average, adapters, a frozen encoder, fewer negatives. Photos come last, once all fits.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from mmgem.config import Recipe
from mmgem.config.recipe import changed, value_at
from mmgem.data.shards import is_shards
from mmgem.plan.planner import Planner
from mmgem.plan.result import Advice, Plan
from mmgem.plan.times import step_seconds
from mmgem.tasks.base import tasks_of
from mmgem.utils.progress import doing

_MAX_RATIO, _TOLERANCE = 0.98, 1.03
_MIN_CHUNK, _MIN_BATCH, _LORA_RANK = 8, 2, 16
_MAX_WORKERS = 16  # cores that machines have for each of their devices

Settings = Iterator[list[str]]


@dataclass(frozen=True)
class Change:
    """``settings``: of a recipe on devices of a kind and number, the forms of the change from the mildest on,
    each as overrides; none where it does not apply."""

    cost: str
    settings: Callable[[Recipe, str, int], Settings]


def advice(planner: Planner, recipe: Recipe, current: Plan) -> list[Advice]:
    """Changes to ``recipe``, whose plan is ``current``, one upon the other, until it fits: all that save
    something if it never does. Then, if it fits, what keeps its devices from waiting for photos. None if no
    hardware is known."""
    suggestions: list[Advice] = []
    for change in CHANGES:
        if current.fits is not False:
            break
        trials: list[tuple[list[str], Recipe, Plan]] = []
        for setting in change.settings(recipe, planner.device, planner.count):
            trial = changed(recipe, setting)
            with doing(f"trying {' '.join(setting)}"):
                trials.append((setting, trial, planner.plan(trial, None)))
            if trials[-1][2].fits:
                break
        if not trials or trials[-1][2].total_memory > _MAX_RATIO * current.total_memory:
            continue
        # The mildest form that saves as much as the strongest.
        enough_memory = _TOLERANCE * trials[-1][2].total_memory
        setting, recipe, current = next(t for t in trials if t[2].total_memory <= enough_memory)
        suggestions.append(_advice_for(setting, change.cost, current))
    return suggestions + _photo_advice(planner, recipe, current)


def _advice_for(setting: list[str], cost: str, plan: Plan) -> Advice:
    assert plan.bounds is not None and plan.fits is not None
    return Advice(" ".join(setting), cost, plan.total_memory, plan.bounds.step / plan.pairs, plan.fits)


def _photo_advice(planner: Planner, recipe: Recipe, plan: Plan) -> list[Advice]:
    """The change that gets photos ready as fast as the device takes them: features that are kept, where the
    encoder is frozen; else workers, which only shards have."""
    bounds, data = plan.bounds, recipe.data
    if not plan.fits or bounds is None or data.train is None:
        return []
    workers = min(math.ceil(bounds.data / bounds.operators), _MAX_WORKERS)
    if bounds.data <= bounds.operators or workers <= data.workers:
        return []
    setting, cost = [f"data.workers={workers}"], f"{workers} cores a device decode photos ahead"
    if not is_shards(data.train):
        if not recipe.optim.lr_encoder:
            setting = ["data.cached=true"]
            with doing(f"trying {setting[0]}"):
                cached = planner.plan(changed(recipe, setting), None)
            return [_advice_for(setting, "features of the encoder are kept on the disk", cached)]
        needs_loose_files = any(task.needs_loose_files for task in tasks_of(recipe))
        if needs_loose_files or (data.dev is None and data.dev_split):
            return []  # what shards cannot do
        setting.insert(0, f"data.train='shards/{data.split or ''}*.tar'")
        cost += f"; first mmgem data pack {data.train} --out shards"
    ahead = replace(bounds, step=step_seconds(bounds.operators, bounds.data, workers))
    return [_advice_for(setting, cost, replace(plan, bounds=ahead))]


def _precision(recipe: Recipe, device: str, _count: int) -> Settings:
    if device == "cuda" and recipe.train.precision == "float32":
        yield ["train.precision=bfloat16"]


def _shards(recipe: Recipe, _device: str, count: int) -> Settings:
    if count > 1 and recipe.train.strategy != "fsdp":
        yield ["train.strategy=fsdp"]


def _chunks(recipe: Recipe, _device: str, count: int) -> Settings:
    if all(task.grad_cache is not None for task in tasks_of(recipe)):
        items = recipe.train.grad_cache_chunk_size or -(-recipe.train.batch_size // count)
        for size in _halves(items, _MIN_CHUNK):
            yield [f"train.grad_cache_chunk_size={size}"]


def _activations(recipe: Recipe, _device: str, _count: int) -> Settings:
    if not recipe.train.checkpoint_activations:
        yield ["train.checkpoint_activations=true"]


def _average(recipe: Recipe, _device: str, _count: int) -> Settings:
    if recipe.optim.ema_decay:
        yield ["optim.ema_decay=0"]


def _adapters(recipe: Recipe, _device: str, _count: int) -> Settings:
    trains = recipe.optim.lr_llm > 0 and not recipe.optim.lora_rank
    if trains and importlib.util.find_spec("peft") is not None:
        yield [f"optim.lora_rank={_LORA_RANK}"]


def _encoder(recipe: Recipe, _device: str, _count: int) -> Settings:
    data = recipe.data
    if data.train is None or (data.cached and not recipe.optim.lr_encoder):
        return
    settings = [] if data.cached or is_shards(data.train) else ["data.cached=true"]
    yield [*(["optim.lr_encoder=0"] if recipe.optim.lr_encoder else []), *settings]


def _batch(recipe: Recipe, _device: str, count: int) -> Settings:
    key = tasks_of(recipe)[0].batch_size_key
    for size in _halves(value_at(recipe, key), _MIN_BATCH * count):
        yield [f"{key}={size}"]


def _halves(size: int, smallest: int) -> Iterator[int]:
    while size // 2 >= smallest:
        size //= 2
        yield size


CHANGES = (
    Change("products are rounded to bfloat16", _precision),
    Change("weights are sent too, not gradients alone", _shards),
    Change("images and texts are embedded twice", _chunks),
    Change("blocks are computed twice", _activations),
    Change("the last weights are exported, not their average", _average),
    Change("the LLM learns through adapters alone", _adapters),
    Change("the encoder stays as it is", _encoder),
    Change("fewer negatives, more steps", _batch),
)
"""In the order of what they cost."""
