"""Recipes compared: each is trained unless it has been, each is measured unless it has been, and what came of
it is written as ``table.md``, ``table.json`` and ``plot.svg``. A recipe may be compared with itself, a field
changed at a time, and with several seeds.

A comparison that was stopped goes on when it is started again: runs resume from their checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmgem.compare.report import markdown, plot
from mmgem.compare.variants import Variation, over_seeds, read_variants, without
from mmgem.compare.worker import finished, train_apart
from mmgem.config import Recipe
from mmgem.data.readers import load_dataset
from mmgem.data.records import Record
from mmgem.distributed.world import SINGLE_PROCESS
from mmgem.errors import ConfigError, DataError, UsageError
from mmgem.utils.files import write_atomic

SCORES_FILE = "scores.json"

_SAME = (
    "data",
    "preprocessing",
    "model.encoder",
    "init.encoder",
    "train.epochs",
    "train.batch_size",
    "train.seed",
    "train.precision",
)
"""What has to be equal in all recipes that are compared, unless it is varied."""


@dataclass(frozen=True)
class Comparison:
    """``rows``: a system each, with ``name``, ``kind``, ``scores`` (a figure and its standard error by name)
    and ``training`` (what it took); ``folder``: where the table lies."""

    rows: list[dict[str, Any]]
    folder: Path

    @property
    def table(self) -> str:
        """As Markdown."""
        return (self.folder / "table.md").read_text()


def compare(
    recipes: Sequence[Path],
    out: Path,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    split: str | None = None,
    classes: Path | None = None,
    regions: Path | None = None,
    rerank: int = 0,
    vary: Sequence[str] = (),
    seeds: Sequence[int] = (),
    train: Callable[[Recipe], None] = train_apart,
    say: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Train and measure ``recipes``, each in a folder of ``out`` that has its file's name.

    ``data``: in the place of their ``data.train``; ``overrides``: fields of all of them, ``key=value``;
    ``split``: what of the data is measured on (None: their ``dev_split``); ``classes``: a folder of class
    folders, for zero-shot classification; ``regions``: a data set with described boxes; ``rerank``: how many
    of the nearest get a second look, for systems that can; ``vary``: ``key=value,value``, a row more for each
    value in each recipe, all else as it is; ``seeds``: every row is the mean of so many runs, its errors
    those over photos and seeds; ``train``: how one is trained; ``say``: is told what is going on.

    Raises ``UsageError`` for recipes of one name or of different data, tower, steps or seed; ``ConfigError``
    for one that cannot train, before any does.
    """
    loaded = load_recipes(recipes, out, data, overrides, vary, seeds)
    first = next(recipe for runs in loaded.values() for recipe in runs.values())
    test = _test_data(first, split, classes, regions, rerank)
    rows = []
    for name, runs in loaded.items():
        measured = []
        for run, recipe in runs.items():
            if finished(recipe) is None:
                say(f"training {run}")
                train(recipe)
            done = finished(recipe)
            if done is None:
                raise DataError(f"{recipe.train.out}: its training has not come to its end")
            say(f"measuring {run}")
            measured.append({"kind": recipe.model.kind, **_measured(recipe, done, test)})
        rows.append(over_seeds(name, measured))
        _write(out, rows, first, test, seeds)
    return Comparison(rows, out)


def load_recipes(
    recipes: Sequence[Path],
    out: Path,
    data: Path | None = None,
    overrides: Sequence[str] = (),
    vary: Sequence[str] = (),
    seeds: Sequence[int] = (),
) -> dict[str, dict[str, Recipe]]:
    """The runs of every row by their names, as :func:`compare` trains them. Raises as it does."""
    from mmgem.train.checks import check

    changes = list(overrides)
    if data is not None:
        changes.append(f"data.train={json.dumps(str(data))}")
    variations = [Variation.parse(text) for text in vary]
    rows = read_variants(recipes, out, changes, variations, seeds)
    if not rows:
        raise UsageError("no recipes to compare")
    varied = [variation.key for variation in variations]
    plain = {name: without(next(iter(runs.values())), varied) for name, runs in rows.items()}
    first_name, first = next(iter(plain.items()))
    for name, runs in rows.items():
        for key in _SAME:
            if _at(plain[name], key) != _at(first, key):
                raise UsageError(
                    f"{key}: differs between {first_name} and {name}; systems are compared on the same data, "
                    "tower, steps and seed"
                )
        try:
            check(next(iter(runs.values())), SINGLE_PROCESS)
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    return rows


