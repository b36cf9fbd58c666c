"""``mmgem compare``: recipes trained on the same data and measured alike, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.inputs import quiet_libraries
from mmgem.cli.output import JsonOption, note, print_json


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
    as_json: JsonOption = False,
) -> None:
    """Train recipes on the same data, measure them alike, and write one table and one plot.

    What is done is not done again: the same command goes on where it was stopped.
    """
    overrides = [argument for argument in recipes if "=" in argument]
    paths = [Path(argument) for argument in recipes if "=" not in argument]
    quiet_libraries()
    from mmgem.compare.run import compare as run

    result = run(paths, out, data, overrides, split, classes, regions, rerank, say=note)
    if as_json:
        print_json({"rows": result.rows, "folder": str(result.folder)})
    else:
        print(result.table, end="")
        print(result.folder)
