"""Photos and texts a second, end to end, on a CPU: plain torch and what is faster.

    python benchmarks/embed.py --data flickr8k/captions.jsonl [--peer PYTHON] [--quick]

Photos are enlarged to 12 megapixels, with grain, in a temporary folder: JPEG files of the size a camera
writes. "Plain torch" decodes them whole, one after the other, and runs the modules as they are. "torch" is
what ``embed_images`` does: JPEG decoded at a fraction of its size, in threads. The others are exported
graphs behind the same call. Ways take turns; medians and ratios to plain torch are printed, the lowest cosine
of an embedding with that of "torch" (the same pixels), and what decoding at a fraction does by itself.

``--peer`` is the Python of another environment with sentence-transformers
(``python -m venv st && st/bin/pip install torch "sentence-transformers[image]>=6"``): it encodes the same
files and texts with random models of like size, a ViT-Ti/16 of CLIP's form (5.6 M parameters, 1.3 GMACs an
image; the encoder of ``tiny`` has 3.4 M and takes 1.9, at three sides) and six blocks of SmolLM2's shape.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmgem import MMGEM
from mmgem.checkpoints.model_folder import load_model
from mmgem.checkpoints.resolve import resolve
from mmgem.data.images import open_image
from mmgem.data.readers import load_dataset
from mmgem.data.transforms import normalise, to_square
from mmgem.export.graphs import write_onnx
from mmgem.export.write import export_graphs
from mmgem.inference.pyramid import global_sizes, input_sizes
from mmgem.inference.texts import unit_rows

WAYS: list[tuple[Any, Any]] = [
    ("onnx", "float32"),
    ("onnx", "int8"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    ("openvino", "int8"),
]
GRAIN, QUALITY = 5.0, 92


class Way:
    """One way to embed, its times and what it found; ``photos`` and ``texts`` give vectors, or the seconds
    that somebody else measured."""

    def __init__(self, name: str, photos: Callable[[], Any], texts: Callable[[], Any]):
        self.name, self.work = name, {"photos": photos, "texts": texts}
        self.seconds: dict[str, list[float]] = {"photos": [], "texts": []}
        self.found: dict[str, np.ndarray] = {}

    def run(self, kind: str) -> None:
        began = time.perf_counter()
        out = self.work[kind]()
        if isinstance(out, float):
            self.seconds[kind].append(out)
            return
        self.seconds[kind].append(time.perf_counter() - began)
        self.found[kind] = out


def enlarge(sources: Sequence[Path], folder: Path) -> list[Path]:
    """Write each picture at 12 megapixels."""
    rng = np.random.default_rng(0)
    made = []
    for number, source in enumerate(sources):
        small = open_image(source)
        size = (4000, 3000) if small.width >= small.height else (3000, 4000)
        pixels = np.asarray(small.resize(size, Image.Resampling.BICUBIC), np.float32)
        pixels = pixels + rng.normal(0, GRAIN, (*pixels.shape[:2], 1)).astype(np.float32)
        path = folder / f"{number}.jpg"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=QUALITY)
        made.append(path)
    return made


@torch.inference_mode()
def plain_photos(model: MMGEM, paths: Sequence[Path]) -> np.ndarray:
    """What one writes without a second thought."""
    prep, parts = model.tokenizer.prep, []
    for at in range(0, len(paths), model.batch):
        opened = [open_image(path) for path in paths[at : at + model.batch]]
        views = []
        for side in global_sizes(prep):
            scaled = dataclasses.replace(prep, size=side)
            pixels = np.stack([to_square(image, scaled) for image in opened])
            views.append(model.network.encode_image(model.network.encoder(normalise(pixels, prep))))
        parts.append(unit_rows(torch.stack(views).mean(0)[:, 0]))
    return np.concatenate(parts)


def peer_way(python: str, paths: Sequence[Path], texts: Sequence[str]) -> Way:
    """sentence-transformers in a process of its own, which works when it is told to."""
    script = Path(__file__).with_name("embed_peer.py")
    process = subprocess.Popen(
        [python, str(script), str(resolve("tiny"))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def ask(**job: list[str]) -> float:
        assert process.stdin is not None and process.stdout is not None
        print(json.dumps(job), file=process.stdin, flush=True)
        return float(process.stdout.readline())

    return Way(
        "sentence-transformers",
        lambda: ask(images=[str(path) for path in paths]),
        lambda: ask(texts=list(texts)),
    )


def ways_of(
    name: str, wanted: list[tuple[Any, Any]], place: Path, paths: list[Path], texts: list[str]
) -> list[Way]:
    """Plain torch, torch, and a way for each kind and precision of graphs."""
    source = resolve(name)
    network, tokenizer = load_model(source)
    (place / "traced").mkdir()
    write_onnx(network, input_sizes(tokenizer.prep), place / "traced")
    torch_model = MMGEM.from_pretrained(source, backend="torch")
    made = [
        Way("plain torch", lambda: plain_photos(torch_model, paths), lambda: torch_model.embed_texts(texts)),
        Way("torch", lambda: torch_model.embed_images(paths), lambda: torch_model.embed_texts(texts)),
    ]
    for kind, precision in wanted:
        folder = place / f"{kind}-{precision}"
        export_graphs(source, folder, kind, precision, traced=place / "traced")
        model = MMGEM.from_pretrained(folder)

        def photos(model: MMGEM = model) -> np.ndarray:
            return model.embed_images(paths)

        def said(model: MMGEM = model) -> np.ndarray:
            return model.embed_texts(texts)

        made.append(Way(f"{kind} {precision}", photos, said))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="any dataset mmgem reads")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", metavar="PYTHON")
    parser.add_argument("--quick", action="store_true", help="few of each and two ways, to see that it runs")
    options = parser.parse_args()
    if options.quick:
        options.photos, options.texts, options.rounds = 4, 32, 1
    wanted = [WAYS[0], WAYS[3]] if options.quick else WAYS
    records = load_dataset(options.data)[: max(options.photos, options.texts)]
    texts = [text for record in records for text in record.captions][: options.texts]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "photos").mkdir()
        paths = enlarge([record.image for record in records[: options.photos]], place / "photos")
        ways = ways_of(options.model, wanted, place, paths, texts)
        if options.peer:
            ways.append(peer_way(options.peer, paths, texts))
        for round_ in range(options.rounds + 1):
            for kind in ("photos", "texts"):
                for way in ways:
                    way.run(kind)
                    if not round_:  # the first is for warming up
                        way.seconds[kind].clear()
        megabytes = statistics.mean(path.stat().st_size for path in paths) / 1e6
    print(
        f"{len(paths)} photos of 12 megapixels ({megabytes:.1f} MB each), {len(texts)} texts, "
        f"{torch.get_num_threads()} threads, median of {options.rounds} rounds\n"
    )
    print(f"{'':24}{'photos/s':>9}{'ratio':>8}{'cosine':>9}{'texts/s':>11}{'ratio':>8}{'cosine':>9}")
    for way in ways:
        row = f"{way.name:24}"
        for kind, count, width in (("photos", len(paths), 9), ("texts", len(texts), 11)):
            seconds, plain = (statistics.median(w.seconds[kind]) for w in (way, ways[0]))
            row += f"{count / seconds:>{width}.1f}{plain / seconds:>7.2f}x"
            compared = way not in ways[:2] and kind in way.found
            row += f"{cosines(way, ways[1], kind).min():>9.5f}" if compared else f"{'':9}"
        print(row)
    decoded = cosines(ways[1], ways[0], "photos")
    print(
        f"\ntorch and plain torch (whole photos): cosine {decoded.min():.5f}, on average {decoded.mean():.5f}"
    )


def cosines(way: Way, other: Way, kind: str) -> np.ndarray:
    return (way.found[kind] * other.found[kind]).sum(1)


if __name__ == "__main__":
    main()
