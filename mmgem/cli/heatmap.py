"""``mmgem heatmap``: where in a photo a text is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.inputs import DeviceOption, ModelOption, PrecisionOption, find_photos, load_model
from mmgem.cli.output import JsonOption, note, prepare_output_file, print_json
from mmgem.errors import UsageError
from mmgem.utils.files import atomic_file, same_file


def heatmap(
    photo: Annotated[Path, typer.Argument(metavar="PHOTO", help="A photo.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What to look for in it.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="F", help="Write the photo under its heat map.")
    ] = None,
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Show where in a photo a text is: prints the hottest place, x and y in pixels, and its similarity.

    The colours of the picture span the map's own range: they say where, not whether; that the text is
    probably not in the photo is said beside them. With --json: {"file", "text", "peak": [x, y], "score",
    "match": how likely it is in the photo (null: the model is not calibrated), "heat": rows of cosines from
    the top}.
    """
    if not text.strip():
        raise UsageError("the text to look for is empty")
    if out is not None:
        prepare_output_file(out, ".png", ".jpg", ".jpeg", ".webp")
        if same_file(out, photo):
            raise UsageError(f"{out}: is the photo itself; write its heat map to another file")
    find_photos([photo])
    from mmgem.data.images import image_size

    width, height = image_size(photo)
    mmgem = load_model(model, device, precision)
    from PIL import Image

    from mmgem.inference.calibration import MATCH_THRESHOLD
    from mmgem.report.heatmap import draw_heatmap

    cosines = mmgem.heatmap(photo, [text])[0]
    row, column = divmod(int(cosines.argmax()), cosines.shape[1])
    peak = [(column + 0.5) / cosines.shape[1] * width, (row + 0.5) / cosines.shape[0] * height]
    if out is not None:
        try:
            with atomic_file(out) as file:
                kind = Image.registered_extensions()[out.suffix.lower()]
                draw_heatmap(photo, cosines).save(file, kind)
            note(f"wrote {out}")
        except OSError as error:
            raise UsageError(f"{out}: cannot be written: {error.strerror or error}") from error
    score = float(cosines.max())
    match = None
    if mmgem.calibration is not None:
        match = mmgem.calibration.fits(mmgem.embed_images([photo])[0], mmgem.embed_queries([text])[0])
    if as_json:
        found = {"peak": [round(x, 1) for x in peak], "score": round(score, 6), "match": match}
        print_json({"file": str(photo), "text": text, **found, "heat": cosines.round(4).tolist()})
    else:
        if match is not None and match < MATCH_THRESHOLD:
            note(f"probably not in this photo: that it fits is {match:.0%} likely")
        print(f"peak at {peak[0]:.0f},{peak[1]:.0f} (similarity {score:.3f})")
