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
) -> None:
    """Write a copy of MODEL about a seventh of its size: the token table in 4 bits, matrices in 8.

    It loads like any other model. Prints its folder.
    """
    quiet_libraries()
    from mmgem.models.registry import resolve
    from mmgem.models.ship import ship

    size = ship(resolve(model), out)
    note(f"{size / 1e6:.1f} MB")
    print(out)
