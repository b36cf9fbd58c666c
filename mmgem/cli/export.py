"""``mmgem export``: a small copy of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.inputs import quiet_libraries
from mmgem.cli.output import note


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or name.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; replaced if it is there.")],
    mix: Annotated[
        str | None, typer.Option(metavar="OTHER", help="Mix the weights with those of this model.")
    ] = None,
    share: Annotated[float, typer.Option(min=0, max=1, metavar="S", help="OTHER's share of them.")] = 0.5,
) -> None:
    """Write a copy of MODEL about a seventh of its size: the token table in 4 bits, matrices in 8.

    It loads like any other model. With --mix every weight lies between the two models': a model and the one
    it was trained from are often best in between. Prints its folder.
    """
    quiet_libraries()
    from mmgem.models.registry import resolve
    from mmgem.models.ship import ship

    size = ship(resolve(model), out, resolve(mix) if mix else None, share)
    note(f"{size / 1e6:.1f} MB")
    print(out)
