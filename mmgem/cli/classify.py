"""``mmgem classify``: zero-shot classification with class names of your own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mmgem.cli.inputs import (
    DeviceOption,
    FilesArgument,
    ModelOption,
    PrecisionOption,
    failed_json,
    find_photos,
    load_model,
    map_photos,
)
from mmgem.cli.output import JsonOption, line_printer, print_json
from mmgem.data.texts import check_texts
from mmgem.errors import DataError, UsageError
from mmgem.utils.text_files import read_text


def classify(
    files: FilesArgument,
    classes: Annotated[
        str, typer.Option(metavar="A,B,C|FILE", help="Class names, or a file with one a line.")
    ],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Print the N most likely.")] = 3,
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Say which of the classes each photo shows: its path, then the most likely, tab-separated.

    If the model is calibrated for classes (mmgem calibrate), "none of these" comes first where it is likelier
    than not, and with it the percentages of all classes make 100. With --json: {"photos": [{"file", "class",
    "guesses": [{"class", "probability"}], "none"}], "failed": [{"file", "reason"}]}: "class" is the
    likeliest, null where none of these is likelier; "none" the probability of that, null for a model that is
    not calibrated; a "probability" is among the classes alone, as if one of them fitted.
    """
    names = read_classes(classes)
    photos = find_photos(files)
    mmgem = load_model(model, device, precision)
    from mmgem.evaluate.classify import class_embeddings
    from mmgem.evaluate.classify import classify as probabilities
    from mmgem.inference.calibration import MATCH_THRESHOLD

    prototypes = class_embeddings(mmgem.embed_texts, names)
    show = line_printer()
    rows: list[dict[str, Any]] = []
    failed: list[tuple[Path, str]] = []
    for photo, vector in map_photos(
        photos, lambda batch: list(mmgem.embed_images(batch)), "Classifying", failed
    ):
        probs = probabilities(vector[None], prototypes, mmgem.temperature)[0]
        guesses = [(names[i], float(probs[i])) for i in (-probs).argsort(kind="stable")[:top]]
        none = None
        if mmgem.calibration is not None:
            none_probs = mmgem.calibration.none_of_these(vector[None], prototypes)
            none = None if none_probs is None else float(none_probs[0])
        is_none = none is not None and none > MATCH_THRESHOLD
        if as_json:
            guesses_json = [{"class": name, "probability": round(share, 6)} for name, share in guesses]
            rounded = None if none is None else round(none, 6)
            best = None if is_none else guesses[0][0]
            rows.append({"file": str(photo), "class": best, "guesses": guesses_json, "none": rounded})
        else:
            verdict, some = [f"none of these {none:.0%}"] if is_none else [], 1 - (none or 0)
            show(
                "\t".join([str(photo), *verdict, *(f"{name} {some * share:.0%}" for name, share in guesses)])
            )
    if as_json:
        print_json({"photos": rows, "failed": failed_json(failed)})


def read_classes(text: str) -> list[str]:
    """Names separated by commas, or the lines of a file. Raises UsageError for fewer than two."""
    try:
        # Path.is_file raises for a list that is too long for a name.
        entries = read_text(Path(text)).split("\n") if os.path.isfile(text) else text.split(",")  # noqa: PTH113
    except (UsageError, DataError) as error:
        raise UsageError(
            f"--classes {text}: cannot be read: {str(error).removeprefix(f'{text}: ')}"
        ) from error
    names = list(dict.fromkeys(name for entry in entries if (name := entry.strip())))
    check_texts(names, "--classes")
    if len(names) < 2:
        raise UsageError(
            f"--classes {text!r}: give two or more names with commas between them, "
            "or an existing file with one a line"
        )
    return names
