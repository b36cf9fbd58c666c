"""Films with known cuts, made of photos: are the cuts found, is the right shot first, how fast is it?

    python benchmarks/video.py tiny --data flickr8k/captions.jsonl [--photos 60] [--work /tmp/mmgem-video]
    python benchmarks/video.py tiny --data flickr8k/captions.jsonl --clips clips/    # and shots of real ones

Each photo of the dev split is shown for two seconds at 1280 x 720 and 25 frames a second while it slowly
grows and moves. The film is written by several encoders: as x264 does by default (a key frame where it sees a
cut), with a key frame a second wherever the cuts are (phones, cameras), with one in ten seconds and none at
cuts, and as MPEG-4 in AVI. A cut counts as found if one is told within 0.1 s of it. Precision, recall and F1
are over all cuts of a film. Queries are the first caption of each photo, and all five as one text, against
all shots of the film (a photo with a like caption may be as right) and against the photos. Speed: seconds of
film a second of indexing, embedding included; beside it the same pictures as photos: the middle frame of each
shot, written as JPEG files and indexed. Processor seconds count all threads, so that they say something on a
busy machine, too.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from memory import resident
from PIL import Image

from mmgem import MMGEM, PhotoIndex, find_shots, load_dataset
from mmgem.data.records import Record

SIZE = (1280, 720)
FPS, SECONDS, TOLERANCE = 25, 2.0, 0.1
GROWTH, SHIFT = 0.12, 0.05  # of the picture's side, over a shot
ENCODERS: dict[str, tuple[str, str, int | None, dict[str, str]]] = {
    "x264, key frames at cuts": ("a.mp4", "libx264", None, {"preset": "veryfast"}),
    "x264, a key frame a second": (
        "b.mov", "libx264", FPS, {"preset": "veryfast", "x264-params": "scenecut=0"},
    ),
    "x264, one in ten seconds": (
        "c.mkv", "libx264", 10 * FPS, {"preset": "veryfast", "x264-params": "scenecut=0"},
    ),
    "MPEG-4 in AVI": ("d.avi", "mpeg4", 12, {"b": "6000000"}),
}  # fmt: skip


def moving(image: Image.Image, seed: int) -> Iterator[Image.Image]:
    """The frames of a shot: a photo that grows or shrinks and moves."""
    rng = np.random.default_rng(seed)
    grow, shift = rng.choice([-1, 1]), rng.uniform(-SHIFT, SHIFT, 2)
    width, height = image.size
    for i in range(round(SECONDS * FPS)):
        at = i / (SECONDS * FPS)
        edge = GROWTH / 2 * (at if grow > 0 else 1 - at) + SHIFT
        left, top = (edge + shift * at) * (width, height)
        box = (left, top, left + width * (1 - 2 * edge), top + height * (1 - 2 * edge))
        yield image.resize(SIZE, Image.Resampling.BILINEAR, box=box)


def write_film(
    path: Path, photos: Sequence[Path], encoder: tuple[str, str, int | None, dict[str, str]]
) -> None:
    _, codec, gop, options = encoder
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=FPS, options=options)
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        if gop is not None:
            stream.gop_size = gop
        for seed, photo in enumerate(photos):
            for frame in moving(Image.open(photo).convert("RGB"), seed):
                container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode(None))


def matched(found: Sequence[float], cuts: Sequence[float]) -> int:
    """How many of ``cuts`` have a found one, each its own, within the tolerance."""
    waiting, count = sorted(found), 0
    for cut in cuts:
        near = next((time for time in waiting if abs(time - cut) <= TOLERANCE), None)
        if near is not None:
            waiting.remove(near)
            count += 1
    return count


def measure(model: MMGEM, work: Path, name: str, records: Sequence[Record]) -> dict[str, Any]:
    """One encoder's film: cuts, queries, speed."""
    file = work / "films" / ENCODERS[name][0]
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_film(file.with_name(f"part-{file.name}"), [Path(r.image) for r in records], ENCODERS[name])
        file.with_name(f"part-{file.name}").rename(file)
    cuts = [SECONDS * number for number in range(1, len(records))]
    began, busy_before = time.perf_counter(), time.process_time()
    found = [shot.start for shot in find_shots(file)][1:]
    cutting, busy = time.perf_counter() - began, time.process_time() - busy_before
    right = matched(found, cuts)
    precision, recall = right / max(1, len(found)), right / len(cuts)
    index, seconds = indexed(model, file, work)
    middles = [SECONDS * (number + 0.5) for number in range(len(records))]
    photo_index, photo_seconds = indexed(model, stills(file, middles, work), work)
    firsts: dict[str, float] = {}
    for kind, texts in (
        ("first caption", [record.captions[0] for record in records]),
        ("all captions", [" ".join(record.captions) for record in records]),
    ):
        hits = [index.search_text(text, 1)[0] for text in texts]
        right = sum(hit.start <= at <= hit.end for hit, at in zip(hits, middles, strict=True))
        firsts[f"right shot first, {kind}"] = round(right / len(records), 3)
        hits = [photo_index.search_text(text, 1)[0] for text in texts]
        right = sum(hit.path.stem == f"{number:05}" for number, hit in enumerate(hits))
        firsts[f"right photo first, {kind}"] = round(right / len(records), 3)
    length = SECONDS * len(records)
    return {
        "film": name,
        "seconds": length,
        "cuts": len(cuts),
        "found": len(found),
        "precision": round(precision, 3),
        "recall": round(recall, 3),
        "F1": round(2 * precision * recall / max(1e-9, precision + recall), 3),
        **firsts,
        "cutting, times real time": round(length / cutting, 1),
        "indexing, times real time": round(length / seconds, 1),
        "as photos, times real time": round(length / photo_seconds, 1),
        "processor seconds a second of film, cutting": round(busy / length, 4),
    }


