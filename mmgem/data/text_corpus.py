"""Captions without images: what a run reads from ``data.texts``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmgem.data.records import language_code
from mmgem.data.text_lines import line_error, read_lines
from mmgem.data.texts import half_character
from mmgem.errors import DataError


def read_texts(paths: Iterable[str | os.PathLike[str]], split: str | None = None) -> dict[str, bool]:
    """Every text once, in order, and whether it is a caption in the first language, of files of JSON lines or
    of ``.txt`` (one a line), also ``.gz``.

    Of a JSON object the texts are ``captions``, ``caption`` and ``text`` (a string or a list of them) and
    what has the code of a language for its name, with or without a number behind (``de``, ``ko1``); those are
    captions in the first language only if the code is ``en``. Lines of another ``split`` than that given are
    left out; lines that name none count.

    Raises DataError ("file:line: ...") for a malformed line and a file without texts, UsageError for a file
    that cannot be read.
    """
    found: dict[str, bool] = {}
    for path in map(Path, paths):
        before = len(found)
        for number, line in read_lines(path):
            if ".txt" in path.suffixes[-2:]:
                found.setdefault(" ".join(line.split()), True)
                continue
            try:
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise ValueError("must be one JSON object")
                if split is None or value.get("split") in (None, split):
                    for text, first in _texts_of(value):
                        found.setdefault(text, first)
            except (ValueError, RecursionError) as error:
                raise line_error(path, number, error) from error
        if len(found) == before:
            raise DataError(f"{path}: no texts" + (f" of split {split!r}" if split else ""))
    return found


def _texts_of(value: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    for key, item in value.items():
        code = key.rstrip("0123456789")
        language = code != "id" and language_code(code)
        if key not in ("captions", "caption", "text") and not language:
            continue
        for text in item if isinstance(item, list) else [item]:
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"{key} must be a text or a list of texts")
            if problem := half_character(text):
                raise ValueError(f"{key} {problem}")
            yield " ".join(text.split()), not language or code == "en"
