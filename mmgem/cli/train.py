"""``mmgem train``: run a recipe, or go on with it."""

from __future__ import annotations

import atexit
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.cli.inputs import quiet_libraries
from mmgem.cli.output import exit_now
from mmgem.errors import UsageError

if TYPE_CHECKING:
    from mmgem.config import Recipe


def train(
    recipe: Annotated[
        Path | None, typer.Argument(metavar="RECIPE.toml", help="What to train, and on what.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields to change, like train.epochs=2."),
    ] = None,
    fields: Annotated[
        bool,
        typer.Option(
            "--fields",
            help="Only print the fields of a recipe; of some tables: --fields optim.",
        ),
    ] = False,
) -> None:
    """Train a model as a recipe says; prints its folder.

    A run that was stopped goes on when the same command is given again.
    """
    if fields:
        from mmgem.config.describe import as_text, chosen_sections

        names = ([str(recipe)] if recipe is not None else []) + (overrides or [])
        print(as_text(chosen_sections(names)), end="")
        return
    if recipe is None:
        raise UsageError("Missing argument 'RECIPE.toml' (see mmgem train --help)")
    from mmgem.config.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    quiet_libraries()
    run_recipe(loaded)


def run_recipe(recipe: Recipe) -> None:
    """Train, and print the model's folder on the main process."""
    from mmgem.train.loop import train as run

    out = run(recipe)
    if os.environ.get("RANK", "0") == "0":
        print(out)
    if "RANK" in os.environ:
        # Threads of gloo outlive FSDP's group, and one that frees a tensor while Python ends aborts the
        # process: torchrun then calls the run failed (pytorch/pytorch#179291).
        atexit._run_exitfuncs()
        exit_now()
