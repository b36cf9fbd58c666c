"""What models say of photos and find for everyday words, side by side, to be looked at one by one.

    python benchmarks/everyday.py tiny other/model --photos a.jpg b.jpg --queries "a cat" "a bill" \
        --out everyday.jpg

Writes a sheet (captions under every photo, then the first hit of every query with its cosine, each model in
its row) and prints the same as JSON. Nothing is scored: right or wrong is for a person to say.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from mmgem.api import MMGEM

SIDE, LINES, COLUMNS = 220, 4, 6


def say(name: str, photos: list[Path], queries: list[str]) -> dict[str, Any]:
    """Captions of ``photos`` and the first photo for each of ``queries``, by the model ``name``."""
    model = MMGEM.from_pretrained(name)
    captions = model.caption(list(photos))
    cosines = model.embed_queries(queries) @ model.embed_images(list(photos)).T
    best = cosines.argmax(1)
    hits = [(photos[n].name, round(float(row[n]), 3)) for n, row in zip(best, cosines, strict=True)]
    return {
        "captions": dict(zip([photo.name for photo in photos], captions, strict=True)),
        "hits": dict(zip(queries, hits, strict=True)),
    }


def sheet(found: dict[str, dict[str, Any]], photos: list[Path], queries: list[str]) -> Image.Image:
    """The cells, :data:`COLUMNS` in a row."""
    by_name = {photo.name: photo for photo in photos}
    cells = [
        (photo, [f"{name}: {scores['captions'][photo.name]}" for name, scores in found.items()])
        for photo in photos
    ]
    for query in queries:
        for name, scores in found.items():
            hit, cosine = scores["hits"][query]
            cells.append((by_name[hit], [f'"{query}"', f"{name}, {cosine:.2f}"]))
    height = SIDE + 13 * LINES * len(found) + 14
    rows = -(-len(cells) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * (SIDE + 10), rows * height), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for n, (photo, told) in enumerate(cells):
        x, y = n % COLUMNS * (SIDE + 10), n // COLUMNS * height
        with Image.open(photo) as image:
            small = image.convert("RGB")
            small.thumbnail((SIDE, SIDE))
        page.paste(small, (x, y))
        lines = [line for text in told for line in textwrap.wrap(text, 38)[:LINES]]
        draw.multiline_text((x, y + SIDE + 3), "\n".join(lines), fill="black", font=font, spacing=1)
    return page


def main() -> None:
    """Ask, draw and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+")
    parser.add_argument("--photos", nargs="+", type=Path, required=True)
    parser.add_argument("--queries", nargs="*", default=[])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    found = {name: say(name, options.photos, options.queries) for name in options.models}
    sheet(found, options.photos, options.queries).save(options.out, quality=88)
    print(json.dumps(found, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
