"""The one record type of every image dataset, and its JSONL file: one image a line.

``{"image": "images/1.jpg", "captions": ["..."], "split": "train", "label": "daisy",
"regions": [{"box": [x0, y0, x1, y1], "captions": ["..."]}]}``: all but ``image`` may be absent or null.
Image paths are relative to the file. A clip is ``{"video": "trip/film.mp4", "start": 3, "end": 7.5}`` in the
place of ``image``, a video or an animated picture; both seconds may be absent: all of it; it has no regions.
A sound is ``{"sound": "tone.wav"}``, whose regions may have ``start`` and ``end`` in the place of ``box``.
Boxes are pixels of the stored, upright image, half-open, x right and
y down; they may cross the border. Captions in other languages are ``"captions_de": ["..."]`` (or one string;
any code of two or three letters) or ``"captions_other": {"de": ["..."]}``. Unknown keys of a line or a
region are kept as ``meta``. Whatever is wrong is an error that names the file, the line and the field: a
caption lost in silence is a worse model.
"""

from __future__ import annotations

import gc
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmgem.data.moments import Moment, format_moment, is_video, moment_box
from mmgem.data.text_lines import line_error, read_lines
from mmgem.data.texts import half_character
from mmgem.errors import DataError, UsageError
from mmgem.utils.files import atomic_file

_RECORD_KEYS = frozenset({"image", "captions", "split", "label", "regions", "captions_other"})
_KEYS = {
    "image": _RECORD_KEYS,
    "video": _RECORD_KEYS - {"image"} | {"video", "start", "end"},
    "sound": _RECORD_KEYS - {"image"} | {"sound"},
}
_REGION_KEYS = frozenset({"box", "captions"})
# Region and script begin with a capital, or "alt_text" and "src_id" would be languages.
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:[_-](?:[A-Z]{2}|[A-Z][a-z]{3}|\d{3}))*")
_TRANSLATED = "captions_"

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the stored, upright image, half-open."""


@dataclass(frozen=True, slots=True)
class Region:
    """A box ``(x0, y0, x1, y1)`` in pixels of the stored, upright image, and what captions say of it."""

    box: Box
    captions: tuple[str, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Media:
    """What a record is of: ``kind`` says what the files ``sources`` hold: ``image``, ``video`` (any clip) or
    ``sound``, which have one. ``moment``: of a clip; None: all of it."""

    kind: str
    sources: tuple[Path, ...]
    moment: Moment | None = None

    @property
    def path(self) -> Path:
        """The file."""
        return self.sources[0]

    @property
    def name(self) -> str:
        """The file's name, and the moment that is meant of it."""
        return self._with_moment(self.path.name)

    def __str__(self) -> str:
        return self._with_moment(str(self.path))

    def _with_moment(self, name: str) -> str:
        return name if self.moment is None else f"{name} {format_moment(self.moment)}"


@dataclass(frozen=True, slots=True, init=False)
class Record:
    """One item of a dataset: what it is of, and what is said of it; ``translations``: captions by the code of
    their language ("de"), which ``captions`` do not hold."""

    media: Media
    captions: tuple[str, ...] = ()
    split: str | None = None
    label: str | None = None
    regions: tuple[Region, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict, hash=False)
    translations: dict[str, tuple[str, ...]] = field(default_factory=dict, hash=False)

    def __init__(
        self,
        media: Media | Path,
        captions: tuple[str, ...] = (),
        split: str | None = None,
        label: str | None = None,
        regions: tuple[Region, ...] = (),
        meta: dict[str, Any] | None = None,
        translations: dict[str, tuple[str, ...]] | None = None,
    ):
        """``media``: also the path of an image, absolute; the file need not exist."""
        put = object.__setattr__
        put(self, "media", media if isinstance(media, Media) else Media("image", (media,)))
        put(self, "captions", captions)
        put(self, "split", split)
        put(self, "label", label)
        put(self, "regions", regions)
        put(self, "meta", {} if meta is None else meta)
        put(self, "translations", {} if translations is None else translations)

    @property
    def image(self) -> Path:
        """The path of the image. Raises ``UsageError`` for another kind of media."""
        if self.media.kind != "image":
            raise UsageError(f"{self.media.path}: is a {self.media.kind}, and only images will do here")
        return self.media.path

    @property
    def source(self) -> Path | Media:
        """What a model is given to look at: the path of the image, or the clip or sound."""
        return self.media.path if self.media.kind == "image" else self.media


def read_jsonl(path: str | os.PathLike[str], split: str | None = None) -> list[Record]:
    """Read a dataset file in UTF-8, in file order; blank lines are ignored; ``split`` keeps that split only.

    Raises DataError ("file:line: field ...") for a malformed line and for a file without records, UsageError
    for a missing file or a ``split`` that no record has. Images are not looked at.
    """
    path = Path(path)
    folder = str(path.parent.resolve())
    records: list[Record] = []
    with _collector_paused():
        for number, line in read_lines(path):
            try:
                records.append(record_of(json.loads(line), folder))
            except (ValueError, RecursionError) as error:
                raise line_error(path, number, error) from error
    if not records:
        raise DataError(f"{path}: no records, the file is empty")
    return keep_split(records, split, path)


