"""``mmgem adopt``: a model of any CLIP or SigLIP and any causal LLM, from texts alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.inputs import quiet_libraries
from mmgem.cli.train import run_recipe


def adopt(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A CLIP, SigLIP or SigLIP 2 checkpoint of transformers, or a CLIP of open_clip: a folder or "
            "a hub id.",
        ),
    ],
    llm: Annotated[
        str,
        typer.Option(
            "--llm", metavar="L", help="A causal language model: a pulled name, a folder or a hub id."
        ),
    ],
    texts: Annotated[
        list[Path],
        typer.Option(
            "--texts",
            metavar="FILE",
            help="Captions to learn from, one a line of .txt, or JSON lines, also .gz; repeatable.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields of the recipe to change, like init.layers=6."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder of the run.  [default: runs/ and the checkpoint's name]"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Length of the run.  [default: ten passes over the texts]"),
    ] = None,
) -> None:
    """Make a model of a contrastive checkpoint and a language model, without images.

    The image embeddings are the checkpoint's own. The LLM learns its text tower, and to caption, from texts
    alone. Prints the model's folder, which needs nothing of the checkpoint any more. A run that was stopped
    goes on when the same command is given again. It is recipes/adopt.toml with these base weights: mmgem
    train runs that, mmgem plan says what it takes.
    """
    from mmgem.train.adopt import adoption_recipe

    name = Path(checkpoint.partition("@")[0]).name or "adopt"
    recipe = adoption_recipe(checkpoint, llm, texts, out or Path("runs") / name, steps, overrides or ())
    quiet_libraries()
    run_recipe(recipe)
