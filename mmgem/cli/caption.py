"""``mmgem caption``: a sentence for each photo or clip, for a box or a moment of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mmgem.cli.clips import TimeOption, look_at, parse_time
from mmgem.cli.inputs import (
    BeamsOption,
    BoxOption,
    DeviceOption,
    FilesArgument,
    ModelOption,
    PrecisionOption,
    failed_json,
    find_photos,
    load_model,
    map_photos,
    parse_box,
)
from mmgem.cli.output import JsonOption, line_printer, print_json
from mmgem.inference.caption_options import CAPTION_DEFAULTS


def caption(
    files: FilesArgument,
    box: BoxOption = None,
    time: TimeOption = None,
    beams: BeamsOption = CAPTION_DEFAULTS.beams,
    confidence: Annotated[
        bool,
        typer.Option("--confidence", help="Put how sure the model is behind each sentence."),
    ] = False,
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Describe each photo or clip in a sentence: its path, a tab, the sentence.

    Of a clip (a video, an animated picture) frames are looked at together, with --time those of a moment;
    with --box its middle frame.

    With --confidence a tab and the share of the sentence's words that people are expected to say of the photo
    too, like 0.71; of a model that is not calibrated for captions its log P a token, like "log P -1.23".

    With --json: {"captions": [{"file", "caption", "log_prob", "confidence" or null}], "failed": [{"file",
    "reason"}]}.
    """
    region, moment = parse_box(box), parse_time(time)
    photos = find_photos(files, region)
    mmgem = load_model(model, device, precision)
    show = line_printer()
    captions: list[dict[str, str | float | None]] = []
    failed: list[tuple[Path, str]] = []
    results = map_photos(
        photos,
        lambda batch: look_at(
            batch,
            moment,
            region,
            lambda images, boxes: mmgem.caption_with_confidence(images, boxes, beams=beams),
            lambda clips, times: mmgem.caption_videos_with_confidence(clips, times, beams=beams),
        ),
        "Captioning",
        failed,
        region,
    )
    for photo, made in results:
        if as_json:
            sure = {"log_prob": made.log_prob, "confidence": made.confidence}
            captions.append({"file": str(photo), "caption": made.text, **sure})
            continue
        sureness = f"log P {made.log_prob:.2f}" if made.confidence is None else f"{made.confidence:.2f}"
        show(f"{photo}\t{made.text}" + (f"\t{sureness}" if confidence else ""))
    if as_json:
        print_json({"captions": captions, "failed": failed_json(failed)})
