"""Text files that people give, read one way: UTF-8, with or without a byte order mark, any line ends."""

from __future__ import annotations

from pathlib import Path

from mmgem.errors import DataError, UsageError

_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without its byte order mark, line ends as ``\\n``.

    Raises UsageError if it cannot be opened, DataError with the line number if it is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error
    try:
        text = decode_line(data)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: {error.reason}") from error
    return text.replace("\r\n", "\n")


def decode_line(data: bytes, number: int = 1) -> str:
    """The text of line ``number`` of a UTF-8 file, or of the whole file: the byte order mark it may begin
    with is no part of it.

    Raises UnicodeDecodeError, whose ``reason`` is fit to be shown, for anything but UTF-8.
    """
    if number == 1 and data.startswith(_UTF_16):
        raise UnicodeDecodeError("utf-8", data, 0, 2, "not UTF-8 text but UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        error.reason = "not UTF-8 text"
        raise