def write_jsonl(path: str | os.PathLike[str], records: Iterable[Record]) -> None:
    """Write ``records`` so that :func:`read_jsonl` gives equal ones back; missing folders are made.

    Image paths are written relative to the file (on Windows absolute if on another drive). The file appears
    whole or not at all. Raises UsageError if there is no record or it cannot be written, DataError for
    ``meta`` that is not JSON or uses the name of a field.
    """
    path = Path(path)
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = str(path.parent.resolve())
        with atomic_file(path) as file:
            for record in records:
                try:
                    file.write(line_of(record, folder))
                except (TypeError, ValueError) as error:
                    raise DataError(f"{path}: record of {record.media}: meta: {error}") from error
                count += 1
            if not count:
                raise UsageError(f"{path}: no records to write")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from error


def keep_split(records: list[Record], split: str | None, source: str | os.PathLike[str]) -> list[Record]:
    """Return the records of ``split`` (None: all). UsageError naming ``source`` and its splits if none."""
    if split is None:
        return records
    selected = [record for record in records if record.split == split]
    if not selected:
        splits = sorted({record.split for record in records if record.split is not None})
        explanation = f"its splits are {', '.join(splits)}" if splits else "its records name no split"
        raise UsageError(f"{source}: no split {split!r}; {explanation}")
    return selected


def image_path(folder: str, name: str) -> Path:
    """Absolute path of ``name`` as seen from ``folder`` (itself absolute and free of links)."""
    head, slash, last = name.rpartition("/")
    if last in ("", ".", ".."):
        return _parent(folder, name)
    return _parent(folder, head + slash).joinpath(last)


@lru_cache(maxsize=4096)
def _parent(folder: str, head: str) -> Path:
    """A folder of images as a Path, made once: parsing paths is half the time of reading a record."""
    return Path(os.path.normpath(os.path.join(folder, head)))  # noqa: PTH118 (Path keeps "..")


