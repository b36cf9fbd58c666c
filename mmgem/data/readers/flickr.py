"""Flickr8k and Flickr30k caption files: the original token file and the CSV variants that circulate.

| file | a line |
|---|---|
| ``Flickr8k.token.txt``, ``results_20130124.token`` | ``name.jpg#0<tab>caption`` |
| ``captions.txt`` | header ``image,caption``, then CSV |
| ``results.csv`` | header ``image_name| comment_number| comment``, then the same with pipes |

White space in captions is tidied; blank captions are dropped.
"""

from __future__ import annotations

import csv
import io
import os
import re
from pathlib import Path

from mmgem.data.readers.files import grouped, images_folder
from mmgem.data.records import Record
from mmgem.errors import DataError
from mmgem.utils.text_files import read_text

_TOKEN = re.compile(r"(.+?)#(\d+)\t(.*)")
# The second pipe is optional: the Flickr30k CSV everybody has lacks it on one line.
_PIPES = re.compile(r"([^|]+?)\s*\|\s*(\d+)\s*(?:\|\s*|\s+|$)(.*)")
_PIPE_HEADER = re.compile(r"image(_name)?\s*\|\s*comment_number\s*\|\s*comment\s*", re.IGNORECASE)
_CSV_HEADER = ["image", "caption"]
_FOLDERS = (
    "Flicker8k_Dataset",
    "Flickr8k_Dataset",
    "Flickr8k_Dataset/Flicker8k_Dataset",
    "flickr30k-images",
    "flickr30k_images",
    "flickr30k_images/flickr30k_images",
)
_SPLIT_FILES = {"trainImages.txt": "train", "devImages.txt": "dev", "testImages.txt": "test"}


def read_flickr_tokens(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
) -> list[Record]:
    """Read a token file; splits are those of Flickr8k's ``*trainImages.txt`` and so on, if beside it.

    ``images`` is the images folder, looked for near the file if None. Raises DataError naming the line that
    is wrong, UsageError if the file or the images folder is not found.
    """
    path = Path(path)
    pairs = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        match = _TOKEN.fullmatch(line)
        if match is None:
            raise DataError(f"{path}:{number}: must be name#number, a tab and a caption, not {line[:60]!r}")
        pairs.append((match[1], match[3]))
    return _records(path, images, pairs, _splits(path.parent))


def read_caption_csv(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
) -> list[Record]:
    """Read ``image,caption`` CSV (commas in an unquoted caption are fine) or the Flickr30k CSV with pipes.

    ``images`` is the images folder, looked for near the file if None. Raises DataError naming the line that
    is wrong, UsageError if the file or the images folder is not found.
    """
    path = Path(path)
    text = read_text(path)
    header = text.lstrip().partition("\n")[0]
    if is_pipe_header(header):
        pairs = _pipe_pairs(path, text)
    elif is_csv_header(header):
        pairs = _csv_pairs(path, text)
    else:
        raise DataError(f"{path}:1: the header must be image,caption or with pipes, not {header[:60]!r}")
    return _records(path, images, pairs, None)


def is_token_line(line: str) -> bool:
    """Whether ``line`` could be one of a Flickr token file."""
    return _TOKEN.fullmatch(line) is not None


def is_csv_header(line: str) -> bool:
    """Whether ``line`` is the header ``image,caption``."""
    return [name.strip().strip('"').lower() for name in line.split(",")] == _CSV_HEADER


def is_pipe_header(line: str) -> bool:
    """Whether ``line`` is the header of the Flickr30k CSV with pipes."""
    return _PIPE_HEADER.fullmatch(line.strip()) is not None


def _pipe_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    pairs = []
    header = True
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        if header:
            header = False
            continue
        match = _PIPES.fullmatch(line.strip())
        if match is None:
            raise DataError(f"{path}:{number}: must be name|number|caption, not {line[:60]!r}")
        pairs.append((match[1], match[3]))
    return pairs


def _csv_pairs(path: Path, text: str) -> list[tuple[str, str]]:
    pairs = []
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    first = 1  # line on which a row begins; quoted captions may span several
    header = True
    try:
        for row in rows:
            if any(row) and not header:
                if len(row) < 2 or not row[0].strip():
                    raise DataError(f"{path}:{first}: must be image,caption, not {','.join(row)[:60]!r}")
                pairs.append((row[0].strip(), ",".join(row[1:])))
            header = header and not any(row)
            first = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{first}: {error}") from error
    return pairs


def _splits(folder: Path) -> dict[str, str]:
    """Image name -> split, of the lists that Flickr8k brings."""
    return {
        name.strip(): split
        for ending, split in _SPLIT_FILES.items()
        for listing in sorted(folder.glob(f"*{ending}"))
        for name in read_text(listing).split("\n")
        if name.strip()
    }


def _records(
    path: Path,
    images: str | os.PathLike[str] | None,
    pairs: list[tuple[str, str]],
    splits: dict[str, str] | None,
) -> list[Record]:
    if not pairs:
        raise DataError(f"{path}: no captions in the file")
    names = list(dict.fromkeys(name for name, _ in pairs))
    folder, _ = images_folder(path, Path(images) if images is not None else None, [names], _FOLDERS)
    return grouped(pairs, folder, splits)
