"""``mmgem caption``: a sentence for each photo or clip, for a box or a moment of it."""

from __future__ import annotations

from pathlib import Path

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
    model: ModelOption = "tiny",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = "float32",
    as_json: JsonOption = False,
) -> None:
    """Describe each photo or clip in a sentence: its path, a tab, the sentence.

    Of a clip (a video, an animated picture) frames are looked at together, with --time those of a moment;
    with --box its middle frame.

    With --json: {"captions": [{"file", "caption"}], "failed": [{"file", "reason"}]}.
    """
    region, moment = parse_box(box), parse_time(time)
    photos = find_photos(files, region)
    mmgem = load_model(model, device, precision)
    show = line_printer()
    captions: list[dict[str, str]] = []
    failed: list[tuple[Path, str]] = []
    results = map_photos(
        photos,
        lambda batch: look_at(
            batch,
            moment,
            region,
            lambda images, boxes: mmgem.caption(images, boxes, beams=beams),
            lambda clips, times: mmgem.caption_videos(clips, times, beams=beams),
        ),
        "Captioning",
        failed,
        region,
    )
    for photo, text in results:
        if as_json:
            captions.append({"file": str(photo), "caption": text})
        else:
            show(f"{photo}\t{text}")
    if as_json:
        print_json({"captions": captions, "failed": failed_json(failed)})
