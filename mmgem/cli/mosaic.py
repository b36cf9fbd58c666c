"""``mmgem mosaic``: canvases of captioned photos, as a data set of regions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.output import JsonOption, note_skipped, print_json


def mosaic(
    data: Annotated[Path, typer.Argument(metavar="D", help="Any captioned dataset mmgem reads.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for canvases and dataset.")],
    split: Annotated[str | None, typer.Option(metavar="S", help="Only this split of the data.")] = None,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="How many canvases.")] = 1000,
    side: Annotated[int, typer.Option(min=32, metavar="PX", help="Their side in pixels.")] = 320,
    seed: Annotated[int, typer.Option(metavar="N", help="Another seed, another set.")] = 0,
    twins: Annotated[
        bool, typer.Option("--twins", help="Every other canvas has the photos of the one before elsewhere.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Paste 2 to 4 photos on each canvas: every photo is a region with its captions.

    Prints the dataset file, DIR/mosaics.jsonl. The same photos, numbers and seed give the same set. With
    --json: {"data", "canvases", "regions", "skipped"}.
    """
    from mmgem.data.mosaics import make_mosaics
    from mmgem.data.readers import load_dataset
    from mmgem.data.records import read_jsonl

    path, problems = make_mosaics(load_dataset(data, split=split), out, count, seed, side, twins)
    note_skipped(problems)
    if as_json:
        records = read_jsonl(path)
        regions = sum(len(record.regions) for record in records)
        counts = {"canvases": len(records), "regions": regions, "skipped": len(problems)}
        print_json({"data": str(path), **counts})
    else:
        print(path)
