"""Objects of JSON files, one a line or a whole file, and their fields, with errors that name the place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmgem.data.sentences import tidy_lines
from mmgem.data.text_lines import read_lines
from mmgem.errors import DataError
from mmgem.utils.text_files import read_text

Row = tuple[str, dict[str, Any]]
"""Where an object is ("file:line", or "file: path in its JSON"), and the object."""


def json_lines(path: Path) -> Iterator[Row]:
    """The objects of a JSONL file. Raises ``DataError`` for a line that is none, ``UsageError`` if the file
    cannot be opened."""
    for number, line in read_lines(path):
        yield f"{path}:{number}", json_object(line, f"{path}:{number}")


def json_file(path: Path) -> dict[str, Any]:
    """The object a JSON file is. Raises ``DataError`` ("file:line: ...") if it is none, ``UsageError`` if it
    cannot be opened."""
    text = read_text(path)
    try:
        return json_object(text, str(path))
    except DataError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            cause = error.__cause__
            reason = f"{cause.msg} at column {cause.colno}"
            raise DataError(f"{path}:{cause.lineno}: not JSON: {reason}") from cause
        raise


def json_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object that ``text`` is. Raises ``DataError``."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at column {error.colno}"
        raise DataError(f"{where}: not a JSON object on one line: {reason}") from error
    except (RecursionError, ValueError) as error:
        raise DataError(f"{where}: not JSON that can be read: {error}") from error
    if type(value) is not dict:
        raise DataError(f"{where}: must be a JSON object, not {preview(value)}")
    return value


def field(value: dict[str, Any], key: str, where: str) -> Any:
    """A field that must be there. Raises ``DataError``."""
    if key not in value:
        raise DataError(f"{where}: {key} is missing")
    return value[key]


def text_field(value: dict[str, Any], key: str, where: str, keep_lines: bool = False) -> str:
    """A field that must have words in it, white space made single spaces; ``keep_lines``: in each of its
    lines. Raises ``DataError``."""
    found = field(value, key, where)
    text = checked_text(found, key, where)
    return tidy_lines(found) if keep_lines else text


def list_field(value: dict[str, Any], key: str, where: str, of: str = "a list") -> list[Any]:
    """A field that must be a list. Raises ``DataError``."""
    values = field(value, key, where)
    if type(values) is not list:
        raise DataError(f"{where}: {key} must be {of}, not {preview(values)}")
    return values


def objects_field(value: dict[str, Any], key: str, where: str) -> Iterator[Row]:
    """The objects of a field that must be a list of objects, each with its place. Raises ``DataError``."""
    for n, item in enumerate(list_field(value, key, where, "a list of objects")):
        place = f"{where}{'.' if where.endswith(']') else ': '}{key}[{n}]"
        if type(item) is not dict:
            raise DataError(f"{place} must be an object, not {preview(item)}")
        yield place, item


def text_list_field(value: dict[str, Any], key: str, where: str) -> list[str]:
    """A field that must be a list of strings with words in them, as they are. Raises ``DataError``."""
    values = list_field(value, key, where, "a list of strings")
    for n, item in enumerate(values):
        checked_text(item, f"{key}[{n}]", where)
    return values


def checked_text(text: Any, name: str, where: str) -> str:
    """A text with words in it, white space made single spaces. Raises ``DataError``."""
    if type(text) is not str or not text.strip():
        raise DataError(f"{where}: {name} must be a non-empty string, not {preview(text)}")
    if not is_unicode(text):
        raise DataError(f"{where}: {name} holds half a surrogate pair, which is no character")
    return " ".join(text.split())


def preview(value: Any) -> str:
    """A JSON value in 60 characters at most."""
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_unicode(text: str) -> bool:
    """Whether ``text`` can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
