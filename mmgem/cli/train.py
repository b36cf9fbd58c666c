"""``mmgem train``: run a recipe, or go on with it."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.inputs import quiet_libraries
from mmgem.cli.output import exit_now


def train(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to train, and on what.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields to change, like train.epochs=2."),
    ] = None,
) -> None:
    """Train a model as a recipe says; prints its folder.

    A run that was stopped goes on when the same command is given again.
    """
    from mmgem.config.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    quiet_libraries()
    from mmgem.train.loop import train as run

    out = run(loaded)
    if os.environ.get("RANK", "0") == "0":
        print(out)
    if "RANK" in os.environ:
        # Threads of gloo outlive FSDP's group, and one that frees a tensor while Python ends aborts the
        # process: torchrun then calls the run failed (pytorch/pytorch#179291).
        atexit._run_exitfuncs()
        exit_now()
