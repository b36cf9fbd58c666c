"""``mmgem cluster``: the photos of an index in groups that look alike, with names."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.hits import BuiltByOption, open_index
from mmgem.cli.inputs import DeviceOption, PrecisionOption, default_index, load_model
from mmgem.cli.output import JsonOption, print_json


def cluster(
    idx: Annotated[
        Path | None, typer.Argument(metavar="IDX", help="Folder made by mmgem index; else the default one.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("-n", min=1, metavar="N", help="How many groups; else by their number."),
    ] = None,
    files: Annotated[
        bool, typer.Option("--files", help="A line a photo: the group's name, a tab, the path.")
    ] = False,
    model: BuiltByOption = None,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Sort photos into groups that look alike: how many there are, a tab, the name; the largest group first.

    Groups are found among the vectors of the index (k-means). A name is a caption that the model writes of
    one of the group's most typical photos. With --json: {"clusters": [{"name", "files"}], "photos"}, the most
    typical file of each first.
    """
    from mmgem.search.clusters import cluster_photos

    photos, name = open_index(default_index() if idx is None else idx, model)
    clusters = cluster_photos(photos, load_model(name, device, precision), count)
    if as_json:
        rows = [{"name": group.name, "files": [str(path) for path in group.paths]} for group in clusters]
        print_json({"clusters": rows, "photos": len(photos.files)})
        return
    for group in clusters:
        for path in group.paths if files else ():
            print(f"{group.name}\t{path}")
        if not files:
            print(f"{len(group.paths)}\t{group.name}")
