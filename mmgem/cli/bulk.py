"""``mmgem bulk``: embed a large collection, part by part, with several workers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.inputs import (
    DeviceOption,
    ModelOption,
    PrecisionOption,
    check_device,
    note_left_out,
    quiet_libraries,
)
from mmgem.cli.output import JsonOption, counted, note, print_json


def bulk(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of photos, or shards (tar, parquet).")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the parts.")],
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    captions: Annotated[bool, typer.Option("--captions", help="Write a caption of each photo too.")] = False,
    part_size: Annotated[
        int, typer.Option(min=1, metavar="N", help="Photos in a part, what a kill loses at most.")
    ] = 1000,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Processes on Ray; 0: this one, without.  [default: one a CPU]"
        ),
    ] = None,
    address: Annotated[
        str | None, typer.Option(metavar="A", help="Of a Ray cluster.  [default: this machine]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Embed a large collection of photos into parquet files, its parts.

    DIR/parts gets 000000.parquet and on: path or key, size, embedding and caption of each photo. Stopped, the
    same command goes on with the parts that are missing; a worker that dies is replaced. Photos that cannot
    be read are left out and listed in DIR/skipped.jsonl. With --json: {"parts", "written", "photos",
    "embedded", "skipped", "died", "seconds"}; written and embedded: by this run; died: its workers.
    """
    if workers == 0:
        check_device(device)
        quiet_libraries()
    from mmgem.bulk import embed_collection

    report = embed_collection(source, out, model, captions, part_size, workers, address, device, precision)
    if source.is_dir():
        note_left_out([source])
    if report.died:
        note(f"workers that died: {report.died}; their parts were made by others")
    if report.skipped:
        first = report.skipped[0]
        name = ": ".join(part for part in (first.shard, first.key) if part)
        note(f"skipped {len(report.skipped)}, {out}/skipped.jsonl lists them; first {name}: {first.reason}")
    if as_json:
        counts = {name: getattr(report, name) for name in ("parts", "written", "photos", "embedded", "died")}
        print_json({**counts, "skipped": len(report.skipped), "seconds": round(report.seconds, 3)})
        return
    existing = f" ({report.parts - report.written} were there)" if report.written < report.parts else ""
    photos, parts = counted(report.photos, "photo"), counted(report.parts, "part")
    print(f"{out}: {photos} in {parts}{existing}, {report.seconds:.1f} s")
