"""Plan a recipe on hardware, with advice where it does not fit."""

from __future__ import annotations

from dataclasses import replace

from mmgem.config import Recipe
from mmgem.errors import UsageError
from mmgem.plan.advice import advice
from mmgem.plan.hardware import Hardware
from mmgem.plan.planner import Planner
from mmgem.plan.result import Plan
from mmgem.utils.progress import doing


def plan(
    recipe: Recipe, hardware: Hardware | None = None, pairs: int | None = None, tokens: int | None = None
) -> Plan:
    """Plan ``recipe`` on ``hardware`` for ``pairs`` (None: its epochs), with texts of ``tokens`` each (None:
    as its data says), and with what to change where it does not fit, or waits for photos.

    Nothing is trained or downloaded but configurations of base models that have a hub id. Raises
    ``ConfigError`` or ``DataError`` for what would not train, ``UsageError`` for numbers not above 0.
    """
    for name, value in (("pairs", pairs), ("tokens", tokens)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}, not a number above 0")
    recipe = replace(recipe, train=replace(recipe.train, compile=False))
    with doing("reading what is trained on"):
        planner = Planner(recipe, hardware, tokens)
    with doing("going through a step"):
        result = planner.plan(recipe, pairs)
    result.advice = advice(planner, recipe, result)
    return result
