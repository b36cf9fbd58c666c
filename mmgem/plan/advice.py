"""What to change in a recipe that does not fit, the cheapest first, until it does.

What leaves the result as it is comes first: arithmetic, shards, work done twice. Then comes what changes what
is learned: no average, adapters, a frozen tower, fewer negatives.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mmgem.config import Recipe
from mmgem.data.shards import is_shards
from mmgem.plan.plan import Advice, Plan, Planner
from mmgem.recipe import changed

_WORTH, _ALIKE = 0.98, 1.03
_LEAST_CHUNK, _LEAST_BATCH, _RANK = 8, 2, 16

Settings = Iterator[list[str]]


@dataclass(frozen=True)
class Change:
    """``settings``: of a recipe on devices of a kind and number, the forms of the change from the mildest on,
    each as overrides; none where it does not apply."""

    cost: str
    settings: Callable[[Recipe, str, int], Settings]


def advice(planner: Planner, recipe: Recipe, made: Plan) -> list[Advice]:
    """Changes to ``recipe``, whose plan is ``made``, one upon the other, until it fits: all that save
    something if it never does, none if it fits already or no hardware is known."""
    told: list[Advice] = []
    for change in CHANGES:
        if made.fits is not False:
            break
        tried: list[tuple[list[str], Recipe, Plan]] = []
        for setting in change.settings(recipe, planner.device, planner.count):
            trial = changed(recipe, setting)
            tried.append((setting, trial, planner.plan(trial, None)))
            if tried[-1][2].fits:
                break
        if not tried or tried[-1][2].total_memory > _WORTH * made.total_memory:
            continue
        # The mildest form that saves as much as the strongest.
        enough = _ALIKE * tried[-1][2].total_memory
        setting, recipe, made = next(t for t in tried if t[2].total_memory <= enough)
        assert made.bounds is not None and made.fits is not None
        seconds = made.bounds.step / made.pairs
        told.append(Advice(" ".join(setting), change.cost, made.total_memory, seconds, made.fits))
    return told


def _precision(recipe: Recipe, device: str, _count: int) -> Settings:
    if device == "cuda" and recipe.train.precision == "float32":
        yield ["train.precision=bfloat16"]


def _shards(recipe: Recipe, _device: str, count: int) -> Settings:
    if count > 1 and recipe.train.strategy != "fsdp":
        yield ["train.strategy=fsdp"]


def _chunks(recipe: Recipe, _device: str, count: int) -> Settings:
    if recipe.data.train is not None:
        for chunk in _halves(recipe.train.chunk or -(-recipe.train.batch // count), _LEAST_CHUNK):
            yield [f"train.chunk={chunk}"]


def _activations(recipe: Recipe, _device: str, _count: int) -> Settings:
    if not recipe.train.checkpoint_activations:
        yield ["train.checkpoint_activations=true"]


def _average(recipe: Recipe, _device: str, _count: int) -> Settings:
    if recipe.optim.ema:
        yield ["optim.ema=0"]


def _adapters(recipe: Recipe, _device: str, _count: int) -> Settings:
    trains = recipe.optim.lr_llm > 0 and not recipe.optim.lora_rank
    if trains and importlib.util.find_spec("peft") is not None:
        yield [f"optim.lora_rank={_RANK}"]


def _tower(recipe: Recipe, _device: str, _count: int) -> Settings:
    data = recipe.data
    if data.train is None or (data.cached and not recipe.optim.lr_tower):
        return
    settings = [] if data.cached or is_shards(data.train) else ["data.cached=true"]
    yield [*(["optim.lr_tower=0"] if recipe.optim.lr_tower else []), *settings]


def _batch(recipe: Recipe, _device: str, count: int) -> Settings:
    if recipe.data.train is not None:
        for batch in _halves(recipe.train.batch, _LEAST_BATCH * count):
            yield [f"train.batch={batch}"]
    else:
        for batch in _halves(recipe.corpus.batch, _LEAST_BATCH * count):
            yield [f"corpus.batch={batch}"]


def _halves(of: int, least: int) -> Iterator[int]:
    while of // 2 >= least:
        of //= 2
        yield of


CHANGES = (
    Change("products are rounded to bfloat16", _precision),
    Change("weights are sent too, not gradients alone", _shards),
    Change("images and texts are embedded twice", _chunks),
    Change("blocks are computed twice", _activations),
    Change("the last weights are exported, not their average", _average),
    Change("the LLM learns through adapters alone", _adapters),
    Change("the tower stays as it is", _tower),
    Change("fewer negatives, more steps", _batch),
)
"""In the order of what they cost."""
