"""Lines of UTF-8 files, plain or ``.gz``, and the error that names a bad one."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path

from mmgem.errors import DataError, UsageError
from mmgem.utils.text_files import decode_line


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1. Raises DataError for damaged gzip data and
    what is no UTF-8, UsageError for a file that cannot be read."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = decode_line(line, number)
                if text.strip():
                    yield number, text
    except UnicodeDecodeError as error:
        raise line_error(path, number, error) from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}:{number + 1}: damaged gzip data") from error
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def line_error(path: Path, number: int, error: ValueError | RecursionError) -> DataError:
    """What is wrong with line ``number`` of ``path``; reading, parsing or checking it raised ``error``."""
    if isinstance(error, RecursionError):
        words = "JSON is nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        words = error.reason
    elif isinstance(error, json.JSONDecodeError):
        words = f"not a JSON object on one line: {error.msg} at column {error.colno}"
    else:
        words = str(error)
    return DataError(f"{path}:{number}: {words}")
