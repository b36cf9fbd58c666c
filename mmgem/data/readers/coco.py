"""COCO captions (``captions_val2017.json``) and the Karpathy splits (``dataset_coco.json``).

Both are one JSON object with a list ``images``; COCO keeps captions apart in ``annotations``, Karpathy in
each image's ``sentences``. Blank captions are dropped, white space is tidied. Ids that other tools need to
score predictions are kept in ``meta``.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from mmgem.data.readers.files import images_folder, tidy
from mmgem.data.records import Record, image_path
from mmgem.errors import DataError
from mmgem.utils.text_files import read_text


def read_coco_captions(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None
) -> list[Record]:
    """Read a COCO caption file; images without annotations get no captions.

    ``split`` is the train, val or test in the file's name, if any; ``meta["image_id"]`` is COCO's. ``images``
    is the images folder, looked for near the file if None. Raises DataError naming the entry that is wrong,
    UsageError if the file or the images folder is not found.
    """
    path = Path(path)
    return coco_records(_load(path), path, Path(images) if images is not None else None)


def read_karpathy(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    restval_as_train: bool = True,
) -> list[Record]:
    """Read a Karpathy split file (COCO, Flickr30k or Flickr8k); ``meta`` keeps ``cocoid`` or ``imgid``.

    ``restval`` (COCO validation images left over) counts as ``train``, as the protocol has it, unless told
    otherwise. Images are at ``filepath/filename`` or ``filename`` below ``images``, which is looked for near
    the file if None. Raises DataError naming the entry that is wrong, UsageError if the file or the images
    folder is not found.
    """
    path = Path(path)
    return karpathy_records(_load(path), path, Path(images) if images is not None else None, restval_as_train)


def coco_records(data: Any, path: Path, images: Path | None) -> list[Record]:
    """Turn a parsed COCO caption file into records; ``path`` is where it came from."""
    listed = _entries(data, "images", path)
    names: dict[Any, str] = {}
    for i, entry in enumerate(listed):
        names[_get(entry, "id", (int, str), f"images[{i}]", path)] = _get(
            entry, "file_name", (str,), f"images[{i}]", path
        )
    captions: dict[Any, list[str]] = {image_id: [] for image_id in names}
    for i, entry in enumerate(_entries(data, "annotations", path)):
        where = f"annotations[{i}]"
        image_id = _get(entry, "image_id", (int, str), where, path)
        if image_id not in captions:
            raise DataError(f"{path}: {where}: no image has the id {image_id}")
        if caption := tidy(_get(entry, "caption", (str,), where, path)):
            captions[image_id].append(caption)
    stem = path.name.partition(".")[0].removeprefix("captions_")
    found = re.search(r"(?<![a-z])(train|val|test)(?![a-z])", stem)
    folder, _ = images_folder(path, images, [list(names.values())], [stem, f"images/{stem}"])
    return [
        Record(
            image_path(folder, name),
            tuple(captions[image_id]),
            split=found[0] if found else None,
            meta={"image_id": image_id},
        )
        for image_id, name in names.items()
    ]


def karpathy_records(
    data: Any, path: Path, images: Path | None, restval_as_train: bool = True
) -> list[Record]:
    """Turn a parsed Karpathy file into records; ``path`` is where it came from."""
    listed = _entries(data, "images", path)
    flat = [_get(entry, "filename", (str,), f"images[{i}]", path) for i, entry in enumerate(listed)]
    full = [
        f"{e['filepath']}/{name}" if e.get("filepath") else name for e, name in zip(listed, flat, strict=True)
    ]
    stem = path.name.partition(".")[0].removeprefix("dataset_")
    folder, layout = images_folder(
        path, images, [full, flat], [stem, f"{stem}-images", f"{stem}_images", f"{stem}/images"]
    )
    records = []
    for i, (entry, name) in enumerate(zip(listed, (full, flat)[layout], strict=True)):
        where = f"images[{i}]"
        split = _get(entry, "split", (str,), where, path)
        sentences = _entries(entry, "sentences", path, f"{where}.")
        raw = [_get(s, "raw", (str,), f"{where}.sentences[{j}]", path) for j, s in enumerate(sentences)]
        records.append(
            Record(
                image_path(folder, name),
                tuple(caption for text in raw if (caption := tidy(text))),
                split="train" if split == "restval" and restval_as_train else split,
                meta={key: entry[key] for key in ("cocoid", "imgid") if key in entry},
            )
        )
    return records


def _load(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error


def _entries(value: Any, key: str, path: Path, where: str = "") -> list[dict[str, Any]]:
    """The non-empty list of objects at ``key``, or a DataError."""
    entries = value.get(key) if isinstance(value, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(f"{path}: {where}{key} must be a list of objects")
    if not entries and key == "images":
        raise DataError(f"{path}: {where}{key} is empty")
    return entries


def _get(entry: dict[str, Any], key: str, types: tuple[type, ...], where: str, path: Path) -> Any:
    value = entry.get(key)
    if not isinstance(value, types) or (value == "" and key not in ("caption", "raw")):
        wanted = "a string" if types == (str,) else "a number or a string"
        raise DataError(f"{path}: {where}.{key} must be {wanted}, not {json.dumps(value)[:40]}")
    return value
