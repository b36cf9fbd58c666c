"""What one request may ask for, and what the server takes on at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mmgem.errors import ConfigError

# Of one request; part of the API, so the same on every server.
HITS = 200
BOXES = 64
CLASSES = 1000
INPUTS = 256
MESSAGES = 256
TEXT_CHARS = 20_000
CLASS_CHARS = 1000
WHERE_CHARS = 200
FOLDER_CHARS = 4096
PASSAGES = 20
CAPTION_TOKENS = 60
PAGE = 500
THUMB = 2048
MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True)
class Limits:
    """What an operator may set; ``mmgem serve --limit NAME=VALUE``."""

    batch: int = 32
    """Most texts, photos or searches joined in one pass of the model; 1: none are joined."""
    tokens: int = 2048
    """Most tokens of the texts joined in one pass."""
    text_tokens: int = 8192
    """Tokens of one text."""
    request_tokens: int = 131_072
    """Tokens of all texts of one request; of ``/classify`` a class is read in a dozen sentences."""
    question_tokens: int = 256
    """Tokens of a question to the corpus, which is read again with every passage."""
    queue: int = 256
    """Requests in work or waiting at once; one more is answered with 429."""
    connections: int = 1024
    """Open connections."""
    seconds: float = 30.0
    """A request that has no answer after this long is answered with 504."""
    fetch_seconds: float = 10.0
    """A photo given by address has to arrive within this time."""
    body_mb: float = 32.0
    """Largest body of a request, in 10^6 bytes."""
    bodies_mb: float = 256.0
    """Bodies held at once, all requests together, in 10^6 bytes."""
    body_seconds: float = 20.0
    """A body has to arrive within this time, the head of a request within a quarter of it."""
    reader_seconds: float = 30.0
    """A client that takes less than 64 kB of its answer in this time, nor all of it, is cut off."""
    megapixels: float = 50.0
    """Largest photo, in 10^6 pixels."""
    recent: int = 4096
    """Embeddings of texts, and of photos, kept for when they are asked for again."""
    thumbs_mb: float = 64.0
    """Memory for small copies of photos, in 10^6 bytes."""
    stop_seconds: float = 8.0
    """After SIGTERM, how long accepted requests have to finish."""

    def __post_init__(self) -> None:
        for field in fields(self):
            low = (
                0 if field.name in ("recent", "thumbs_mb") else 1 if isinstance(field.default, int) else 1e-3
            )
            if not getattr(self, field.name) >= low:
                raise ConfigError(f"{field.name}: must be at least {low}, not {getattr(self, field.name)}")
