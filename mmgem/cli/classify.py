"""``mmgem classify``: zero-shot classification with class names of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mmgem.cli.inputs import FilesArgument, ModelOption, failed_json, find_photos, load_model, map_photos
from mmgem.cli.output import JsonOption, line_printer, print_json
from mmgem.errors import UsageError, why


def classify(
    files: FilesArgument,
    classes: Annotated[
        str, typer.Option(metavar="A,B,C|FILE", help="Class names, or a file with one a line.")
    ],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="Print the N most likely.")] = 3,
    model: ModelOption = "tiny",
    as_json: JsonOption = False,
) -> None:
    """Say which of the classes each photo shows: its path, then the most likely, tab-separated.

    With --json: {"photos": [{"file", "guesses": [{"class", "probability"}]}],
    "failed": [{"file", "reason"}]}.
    """
    names = read_classes(classes)
    photos = find_photos(files)
    mmgem = load_model(model)
    from mmgem.evaluate.classify import class_embeddings
    from mmgem.evaluate.classify import classify as probabilities

    prototypes = class_embeddings(mmgem.embed_texts, names)
    show = line_printer()
    rows: list[dict[str, Any]] = []
    failed: list[tuple[Path, str]] = []
    for photo, vector in map_photos(
        photos, lambda batch: list(mmgem.embed_images(batch)), "Classifying", failed
    ):
        probs = probabilities(vector[None], prototypes, mmgem.temperature)[0]
        guesses = [(names[i], float(probs[i])) for i in (-probs).argsort(kind="stable")[:top]]
        if as_json:
            guesses_json = [{"class": name, "probability": round(share, 6)} for name, share in guesses]
            rows.append({"file": str(photo), "guesses": guesses_json})
        else:
            show("\t".join([str(photo), *(f"{name} {share:.0%}" for name, share in guesses)]))
    if as_json:
        print_json({"photos": rows, "failed": failed_json(failed)})


def read_classes(text: str) -> list[str]:
    """Names separated by commas, or the lines of a file. Raises UsageError for fewer than two."""
    path = Path(text)
    try:
        entries = path.read_text(encoding="utf-8").splitlines() if path.is_file() else text.split(",")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--classes {path}: cannot be read: {why(error)}") from error
    names = list(dict.fromkeys(name for entry in entries if (name := entry.strip())))
    if len(names) < 2:
        raise UsageError(
            f"--classes {text!r}: give two or more names with commas between them, "
            "or an existing file with one a line"
        )
    return names
