"""The options that say which photos a search may find, for all commands that have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from mmgem.errors import UsageError

if TYPE_CHECKING:
    from mmgem.search.filters import Filters

FolderOption = Annotated[
    str | None, typer.Option("--folder", metavar="DIR", help="Only photos in this folder, or below.")
]
NameOption = Annotated[
    str | None, typer.Option("--name", metavar="PATTERN", help="Only files of this name: 'IMG_*'.")
]
DateOption = Annotated[
    str | None,
    typer.Option("--date", metavar="WHEN", help="Only from then: 2021, 2021-05-17, 2021-06..2021-08, today."),
]
CameraOption = Annotated[
    str | None, typer.Option("--camera", metavar="TEXT", help="Only of cameras with this in their name.")
]
OrientationOption = Annotated[
    str | None, typer.Option("--orientation", metavar="O", help="landscape, portrait or square.")
]
MinWidthOption = Annotated[
    int | None, typer.Option("--min-width", metavar="PX", help="Only photos at least so wide.")
]
MinHeightOption = Annotated[
    int | None, typer.Option("--min-height", metavar="PX", help="Only photos at least so high.")
]
NearOption = Annotated[
    str | None, typer.Option("--near", metavar="LAT,LON,KM", help="Only taken there: 48.1,11.5,10km.")
]

ChangedOption = Annotated[
    str | None,
    typer.Option("--changed", metavar="WHEN", help="Only files last modified then, as --date: yesterday.. ."),
]
LacksOption = Annotated[
    str | None, typer.Option("--lacks", metavar="WHAT", help="Only photos without: place, camera or date.")
]


def make_filters(
    folder: str | None,
    name: str | None,
    date: str | None,
    camera: str | None,
    orientation: str | None,
    min_width: int | None,
    min_height: int | None,
    near: str | None,
    changed: str | None = None,
    lacks: str | None = None,
) -> Filters:
    """The filters that the options say. Raises UsageError, naming the option, for what is none."""
    from pathlib import Path

    from mmgem.search.filters import Filters

    if folder is not None and folder.startswith("~"):
        folder = str(Path(folder).expanduser())
    try:
        places = folder, name, date, camera, orientation, min_width, min_height, near, changed, lacks
        return Filters(*places)  # type: ignore[arg-type]
    except UsageError as error:
        field, _, rest = str(error).partition(" ")
        raise UsageError(f"--{field.replace('_', '-')} {rest}") from error