def _at(plain: dict[str, Any], key: str) -> Any:
    value: Any = plain
    for part in key.split("."):
        value = value.get(part)
    return value


def _test_data(
    recipe: Recipe, split: str | None, classes: Path | None, regions: Path | None, rerank: int
) -> Any:
    from mmgem.compare.measure import TestData

    source = recipe.data.dev if recipe.data.dev is not None and split is None else recipe.data.train
    if source is None:
        raise UsageError("data.train: missing; give --data")
    chosen = split if split is not None else (None if recipe.data.dev is not None else recipe.data.dev_split)
    photos = _having("captions", load_dataset(source, split=chosen or None), source)
    labelled = _having("label", load_dataset(classes), classes) if classes is not None else []
    boxed = _having("regions", load_dataset(regions), regions) if regions is not None else []
    return TestData(photos, labelled, boxed, rerank)


def _having(field: str, records: Sequence[Record], source: Path) -> list[Record]:
    kept = [record for record in records if getattr(record, field)]
    if not kept:
        raise DataError(f"{source}: no {field} in it")
    return kept


def _measured(recipe: Recipe, done: dict[str, Any], test: Any) -> dict[str, Any]:
    """Scores and facts of a finished run; those of before if the model and the test data are the same."""
    from mmgem.api import MMGEM
    from mmgem.checkpoints.resolve import fingerprint
    from mmgem.compare.measure import measure, training_facts

    folder = recipe.train.out / "model"
    records = [*test.photos, *test.classes, *test.regions]
    key = {
        "model": fingerprint(folder),
        "records": [len(test.photos), len(test.classes), len(test.regions)],
        "first": str(records[0].media) if records else "",
        "last": str(records[-1].media) if records else "",
        "rerank": test.rerank,
    }
    path = recipe.train.out / SCORES_FILE
    try:
        before = json.loads(path.read_text())
        if before["of"] == key:
            return {"scores": before["scores"], "training": before["training"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    model = MMGEM.from_pretrained(folder, backend="torch")
    scores, training = (
        measure(model, replace(test, captions=_captions(recipe))),
        training_facts(recipe, done, model),
    )
    write_atomic(path, json.dumps({"of": key, "scores": scores, "training": training}))
    return {"scores": scores, "training": training}


def _captions(recipe: Recipe) -> bool:
    """Whether a recipe learns them, as far as its sections say."""
    section = recipe.tasks.get("image_text")
    return section is None or bool(section.caption.weight)


def _write(out: Path, rows: list[dict[str, Any]], recipe: Recipe, test: Any, seeds: Sequence[int]) -> None:
    steps = round(rows[0]["training"]["steps"])
    several = f"seeds {', '.join(map(str, seeds))}" if len(seeds) > 1 else f"seed {recipe.train.seed}"
    about = (
        f"{len(test.photos)} photos; each system {steps} steps of {recipe.train.batch_size} images, "
        f"{several}, tower {recipe.model.encoder.kind}; percent ± one standard error over photos"
        f"{' and seeds' if len(seeds) > 1 else ''}."
    )
    write_atomic(out / "table.md", markdown(rows, about))
    write_atomic(out / "table.json", json.dumps({"about": about, "rows": rows}, indent=1) + "\n")
    write_atomic(out / "plot.svg", plot(rows, about))
