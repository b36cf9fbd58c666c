"""``mmgem duplicates``: the copies among the photos of an index."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.hits import NullOption
from mmgem.cli.inputs import default_index
from mmgem.cli.output import JsonOption, counted, note, print_json
from mmgem.errors import UsageError


def duplicates(
    idx: Annotated[
        Path | None, typer.Argument(metavar="IDX", help="Folder made by mmgem index; else the default one.")
    ] = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Only files that are the same byte for byte.")
    ] = False,
    spare: Annotated[
        bool, typer.Option("--spare", help="Print paths only, of all but the largest file of each group.")
    ] = False,
    null: NullOption = False,
    as_json: JsonOption = False,
) -> None:
    """List photos that are copies of each other, in groups with an empty line between them.

    A line is "same" (byte for byte as another of the group) or "near" (the same picture resized, compressed
    again, brightened, or cropped by up to a tenth), a tab, and the path; the largest file comes first. No
    model is run; photos whose vectors are close are looked at. With --json: {"groups": [[{"file", "same"}]],
    "photos"}.
    """
    from mmgem.search.duplicates import find_duplicates
    from mmgem.search.search import PhotoIndex
    from mmgem.utils.progress import track

    if as_json and (spare or null):
        raise UsageError("give one of --json and --spare")
    photos = PhotoIndex.open(default_index() if idx is None else idx)
    groups = find_duplicates(photos, not exact, partial(track, label="Comparing", unit=" blocks"))
    if as_json:
        rows = [
            [{"file": str(path), "same": same} for path, same in zip(group.paths, group.exact, strict=True)]
            for group in groups
        ]
        print_json({"groups": rows, "photos": len(photos.files)})
        return
    for number, group in enumerate(groups):
        if spare or null:
            for path in group.paths[1:] if spare else group.paths:
                print(path, end="\0" if null else "\n")
            continue
        if number:
            print()
        for path, same in zip(group.paths, group.exact, strict=True):
            print(f"{'same' if same else 'near'}\t{path}")
    count = sum(len(group.paths) - 1 for group in groups)
    copies, found = counted(count, "copy", "copies"), counted(len(groups), "group")
    note(f"{copies} in {found}, of {counted(len(photos.files), 'photo')}")
