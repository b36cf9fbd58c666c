"""What the manifest of a photo index keeps of the photos' headers, and how it is asked about.

Facts belong to a content by its digest, so moved photos keep them. The table came later than the others: an
index without it, or with contents that are not in it, is brought up to date by the next ``mmgem index``,
which reads the headers only. Times are seconds since 1970 by the clock on the wall, of the camera or of this
machine, as if it were UTC: what a person means by a date.

Filters are asked of columns in memory: :class:`mmgem.search.photo_table.PhotoTable`.
"""

from __future__ import annotations

import sqlite3
import unicodedata
from collections.abc import Iterable
from datetime import datetime, timedelta

from mmgem.data.photo_metadata import PhotoMetadata

METADATA_TABLE = (
    "CREATE TABLE IF NOT EXISTS metadata (digest BLOB PRIMARY KEY, taken INTEGER, camera TEXT, "
    "latitude REAL, longitude REAL) WITHOUT ROWID"
)
_EPOCH = datetime(1970, 1, 1)


def write_metadata(db: sqlite3.Connection, digest: bytes, metadata: PhotoMetadata) -> None:
    """Record what the header of the content ``digest`` says."""
    taken = None if metadata.taken is None else wall_seconds(metadata.taken)
    facts = (digest, taken, metadata.camera, metadata.latitude, metadata.longitude)
    db.execute("REPLACE INTO metadata VALUES (?, ?, ?, ?, ?)", facts)
    db.execute(
        "UPDATE contents SET width = ?, height = ? WHERE digest = ? AND width IS NULL",
        (metadata.width, metadata.height, digest),
    )


def unread_contents(db: sqlite3.Connection) -> Iterable[tuple[bytes, bytes]]:
    """The digest of each content that photos show and whose header has not been read, and a path of it."""
    return db.execute(
        "SELECT contents.digest, min(path) FROM contents JOIN photos ON content = id LEFT JOIN metadata USING"
        " (digest) WHERE metadata.digest IS NULL AND problem IS NULL GROUP BY id"
    )


def forget_metadata(db: sqlite3.Connection) -> None:
    """Forget the headers of contents that are gone."""
    db.execute("DELETE FROM metadata WHERE digest NOT IN (SELECT digest FROM contents)")


def wall_seconds(moment: datetime) -> int:
    """Seconds since 1970 of a clock without a zone, as if it were UTC."""
    return int((moment - _EPOCH).total_seconds())


def wall_time(seconds: int) -> datetime:
    """The moment of :func:`wall_seconds`."""
    return _EPOCH + timedelta(seconds=seconds)


def folded(name: str) -> str:
    """A name as it is compared: without case, composed, and without bytes that are no text."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return unicodedata.normalize("NFC", text.casefold()).replace("\0", "")
