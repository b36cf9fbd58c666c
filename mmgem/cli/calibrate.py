"""``mmgem calibrate``: learn from data what a model's similarities, and log P of its captions, mean;
kept in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.inputs import DeviceOption, PrecisionOption, load_model
from mmgem.cli.output import JsonOption, print_json
from mmgem.errors import CheckpointError, UsageError


def calibrate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or name.")],
    data: Annotated[
        list[Path], typer.Option(metavar="D", help="Photos with captions, or labels; repeatable.")
    ],
    split: Annotated[str | None, typer.Option(metavar="S", help="Only this split of --data.")] = None,
    limit: Annotated[
        int, typer.Option(min=4, metavar="N", help="Captioned and labelled photos, at most, each.")
    ] = 2000,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Let MODEL say what is probably no match: learned from photos that it was not trained on.

    Captions calibrate search: hits get the probability that they match; and captions, of up to 400 photos:
    `mmgem caption --confidence`. Labels calibrate classify: it can say "none of these"; and, with captions,
    the search for names. All lies in one file of the model's folder, in the place of an earlier calibration;
    indexes made by the model stay valid.

    Prints AUROC by the size of the index and by the number of classes: how often the best similarity is
    higher where the photo, or class, that is asked for is there than where it has been taken out; fitted on
    half of the photos and measured on the other. And how often log P of a caption is higher where people say
    half of its words or more. With --json: {"file", "photos", "texts", "labelled", "search": {size: AUROC},
    "names": {size: AUROC}, "classes": {count: AUROC}, "captions": AUROC or null}.
    """
    from mmgem.checkpoints.model_lock import lock_model
    from mmgem.checkpoints.resolve import fingerprint, resolve
    from mmgem.data.readers import load_dataset
    from mmgem.evaluate.calibrate import CalibrationOptions, fit_calibration
    from mmgem.inference.calibration import CALIBRATION_FILE

    folder = resolve(model)
    records = [record for path in data for record in load_dataset(path, split=split)]
    calibrated = fingerprint(folder)
    mmgem = load_model(model, device, precision)
    write = mmgem.caption_with_confidence if mmgem.network.captions else None
    calibration, report = fit_calibration(mmgem, records, CalibrationOptions(max_photos=limit), write)
    file = folder / CALIBRATION_FILE
    try:
        with lock_model(folder):
            if fingerprint(folder) != calibrated:
                raise CheckpointError(f"{folder}: holds another model by now; calibrate that")
            calibration.save(folder)
    except OSError as error:
        raise UsageError(f"{file}: cannot be written: {error.strerror}") from error
    if as_json:
        counts = {name: getattr(report, name) for name in ("photos", "texts", "labelled")}
        results = {name: getattr(report, name) for name in ("search", "names", "classes", "captions")}
        print_json({"file": str(file), **counts, **results})
        return
    for size, value in report.search.items():
        print(f"search among {size:,} photos: AUROC {value:.3f}")
    for size, value in report.names.items():
        print(f"search for a name among {size:,} photos: AUROC {value:.3f}")
    for size, value in report.classes.items():
        print(f"classify among {size:,} classes: AUROC {value:.3f}")
    if report.captions is not None:
        print(f"captions: AUROC {report.captions:.3f}")
    print(file)