@contextmanager
def _collector_paused() -> Iterator[None]:
    """No cyclic garbage arises from reading, but collecting would walk the growing list: 40% of the time."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def record_of(value: Any, folder: str) -> Record:
    """A parsed line -> Record; ValueError names the field."""
    if type(value) is not dict:
        raise ValueError(f"must be one JSON object, not {_kind(value)}")
    kind = next((kind for kind in _KEYS if kind in value), "image")
    media = Media(
        kind, (image_path(folder, _file(value, kind)),), _moment(value) if kind == "video" else None
    )
    if kind == "image" and is_video(media.path):
        raise ValueError(f'image is a video; write "video": {json.dumps(value["image"])}')
    if kind == "video" and value.get("regions"):
        raise ValueError("regions: clips have none")
    return Record(
        media,
        _captions(value),
        _name(value, "split"),
        _name(value, "label"),
        _regions(value, kind == "sound"),
        _meta(value, _KEYS[kind] | _translated_keys(value)),
        translations_of(value),
    )


def _file(value: dict[str, Any], key: str) -> str:
    name = value.get(key)
    if type(name) is not str or not name or "\0" in name:
        raise ValueError(f"{key} must be a file path, not {_kind(name)}" if key in value else f'no "{key}"')
    if "://" in name:
        raise ValueError(f"{key} must be a file path, URLs are not fetched: {name}")
    return name


def _moment(value: dict[str, Any]) -> Moment | None:
    """The moment that ``start`` and ``end`` say, if they are there; ValueError names them."""
    start: Any = value.get("start")
    end: Any = value.get("end")
    if start is None and end is None:
        return None
    if not (_is_number(start) and _is_number(end) and 0 <= start <= end):
        raise ValueError(
            f"start and end must be seconds, 0 or more, both or none, not {json.dumps(start)[:40]} and "
            f"{json.dumps(end)[:40]}"
        )
    return float(start), float(end)


def _is_number(value: Any) -> bool:
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer beyond float
        return False


def language_code(text: str) -> bool:
    """Whether ``text`` has the form of a language's code: two or three small letters, like ``de``, and
    perhaps a region or script, like ``zh_CN``."""
    return _LANGUAGE.fullmatch(text) is not None


def _translated_keys(value: dict[str, Any]) -> frozenset[str]:
    """The keys like ``captions_de``."""
    return frozenset(
        key for key in value if key.startswith(_TRANSLATED) and language_code(key[len(_TRANSLATED) :])
    )


def translations_of(value: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """Captions by language of a parsed line's ``captions_XX`` and ``captions_other``; ValueError names the
    field."""
    texts = {key[len(_TRANSLATED) :]: (key, value[key]) for key in sorted(_translated_keys(value))}
    others = value.get("captions_other")
    if others is not None and type(others) is not dict:
        raise ValueError(f'captions_other must be an object, like {{"de": ["..."]}}, not {_kind(others)}')
    for language, item in (others or {}).items():
        name = f"captions_other.{language}"
        if not language_code(language):
            raise ValueError(f"{name}: a language is two or three small letters, like de")
        if language in texts:
            raise ValueError(f"{name}: its language has captions in {texts[language][0]} too")
        texts[language] = name, item
    return {
        language: checked_texts(name, item) for language, (name, item) in texts.items() if item is not None
    }


def checked_texts(name: str, value: Any) -> tuple[str, ...]:
    """One string or a list of strings as captions; ValueError names the field ``name``."""
    if type(value) is str:
        if not value or value.isspace():
            raise ValueError(f"{name} is empty")
        if problem := half_character(value):
            raise ValueError(f"{name} {problem}")
        return (value,)
    if type(value) is not list:
        raise ValueError(f"{name} must be a string or a list of strings, not {_kind(value)}")
    return _checked_list(name, value)


def _regions(value: dict[str, Any], sound: bool) -> tuple[Region, ...]:
    region_values = value.get("regions")
    if region_values is None:
        return ()
    if type(region_values) is not list:
        raise ValueError(f"regions must be a list of objects, not {_kind(region_values)}")
    regions = []
    for i, region in enumerate(region_values):
        if type(region) is not dict:
            raise ValueError(f"regions[{i}] must be an object, not {_kind(region)}")
        try:
            moment = _moment(region) if sound and "box" not in region else None
            box = _box(region.get("box") if moment is None else list(moment_box(moment)))
            known = _REGION_KEYS if moment is None else _REGION_KEYS | {"start", "end"}
            regions.append(Region(box, _captions(region), _meta(region, known)))
        except ValueError as error:
            raise ValueError(f"regions[{i}].{error}") from error
    return tuple(regions)


def _captions(value: dict[str, Any]) -> tuple[str, ...]:
    captions = value.get("captions")
    if captions is None:
        if "caption" in value:
            raise ValueError('caption is not a field; write "captions": ["..."], a list of strings')
        return ()
    if type(captions) is not list:
        raise ValueError(f'captions must be a list of strings, like ["..."], not {_kind(captions)}')
    return _checked_list("captions", captions)


def _checked_list(name: str, captions: list[Any]) -> tuple[str, ...]:
    for i, caption in enumerate(captions):
        if type(caption) is not str:
            raise ValueError(f"{name}[{i}] must be a string, not {_kind(caption)}")
        if not caption or caption.isspace():
            raise ValueError(f"{name}[{i}] is empty")
        if problem := half_character(caption):
            raise ValueError(f"{name}[{i}] {problem}")
    return tuple(captions)


def _name(value: dict[str, Any], key: str) -> str | None:
    name = value.get(key)
    if name is None:
        return None
    if type(name) is not str or not name or name.isspace():
        raise ValueError(f"{key} must be a non-empty string, not {_kind(name)}")
    if problem := half_character(name):
        raise ValueError(f"{key} {problem}")
    return name


def _box(value: Any) -> Box:
    if not (type(value) is list and len(value) == 4 and all(map(_is_number, value))):
        raise ValueError(f"box must be 4 finite numbers [x0, y0, x1, y1], not {json.dumps(value)[:80]}")
    x0, y0, x1, y1 = map(float, value)
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"box must have x0 < x1 and y0 < y1, not {value} (is it [x, y, width, height]?)")
    return x0, y0, x1, y1


def _meta(value: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in known}


def _kind(value: Any) -> str:
    """The JSON name of a parsed value's type."""
    if type(value) is str and not value.strip():
        return "an empty string"
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def line_of(record: Record, folder: str) -> bytes:
    """One line of the file. Empty fields are left out; lone surrogates (odd file names) are escaped."""
    media = record.media
    path = os.path.normpath(media.path if media.path.is_absolute() else media.path.absolute())
    if path.startswith(folder + os.sep):
        path = path[len(folder) + 1 :]
    else:
        with suppress(ValueError):  # another Windows drive
            path = os.path.relpath(path, folder)
    value: dict[str, Any] = {media.kind: path.replace(os.sep, "/")}
    if media.moment is not None:
        value["start"], value["end"] = media.moment
    if record.captions:
        value["captions"] = record.captions
    if record.split is not None:
        value["split"] = record.split
    if record.label is not None:
        value["label"] = record.label
    if record.regions:
        value["regions"] = [_region_value(region) for region in record.regions]
    value |= {f"{_TRANSLATED}{language}": texts for language, texts in record.translations.items() if texts}
    value |= _free_meta(record.meta, _KEYS[media.kind] | _translated_keys(record.meta))
    try:
        text = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        text = json.dumps(value).encode()
    return text + b"\n"


def _region_value(region: Region) -> dict[str, Any]:
    value = {"box": region.box, "captions": region.captions}
    return value | _free_meta(region.meta, _REGION_KEYS)


def _free_meta(meta: dict[str, Any], known: frozenset[str]) -> dict[str, Any]:
    if clash := known & meta.keys():
        raise ValueError(f"{', '.join(sorted(clash))} is the name of a field")
    return meta
