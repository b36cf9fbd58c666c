"""Captions in other languages, from a file beside the dataset.

A JSON-lines file (also ``.gz``), an image a line: ``{"image": "1.jpg", "en": "...", "de": ["...", "..."]}``.
A key of two or three small letters is a language, its value one caption or a list of them; ``captions_de``
and ``captions_other`` of our own records are read too. All other keys are ignored, ``split`` included, and so
is an ``id`` that is no text.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from mmgem.data.records import Record, checked_texts, language_code, translations_of
from mmgem.data.text_lines import line_error, read_lines
from mmgem.errors import DataError, UsageError

_log = logging.getLogger(__name__)


def add_captions(records: Sequence[Record], path: str | os.PathLike[str]) -> list[Record]:
    """``records`` with the captions of the file ``path`` added to their ``translations``, in order.

    A line is for the records whose image has its file name; where several images have, for those whose path
    ends with all of its ``image``. Captions of a language that a record has already go behind them. Lines of
    images that no record has are ignored, and one warning of the log counts them. Raises UsageError if the
    file cannot be read, DataError naming the line if one is malformed, has no caption or fits several images.
    """
    path = Path(path)
    by_name: dict[str, dict[Path, list[int]]] = {}
    for number, record in enumerate(records):
        if record.media.kind == "image":
            by_name.setdefault(record.image.name, {}).setdefault(record.image, []).append(number)
    merged = [dict(record.translations) for record in records]
    ignored = lines = 0
    for line_number, line in read_lines(path):
        lines += 1
        try:
            image, captions = _parse(line)
            numbers = _matches(image, by_name)
        except (ValueError, RecursionError) as error:
            raise line_error(path, line_number, error) from error
        ignored += not numbers
        for number in numbers:
            for language, texts in captions.items():
                merged[number][language] = merged[number].get(language, ()) + texts
    if not lines:
        raise DataError(f"{path}: no captions, the file is empty")
    if ignored:
        _log.warning("%s: %d of %d lines are for images that are not in the data", path, ignored, lines)
    return [
        replace(record, translations=translations)
        for record, translations in zip(records, merged, strict=True)
    ]


def in_language(records: Sequence[Record], language: str) -> list[Record]:
    """Those of ``records`` that have captions in ``language``, these in the place of their ``captions``.

    English, ``en``, is also what ``captions`` hold where no record has it among its translations. Raises
    UsageError naming the languages there are if no record has any.
    """
    if not language_code(language):
        raise UsageError(f"a language is two or three small letters, like de, not {language!r}")
    selected = [
        replace(record, captions=record.translations[language])
        for record in records
        if record.translations.get(language)
    ]
    if not selected and language == "en":
        selected = [record for record in records if record.captions]
    if not selected:
        languages = sorted(
            {code for record in records for code, texts in record.translations.items() if texts}
        )
        known = f"there are {', '.join(languages)}" if languages else "the records are in one language only"
        raise UsageError(f"no captions in the language {language!r}; {known}")
    return selected


def _parse(line: str) -> tuple[str, dict[str, tuple[str, ...]]]:
    """The image a line names and its captions by language; ValueError names the field."""
    value: Any = json.loads(line)
    if type(value) is not dict:
        raise ValueError("must be one JSON object")
    image = value.get("image")
    if type(image) is not str or not image.strip("/ ") or "\0" in image:
        raise ValueError("image must be a file path" if "image" in value else 'no "image"')
    captions = translations_of(value)
    keys = [key for key in value if language_code(key) and not (key == "id" and type(value[key]) is not str)]
    for key in keys:
        if value[key] is not None:
            captions[key] = captions.get(key, ()) + checked_texts(key, value[key])
    if not captions and not keys:
        raise ValueError('no captions; a key that is a language, like "de", holds them')
    return image, captions


def _matches(image: str, by_name: dict[str, dict[Path, list[int]]]) -> list[int]:
    """The records of ``image``; ValueError if it may be one of several."""
    parts = tuple(part for part in PurePosixPath(image.replace("\\", "/")).parts if part not in ("/", "."))
    images = by_name.get(parts[-1] if parts else "", {})
    if len(images) > 1:
        exact = {path: numbers for path, numbers in images.items() if path.parts[-len(parts) :] == parts}
        if len(exact) != 1:
            raise ValueError(f"image {image} may be {len(exact or images)} images of that name")
        images = exact
    return [number for numbers in images.values() for number in numbers]
