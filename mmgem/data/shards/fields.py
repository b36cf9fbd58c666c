"""What people call things in shards -> our record.

Our own fields (``captions``, ``regions``, ``label``, ``split``) count first. Without ``captions`` the lines
of a text member do, then whatever else is usually called so. All other fields are kept as metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmgem.data.records import Record, record_of
from mmgem.data.texts import half_character

CAPTIONS = ("captions", "caption", "text", "texts", "sentences", "txt")
"""Fields that hold what is said of a photo, the first that does counts."""


def make_record(fields: dict[str, Any], name: str, place: Path, lines: Sequence[str] = ()) -> Record:
    """The record of a photo called ``name`` (unless ``fields`` say ``image``) in the shard ``place``;
    ``lines``: its captions as text beside it.

    Raises ValueError, naming the field, if a field is not what it should be or there is neither a caption
    nor a label nor a region with a caption.
    """
    rest = dict(fields)
    captions_value = rest.pop("captions", None)
    if captions_value is None:
        captions_value = [line for line in lines if line.strip()]
        other = next((key for key in CAPTIONS[1:] if rest.get(key)), None)
        if not captions_value and other is not None:
            captions_value = rest.pop(other)
    captions = _texts(captions_value)
    own_name = rest.pop("image", None)
    if isinstance(own_name, str) and own_name.strip("/ ") and "\0" not in own_name and "://" not in own_name:
        name = own_name
    name = name.rpartition("://")[2].lstrip("/")
    label = rest.pop("label", None)
    if isinstance(label, int):
        label = str(label)
    value = {**rest, "image": name, "captions": captions, "label": label or None}
    record = record_of(value, str(place))
    if not (record.captions or record.label or any(region.captions for region in record.regions)):
        raise ValueError("no caption")
    check_characters(record)
    return record


def _texts(captions_value: Any) -> list[Any]:
    items = captions_value if isinstance(captions_value, list) else [captions_value]
    texts = [item.get("raw", item.get("caption")) if isinstance(item, dict) else item for item in items]
    return [text for text in texts if text is not None and not (isinstance(text, str) and not text.strip())]


def check_characters(record: Record) -> None:
    """ValueError for captions with halves of characters, which JSON may hold and no tokenizer reads."""
    of_regions = (region.captions for region in record.regions)
    for captions in (record.captions, *of_regions, *record.translations.values()):
        for i, caption in enumerate(captions):
            if problem := half_character(caption):
                raise ValueError(f"captions[{i}] {problem}")
