"""``mmgem embed``: embeddings of photos, clips and texts, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mmgem.cli.clips import TimeOption, look_at, parse_time
from mmgem.cli.inputs import (
    BoxOption,
    DeviceOption,
    DimensionsOption,
    ModelOption,
    PrecisionOption,
    failed_json,
    find_photos,
    load_model,
    map_photos,
    parse_box,
)
from mmgem.cli.output import JsonOption, note, prepare_output_file, print_json
from mmgem.data.texts import check_texts
from mmgem.errors import UsageError
from mmgem.utils.files import atomic_file

if TYPE_CHECKING:
    import numpy as np


def embed(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILES", help="Photos, or folders of photos.")
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="A text to embed; repeatable.")
    ] = None,
    box: BoxOption = None,
    time: TimeOption = None,
    dimensions: DimensionsOption = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="Write the (n, D) float32 array here.")
    ] = None,
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Embed photos, clips and texts as vectors of unit length, whose dot products are similarities.

    Prints a line each: the path or text, then D numbers, tab-separated. Rows are in the order given, photos
    before texts, without photos that could not be read. With --box, photos are embedded as that box of each,
    with --time, clips as that moment;
    with --dimensions vectors are shorter, of unit length all the same. With --json:
    {"embeddings": [{"file" or "text", "vector"}], "dim", "failed": [{"file", "reason"}]}. With --out the
    vectors are in the file only; lines are the path or text of each of its rows.
    """
    texts, region, moment = text or [], parse_box(box), parse_time(time)
    if not files and not texts:
        raise UsageError("nothing to embed: give photos, or --text")
    if region is not None and not files:
        raise UsageError("--box needs photos")
    if moment is not None and not files:
        raise UsageError("--time needs clips")
    check_texts(texts, "--text")
    if not all(map(str.strip, texts)):
        raise UsageError("--text: the text is empty")
    if out is not None:
        prepare_output_file(out, ".npy")
    photos = find_photos(files, region) if files else []
    if dimensions is not None:
        _check_dimensions(dimensions, model)
    mmgem = load_model(model, device, precision)
    import numpy as np

    failed: list[tuple[Path, str]] = []
    results = map_photos(
        photos,
        lambda batch: look_at(
            batch,
            moment,
            region,
            lambda images, boxes: list(mmgem.embed_images(images, boxes, dimensions)),
            lambda clips, times: list(mmgem.embed_videos(clips, times, dimensions)),
        ),
        "Embedding",
        failed,
        region,
    )
    photo_vectors = list(results)
    text_vectors = mmgem.embed_texts(texts, dimensions)
    names = [("file", str(photo)) for photo, _ in photo_vectors] + [("text", text) for text in texts]
    vectors = np.concatenate(
        [np.array([vector for _, vector in photo_vectors]).reshape(-1, text_vectors.shape[1]), text_vectors]
    ).astype(np.float32)
    if out is not None:
        _save(out, vectors)
        note(f"wrote {len(vectors)} x {vectors.shape[1]} float32 to {out}")
    if as_json:
        rows: list[dict[str, Any]] = [{kind: name} for kind, name in names]
        if out is None:
            for row, vector in zip(rows, vectors, strict=True):
                row["vector"] = [round(x, 7) for x in vector.tolist()]
        print_json({"embeddings": rows, "dim": vectors.shape[1], "failed": failed_json(failed)})
    else:
        for (_, name), vector in zip(names, vectors, strict=True):
            numbers = (f"{x:.7f}" for x in vector.tolist()) if out is None else ()
            print("\t".join([" ".join(name.split()), *numbers]))


def _check_dimensions(dimensions: int, model: str) -> None:
    """Raises UsageError if the model's vectors have fewer; it is not loaded for that."""
    from mmgem.checkpoints.resolve import read_config, resolve
    from mmgem.inference.pca import check_dimensions

    check_dimensions(dimensions, read_config(resolve(model))[0].dim)


def _save(path: Path, vectors: np.ndarray) -> None:
    import numpy as np

    try:
        with atomic_file(path) as file:
            np.save(file, vectors)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error
