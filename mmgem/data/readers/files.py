"""What every reader needs: captions on one line, and where an annotation file's images are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from mmgem.data.records import Record, image_path
from mmgem.errors import UsageError

_SAMPLE = 20  # names looked for; lists in the wild name a few images that never existed


def tidy(caption: str) -> str:
    """Return ``caption`` on one line, without outer or repeated white space."""
    return " ".join(caption.split())


def is_file(path: Path) -> bool:
    """Whether ``path`` is a file; False, not an error, for a name that no file can have."""
    return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises for a name that is too long)


def images_folder(
    path: Path, images: Path | None, layouts: Sequence[Sequence[str]], likely: Sequence[str]
) -> tuple[str, int]:
    """Find the folder that holds the images an annotation file ``path`` names.

    ``layouts`` are alternative lists of the same images' names (with and without a subfolder). ``images`` is
    taken if given; otherwise the file's folder and its parent are tried, each with the subfolders ``likely``,
    ``images`` and ``Images``. Returns the absolute folder and which layout is on disk (0 if unknown). Raises
    UsageError if ``images`` is not a folder, or if none was given and none has any of the first names.
    """
    subfolders = dict.fromkeys(("", *likely, "images", "Images"))
    if images is not None:
        if not images.is_dir():
            raise UsageError(f"{images}: {'not a folder' if images.exists() else 'no such folder'}")
        candidates = [images]
    else:
        candidates = [
            base / sub
            for base in (path.absolute().parent, path.absolute().parent.parent)
            for sub in subfolders
        ]
    for candidate in candidates:
        for number, names in enumerate(layouts):
            if any(is_file(candidate / name) for name in names[:_SAMPLE]):
                return str(candidate.resolve()), number
    if images is not None:
        return str(images.resolve()), 0
    raise UsageError(
        f"{path}: its images ({layouts[0][0]}, ...) are not beside it nor in folders named "
        f"{', '.join(name for name in subfolders if name)}; give the images folder"
    )


def missing_images(records: Iterable[Record]) -> list[Path]:
    """Return the images and clips of ``records`` that are not files on disk, each once, in order."""
    return [path for path in dict.fromkeys(r.media.path for r in records) if not is_file(path)]


def grouped(
    pairs: Iterable[tuple[str, str]], folder: str, splits: dict[str, str] | None = None
) -> list[Record]:
    """Gather ``(image name, caption)`` pairs to one record an image, in order of first appearance.

    ``splits`` maps image names to splits. Blank captions are dropped, their image is kept.
    """
    captions: dict[str, list[str]] = {}
    for name, caption in pairs:
        image_captions = captions.setdefault(name, [])
        if caption := tidy(caption):
            image_captions.append(caption)
    return [
        Record(image_path(folder, name), tuple(image_captions), split=splits.get(name) if splits else None)
        for name, image_captions in captions.items()
    ]
