"""Every error mmgem raises on purpose, in one tree: catch :class:`MMGEMError` to catch them all.

The command line prints the message on one line and exits with the class's ``exit_code``.
"""

from __future__ import annotations


class MMGEMError(Exception):
    """Base of all errors; ``exit_code`` is what the command line exits with."""

    exit_code = 1


class UsageError(MMGEMError):
    """An argument that cannot work: a malformed box, a missing folder, options that exclude each other."""

    exit_code = 2


class ConfigError(MMGEMError):
    """A recipe or config field that is unknown, of the wrong type or out of range; names the field."""

    exit_code = 2


class DataError(MMGEMError):
    """A data file that cannot be read as what it should be; names the file and line."""


class ImageError(DataError):
    """An image that cannot be decoded; names the file and the reason."""


class CheckpointError(MMGEMError):
    """A checkpoint folder that is incomplete, damaged or does not fit the model; names what is wrong."""


class SearchIndexError(MMGEMError):
    """A search index that is missing, damaged or was built by another model."""


class DownloadError(MMGEMError):
    """Base weights that could not be fetched or whose checksum is wrong."""


def why(error: Exception) -> str:
    """What is wrong with a text file that could not be read or parsed, without Python's own words for it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)
