"""The rows of a comparison: recipes as they are and with one field changed at a time, with several seeds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.config import Recipe, to_dict
from mmgem.config.recipe import load_recipe
from mmgem.errors import UsageError

_BETWEEN_VALUES = re.compile(r",(?![^\[]*\])")


@dataclass(frozen=True)
class Variation:
    """A ``key`` of the recipe and the ``values`` it is given in turn, as `mmgem train` has ``key=value``."""

    key: str
    values: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> Variation:
        """Of ``KEY=VALUE,VALUE``; commas inside brackets are part of a value. Raises ``UsageError``."""
        key, equals, rest = text.partition("=")
        values = tuple(value.strip() for value in _BETWEEN_VALUES.split(rest))
        if not equals or not key or not all(values):
            raise UsageError(f"--vary {text}: must be KEY=VALUE,VALUE")
        return cls(key.strip(), values)


def read_variants(
    recipes: Sequence[Path],
    out: Path,
    changes: Sequence[str] = (),
    vary: Sequence[Variation] = (),
    seeds: Sequence[int] = (),
) -> dict[str, dict[str, Recipe]]:
    """The runs of every row, by their names: a row a recipe and variation that differs from the recipe, a run
    a seed (none given: the recipe's own). Runs lie in folders of ``out`` with their names; ``changes`` are
    made to all. Raises ``UsageError`` for two recipes of one name."""
    rows: dict[str, dict[str, Recipe]] = {}
    for path in recipes:
        if path.stem in rows:
            raise UsageError(f"{path}: another recipe is called {path.stem} too; rename one")
        base = load_recipe(path, list(changes))
        rows[path.stem] = _with_seeds(path.stem, base, out, seeds)
        for key, value in ((of.key, value) for of in vary for value in of.values):
            varied = load_recipe(path, [*changes, f"{key}={value}"])
            if varied != base:
                name = f"{path.stem} {key.rpartition('.')[2]}={value}"
                rows[name] = _with_seeds(name, varied, out, seeds)
    return rows


def _with_seeds(name: str, recipe: Recipe, out: Path, seeds: Sequence[int]) -> dict[str, Recipe]:
    runs = {}
    for seed in seeds or (recipe.train.seed,):
        run = f"{name} seed={seed}" if len(seeds) > 1 else name
        folder = out / re.sub(r"[^\w.=+-]+", "-", run).strip("-")
        runs[run] = replace(recipe, train=replace(recipe.train, seed=seed, out=folder))
    return runs


def without(recipe: Recipe, keys: Sequence[str]) -> dict[str, Any]:
    """``recipe`` in plain form, but for ``keys``."""
    plain = to_dict(recipe)
    for key in keys:
        *path, last = key.split(".")
        table: Any = plain
        for part in path:
            table = table.get(part, {})
        table.pop(last, None)
    return plain


def over_seeds(name: str, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row of the rows of ``runs``, which differ in their seeds: of every score the mean, and as its error
    that over photos and that over seeds together (the root of the sum of their squares). What it took is the
    mean too."""
    if len(runs) == 1:
        return {**runs[0], "name": name}
    scores = {}
    for figure in runs[0]["scores"]:
        values, errors = np.array([run["scores"][figure] for run in runs]).T
        between = values.var(ddof=1) / len(values)
        scores[figure] = [float(values.mean()), math.sqrt(float(np.square(errors).mean() + between))]
    training = {
        fact: float(np.mean([run["training"][fact] for run in runs])) if _is_number(value) else value
        for fact, value in runs[0]["training"].items()
    }
    return {**runs[0], "name": name, "scores": scores, "training": training, "seeds": len(runs)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
