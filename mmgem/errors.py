"""Every error mmgem raises on purpose, in one tree: catch :class:`MMGEMError` to catch them all.

The command line prints the message on one line and exits with the class's ``exit_code``.
"""

from __future__ import annotations

import errno
import os

# What the name of a file is at fault for, and what decoders say of damaged offsets; trying again is no use.
_LASTING = frozenset(
    {errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EFBIG}
)


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


class MomentError(ImageError, UsageError):
    """A moment that a clip does not have, being over by then; one of several such clips is skipped."""


class TransientImageError(ImageError):
    """An image that could not be read now, for want of memory or files or by a fault of the disk: nothing is
    known of its bytes, so it is not a verdict on them, and the next run tries again."""


class CheckpointError(MMGEMError):
    """A checkpoint folder that is incomplete, damaged or does not fit the model; names what is wrong."""


class MissingModelError(CheckpointError, UsageError):
    """A model that is named and not there."""


class MissingCorpusError(CheckpointError, UsageError):
    """A corpus that is asked of a model which has learned none."""


class SearchIndexError(MMGEMError):
    """A search index that is missing, damaged or was built by another model."""


class MissingIndexError(SearchIndexError, UsageError):
    """A search index or vector store that is named and not there."""


class MissingFolderError(UsageError):
    """A folder of photos that is not there; perhaps only now."""


class EmptyFolderError(SearchIndexError):
    """A folder without photos, of which the index has some: a drive that is not mounted looks like that."""


class BusyError(MMGEMError):
    """What another process is writing at this moment; ``holder`` names the process."""

    def __init__(self, message: str, holder: str = "another process"):
        super().__init__(message)
        self.holder = holder


class StoppedError(MMGEMError):
    """Training that was asked to stop by SIGTERM, and has saved where it is."""

    exit_code = 143


class DownloadError(MMGEMError):
    """Base weights that could not be fetched or whose checksum is wrong."""


def why(error: Exception) -> str:
    """What is wrong with a file that could not be read or parsed, without Python's own words for it."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if isinstance(error, MemoryError):
        return "out of memory"
    return "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else str(error)


_TRANSIENT_REASONS = frozenset(
    {os.strerror(number) for number in errno.errorcode if number not in _LASTING} | {"MemoryError"}
)


def is_transient(error: BaseException) -> bool:
    """Whether ``error`` says nothing of the bytes that were read: memory, open files, rights, the disk, a
    network. Decoders' complaints about damage are ``OSError`` too, but without a number."""
    if isinstance(error, MemoryError | TimeoutError | TransientImageError):
        return True
    if not isinstance(error, OSError):
        return False
    if error.errno is None:
        return str(error).startswith("out of memory")  # Pillow's word for it
    return error.errno not in _LASTING


def unreadable_image(error: Exception, where: str = "") -> ImageError:
    """The error for an image whose file raised ``error`` when it was read: a :class:`TransientImageError` if
    that says nothing of its bytes. ``where``: what the message begins with."""
    if is_transient(error):
        return TransientImageError(f"{where}could not be read now: {why(error)}")
    return ImageError(f"{where}{why(error)}")


def is_transient_reason(reason: str) -> bool:
    """Whether ``reason``, as earlier versions recorded it for good, is that of a transient error."""
    return reason in _TRANSIENT_REASONS or reason.startswith("out of memory")
