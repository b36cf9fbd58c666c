"""``mmgem demo``: everything the model does, on photos, as one web page."""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.inputs import DeviceOption, ModelOption, PrecisionOption, load_model, quiet_libraries
from mmgem.cli.output import note, note_skipped


def demo(
    photos: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Your own folder of photos instead of the samples.")
    ] = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the page and the index.")] = Path(
        "demo"
    ),
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
) -> None:
    """Index, search, caption and classify photos, and show it all on one page; prints its path.

    The sample photos are fetched once (20 MB) from the scikit-image and scikit-learn packages. Beside the
    page are a contact sheet and the index, which mmgem search can use.
    """
    quiet_libraries()
    from mmgem.checkpoints.resolve import lasting_name
    from mmgem.demo import run_demo

    result = run_demo(
        out, photos, lasting_name(model), note, partial(load_model, device=device, precision=precision)
    )
    note_skipped(result.problems)
    command = "mmgem" if shutil.which("mmgem") else sys.argv[0]  # not yet on the path after make demo
    note(f'search it yourself: {command} search {result.index} "a dog"')
    print(result.page)
