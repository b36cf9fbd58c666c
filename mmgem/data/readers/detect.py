"""``load_dataset``: any dataset on disk -> records, the format found from the content."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmgem.data.image_kinds import IMAGE_SUFFIXES
from mmgem.data.images import list_images
from mmgem.data.readers.coco import coco_records, karpathy_records
from mmgem.data.readers.dci import DCI_MARKS, dci_folder, read_dci
from mmgem.data.readers.flickr import (
    is_csv_header,
    is_pipe_header,
    is_token_line,
    read_caption_csv,
    read_flickr_tokens,
)
from mmgem.data.readers.flickr30k_entities import entities_folder, read_flickr30k_entities
from mmgem.data.readers.folders import read_caption_folder, read_class_folders
from mmgem.data.readers.refcoco import PICKLES, pickle_refused, read_refcoco, refuse_pickles
from mmgem.data.readers.regions import json_items
from mmgem.data.readers.visual_genome import visual_genome_records
from mmgem.data.records import Record, keep_split, read_jsonl
from mmgem.errors import DataError, UsageError
from mmgem.utils.text_files import read_text

_KNOWN = (
    "JSONL, COCO captions, Karpathy JSON, Visual Genome regions, RefCOCO, DCI, a Flickr token file or an "
    "image,caption CSV"
)
_ANNOTATIONS = frozenset({".jsonl", ".json", ".csv", ".txt", ".token"})

_Reader = Callable[[], list[Record]]


def load_dataset(
    path: str | os.PathLike[str], split: str | None = None, images: str | os.PathLike[str] | None = None
) -> list[Record]:
    """Load the dataset at ``path``: a file, or a folder; ``split`` keeps that split only.

    Files: JSONL, COCO captions, Karpathy JSON, Visual Genome regions, RefCOCO refs, Flickr tokens, CSV with
    ``image,caption`` or with pipes; ``images`` is their images folder, looked for near the file if None.
    Folders: Flickr30k Entities; DCI; with one such file at the top, that file; otherwise images with ``.txt``
    beside them, class folders, or plain images.

    Raises DataError for a file of no known format or with a malformed entry, UsageError for a missing path,
    an unknown split, a folder with several datasets or with none, and ``images`` where it has no meaning.
    """
    path = Path(path)
    reader = _in_folder(path, images) if path.is_dir() else _reader(path, images)
    if isinstance(reader, str):
        raise DataError(f"{path}: not a dataset ({_KNOWN}): {reader}")
    return keep_split(reader(), split, path)


def _reader(path: Path, images: str | os.PathLike[str] | None) -> _Reader | str:
    """What reads the file ``path``, or why nothing does. Looks at the content only."""
    folder = Path(images) if images is not None else None
    if path.suffix.lower() in PICKLES and path.is_file():
        raise DataError(pickle_refused(path))
    try:
        text = read_text(path)
    except DataError as error:
        return f"line {str(error).removeprefix(f'{path}:')}"
    first = text.lstrip().partition("\n")[0]
    if not first:
        return "it is empty"
    if first[0] in "{[":
        return _json_reader(path, text, folder)
    if is_token_line(first):
        return lambda: read_flickr_tokens(path, folder)
    if is_csv_header(first) or is_pipe_header(first):
        return lambda: read_caption_csv(path, folder)
    return f"it begins with {first[:60]!r}"


def _json_reader(path: Path, text: str, images: Path | None) -> _Reader | str:
    """Tell the formats apart by the first JSON value of the file; of a list, by its first item."""

    def jsonl() -> list[Record]:
        if images is not None:
            raise UsageError(
                f"{path}: image paths of a JSONL dataset are relative to it; give no images folder"
            )
        return read_jsonl(path)

    value: Any
    is_list = text.lstrip().startswith("[")
    try:
        value = next(json_items(text), None) if is_list else json.JSONDecoder().raw_decode(text.lstrip())[0]
    except (ValueError, RecursionError) as error:
        return jsonl if path.suffix.lower() == ".jsonl" else f"it is not valid JSON: {error}"
    if path.suffix.lower() == ".jsonl":
        return jsonl
    if is_list:
        return _list_reader(path, text, value, images)
    if value.keys() >= DCI_MARKS:
        return lambda: read_dci(path, images)
    if {"image", "video", "sound"} & value.keys():
        return jsonl
    image_entries = value.get("images")
    if isinstance(image_entries, list) and image_entries and isinstance(image_entries[0], dict):
        if "sentences" in image_entries[0]:
            return lambda: karpathy_records(value, path, images)
        annotations = value.get("annotations")
        if (
            isinstance(annotations, list)
            and annotations
            and isinstance(annotations[0], dict)
            and "caption" in annotations[0]
        ):
            return lambda: coco_records(value, path, images)
        if annotations:
            return "it is COCO-like, but its annotations are not captions"
    return f"it is a JSON object with the keys {', '.join(list(value)[:8]) or '(none)'}"


def _list_reader(path: Path, text: str, first: Any, images: Path | None) -> _Reader | str:
    """Tell Visual Genome and RefCOCO apart by the first item of a JSON list."""
    if isinstance(first, dict) and "ref_id" in first:
        return lambda: read_refcoco(path, images)
    regions = first.get("regions") if isinstance(first, dict) else None
    if isinstance(regions, list) and all(isinstance(r, dict) and "phrase" in r for r in regions[:1]):
        return lambda: visual_genome_records(text, path, images)
    return "it is a JSON list, not an object"


def _in_folder(folder: Path, images: str | os.PathLike[str] | None) -> _Reader:
    """What reads the dataset in ``folder``."""
    files: dict[Path, _Reader] = {}
    if entities := entities_folder(folder):
        files[entities / "Sentences"] = lambda: read_flickr30k_entities(entities, images)
    if dci := dci_folder(folder):
        files[dci] = lambda: read_dci(dci, images)
    if folder in files:
        return files[folder]
    names = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    pictures = {entry.stem for entry in names if entry.suffix.lower() in IMAGE_SUFFIXES}
    files |= {
        entry: reader
        for entry in names
        if entry.suffix.lower() in _ANNOTATIONS and entry.stem not in pictures and entry.is_file()
        if not isinstance(reader := _reader(entry, images), str)
    }
    if len(files) > 1:
        raise UsageError(f"{folder}: several datasets, name one: {', '.join(file.name for file in files)}")
    if files:
        return next(iter(files.values()))
    refuse_pickles(folder)
    if images is not None:
        raise UsageError(f"{folder}: no annotation file in it, so an images folder has no meaning")
    listed = list_images(folder)
    if not listed:
        kinds = Counter(entry.suffix.lower() or "no suffix" for entry in names if entry.is_file())
        summary = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5)) or "no files"
        raise UsageError(f"{folder}: no dataset file ({_KNOWN}) and no images in it; at its top: {summary}")
    if any(image.with_suffix(".txt").is_file() for image in listed):
        return lambda: read_caption_folder(folder)
    classes = {image.relative_to(folder).parts[0] for image in listed if image.parent != folder}
    if len(classes) > 1 and all(image.parent != folder for image in listed):
        return lambda: read_class_folders(folder)
    return lambda: read_caption_folder(folder)
