"""``mmgem compare``: recipes trained on the same data and measured alike, in one table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.inputs import quiet_libraries
from mmgem.cli.output import JsonOption, note, print_json
from mmgem.errors import UsageError


def compare(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE.toml... KEY=VALUE...",
            help="What to compare, and fields to change in all of them, like train.epochs=2.",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="What all learn from.  [default: as they say]")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs, table and plot go.")] = Path(
        "runs/compare"
    ),
    split: Annotated[
        str | None, typer.Option(help="Of the data, to be measured on.  [default: the recipes' dev_split]")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="A folder of class folders, for zero-shot classification."),
    ] = None,
    regions: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Data with described boxes, for regions.")
    ] = None,
    rerank: Annotated[
        int, typer.Option(min=0, metavar="K", help="Give the K nearest a second look as well; slow.")
    ] = 0,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=V,V", help="A row more of each recipe for each value of a field.  [repeatable]"
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="N,N", help="Train every row with each of these.  [default: the recipes']")
    ] = "",
    as_json: JsonOption = False,
) -> None:
    """Train recipes on the same data, measure them alike, and write one table and one plot.

    Also a recipe and itself with a field changed: --vary model.visual_tokens=1,4,16 --seeds 0,1,2. What is
    done is not done again: the same command goes on where it was stopped.
    """
    overrides = [argument for argument in recipes if "=" in argument]
    paths = [Path(argument) for argument in recipes if "=" not in argument]
    quiet_libraries()
    from mmgem.compare.run import compare as run

    if seeds and not re.fullmatch(r"\d+(,\d+)*", seeds):
        raise UsageError(f"--seeds {seeds}: must be numbers with commas between them")
    numbers = [int(seed) for seed in seeds.split(",")] if seeds else []
    result = run(paths, out, data, overrides, split, classes, regions, rerank, vary or (), numbers, say=note)
    if as_json:
        print_json({"rows": result.rows, "folder": str(result.folder)})
    else:
        print(result.table, end="")
        print(result.folder)
