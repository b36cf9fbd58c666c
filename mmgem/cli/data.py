"""``mmgem data``: data sets looked at, cleaned, and in other forms."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.data_clean import caption_labels, check, filter_, recaption
from mmgem.cli.output import JsonOption, note_skipped, print_json
from mmgem.errors import UsageError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


class ShardFormat(StrEnum):
    """What shards are."""

    tar = "tar"
    parquet = "parquet"


@app.callback()
def _data() -> None:
    """Check and clean data sets, and write them in other forms."""


@app.command("pack", short_help="Write a data set as shards.")
def pack(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Any dataset mmgem reads.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the shards.")],
    split: Annotated[str | None, typer.Option(metavar="S", help="Only this split of the data.")] = None,
    format: Annotated[
        ShardFormat, typer.Option(help="Tar in webdataset's layout, or parquet.")
    ] = ShardFormat.tar,
    per_shard: Annotated[int | None, typer.Option(min=1, metavar="N", help="Photos in a shard.")] = None,
    shard_mb: Annotated[
        int | None, typer.Option(min=1, metavar="M", help="Or its size in megabytes.  [default: 256]")
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=1, metavar="PX", help="Shrink photos whose short side is above this.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write a data set as shards for training: photos and their captions, regions and labels.

    DIR gets SPLIT-00000.tar and on, for every split. Stopped, the same command goes on where it was; the same
    data and options give the same bytes. Photos that cannot be decoded are reported and left out; the others
    are copied as they are unless shrunk. Prints the shards. With --json:
    {"shards", "samples", "bytes", "kept", "skipped", "problems"}; kept: shards that were finished before.
    """
    if per_shard and shard_mb:
        raise UsageError("--per-shard and --shard-mb exclude each other")
    from mmgem.data.readers import load_dataset
    from mmgem.data.shards.write import pack as write

    records = load_dataset(source, split=split)
    report = write(records, out, format.value, per_shard or 0, shard_mb or 0, size or 0)
    note_skipped(report.problems)
    if as_json:
        counts = {"samples": report.samples, "bytes": report.bytes, "kept": report.kept}
        skipped = {"skipped": len(report.problems), "problems": report.problems}
        print_json({"shards": [str(path) for path in report.shards], **counts, **skipped})
    else:
        for path in report.shards:
            print(path)


app.command("check", short_help="Copies, broken photos, captions that say nothing.")(check)
app.command("filter", short_help="Leave out captions that do not fit.")(filter_)
app.command("recaption", short_help="The model's captions where the given do not fit.")(recaption)
app.command("caption-labels", short_help="Captions for photos that have a label only.")(caption_labels)
