"""What the readers of region datasets share: checked fields, checked boxes, and the count of what is odd.

Malformed data is an error: the functions here raise a ValueError that names the field, :func:`within` puts
the entry before it and :func:`in_file` makes it a DataError that names the file. Merely odd data, as real
sets have it, is left out and counted: :class:`LeftOut` collects the counts of one reader call and says them
in one warning. Boxes that cross the border of their image are kept as they are.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmgem.data.readers.files import tidy
from mmgem.data.records import Box
from mmgem.errors import DataError, UsageError
from mmgem.utils.text_files import read_text

_log = logging.getLogger(__name__)

Size = tuple[float, float]
"""Width and height in pixels."""

_FAR = 1e9  # pixels; also keeps sums finite
_SPACE = re.compile(r"[ \t\n\r]*")
_NAMES = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
_ODD = {
    "area": ("box of no area", "boxes of no area"),
    "outside": ("box outside its image", "boxes outside their images"),
    "crowd": ("crowd box", "crowd boxes"),
    "blank": ("blank phrase", "blank phrases"),
    "unnamed": ("entity that no sentence names", "entities that no sentence names"),
    "half": (
        "image without its sentence or annotation file",
        "images without their sentence or annotation file",
    ),
}


class LeftOut:
    """Counts what one reader call leaves out of ``source``, by the kinds of ``_ODD``."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.counts: Counter[str] = Counter()

    def box(self, x0: float, y0: float, x1: float, y1: float, size: Size | None = None) -> Box | None:
        """Return the box, or None, counted, if it has no area or is wholly outside an image of ``size``.

        Without a size only boxes left of or above the image are known to be outside.
        """
        if x1 <= x0 or y1 <= y0:
            self.counts["area"] += 1
            return None
        if x1 <= 0 or y1 <= 0 or (size is not None and (x0 >= size[0] or y0 >= size[1])):
            self.counts["outside"] += 1
            return None
        return x0, y0, x1, y1

    def phrases(self, texts: Iterable[str]) -> tuple[str, ...]:
        """Return ``texts`` with their white space tidied; blank ones are dropped and counted."""
        tidied = [tidy(text) for text in texts]
        self.counts["blank"] += tidied.count("")
        return tuple(text for text in tidied if text)

    def warn(self) -> None:
        """Say in one warning of the log what was left out, if anything was."""
        counts_text = [f"{n} {_ODD[kind][n > 1]}" for kind in _ODD if (n := self.counts[kind])]
        if counts_text:
            _log.warning("%s: left out %s", self.source, ", ".join(counts_text))


@contextmanager
def in_file(path: Path) -> Iterator[None]:
    """Make a ValueError inside a DataError that names ``path``."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error


@contextmanager
def within(entry: str) -> Iterator[None]:
    """Put ``entry`` before the message of a ValueError inside."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{entry}: {error}") from error


def field(entry: Any, key: str, *types: type) -> Any:
    """Return ``entry[key]``; ValueError if ``entry`` is no object or the value is of none of ``types``."""
    if type(entry) is not dict:
        raise ValueError(f"must be an object, not {json.dumps(entry)[:40]}")
    value = entry.get(key)
    if type(value) not in types:
        expected = " or ".join(dict.fromkeys(_NAMES[expected] for expected in types))
        raise ValueError(f"{key} must be {expected}, not {json.dumps(value)[:40]}")
    return value


def number(entry: Any, key: str) -> float:
    """Return ``entry[key]`` as a float; ValueError if it is not a number that pixels can have."""
    return pixels(field(entry, key, int, float), key)


def pixels(value: Any, name: str) -> float:
    """Return ``value`` as a float; ValueError that calls it ``name`` if it is not a number of pixels."""
    if type(value) not in (int, float) or not -_FAR < value < _FAR:
        raise ValueError(f"{name} must be a number of pixels, not {str(value)[:40]!r}")
    return float(value)


def size_of(entry: dict[str, Any]) -> Size | None:
    """Return ``width`` and ``height`` of ``entry``, None if it has none or they are zero."""
    if entry.get("width") is None or entry.get("height") is None:
        return None
    size = number(entry, "width"), number(entry, "height")
    return size if min(size) > 0 else None


def json_items(text: str) -> Iterator[Any]:
    """Yield the items of the JSON list ``text`` one by one: parsed whole, a large one would fill the memory.

    Raises ValueError if it is not a JSON list, when the place is reached.
    """
    decoder = json.JSONDecoder()
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        raise ValueError("must be a JSON list")
    position = _skip(text, position + 1)
    has_more = text[position : position + 1] != "]"
    while has_more:
        try:
            value, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"not valid JSON: {error}") from error
        yield value
        position = _skip(text, position)
        has_more = text[position : position + 1] == ","
        position = _skip(text, position + has_more)
    if text[position : position + 1] != "]" or text[position + 1 :].strip():
        raise ValueError(f"not valid JSON: the list does not end well at character {position}")


def load_json(path: Path) -> Any:
    """Return what the JSON file ``path`` holds; DataError if it is not JSON, UsageError if not readable."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error


def only_file(folder: Path, pattern: str) -> Path:
    """Return the one file in ``folder`` that matches ``pattern``; UsageError if there is none or several."""
    files = sorted(folder.glob(pattern))
    if len(files) > 1:
        raise UsageError(f"{folder}: several datasets, name one: {', '.join(file.name for file in files)}")
    if not files:
        raise UsageError(f"{folder}: {f'no {pattern} in it' if folder.is_dir() else 'no such folder'}")
    return files[0]


def _skip(text: str, at: int) -> int:
    """The place of the first character at or after ``at`` that is not white space."""
    gap = _SPACE.match(text, at)
    return gap.end() if gap else at