def indexed(model: MMGEM, source: Path, work: Path) -> tuple[PhotoIndex, float]:
    """A new index of a film alone, or of a folder, and what it took in seconds."""
    folder = source
    if source.is_file():
        folder = work / "alone" / source.stem
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / source.name).exists():
            os.link(source, folder / source.name)
    out = work / f"{time.time_ns()}.idx"
    began = time.perf_counter()
    return model.index(folder, out), time.perf_counter() - began


def stills(film: Path, times: Sequence[float], work: Path) -> Path:
    """The frames of the film at ``times`` as a folder of photos."""
    from mmgem.data.clips import read_frames

    folder = work / "stills" / film.stem
    folder.mkdir(parents=True, exist_ok=True)
    for number, time_of_frame in enumerate(times):
        if not (folder / f"{number:05}.jpg").exists():
            read_frames(film, [time_of_frame], 720)[0].save(folder / f"{number:05}.jpg", quality=92)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--clips", type=Path, help="a folder of real clips: their shots are printed")
    parser.add_argument("--work", type=Path, default=Path("/tmp/mmgem-video"))
    options = parser.parse_args()
    model = MMGEM.from_pretrained(options.model)
    records = list(
        islice((r for r in load_dataset(options.data) if r.split == options.split), options.photos)
    )
    work = options.work / f"{len(records)}"
    work.mkdir(parents=True, exist_ok=True)
    model.embed_images([records[0].image] * 8)  # warm
    for name in ENCODERS:
        print(json.dumps(measure(model, work, name, records)), flush=True)
    print(json.dumps({"resident_MB": resident() // 10**6}))
    for clip in sorted(options.clips.iterdir()) if options.clips else ():
        if clip.suffix in (".mp4", ".gif"):
            print(clip.name, [(shot.start, shot.end, len(shot.frames)) for shot in find_shots(clip)])


if __name__ == "__main__":
    main()
