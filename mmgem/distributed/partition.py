"""What part of a batch a process has."""

from __future__ import annotations

from mmgem.errors import ConfigError


def shard_slice(count: int, rank: int, world_size: int) -> slice:
    """The contiguous part of ``count`` things that process ``rank`` of ``world_size`` has, as even as can
    be."""
    return slice(rank * count // world_size, (rank + 1) * count // world_size)


def check_enough(count: int, what: str, world_size: int, field: str = "train.batch_size") -> None:
    """Raise ``ConfigError`` naming ``field`` if a step has ``count`` of something, too few for all
    processes."""
    if count < world_size:
        raise ConfigError(f"{field}: {count} {what} a step, fewer than the {world_size} processes")
