"""Who may change a model folder: one at a time, and nobody while a run still trains it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from mmgem.errors import BusyError
from mmgem.utils.files import same_file
from mmgem.utils.locks import holder_of, lock_folder

RUN_LOCK = "lock"
"""In the folder of a training run: its lock."""


@contextmanager
def lock_model(folder: Path) -> Iterator[None]:
    """Hold a model folder from before it is read until it has been written; another writer waits.

    Raises ``BusyError`` for the model of a run that is still training: it would be replaced by the next
    better one, and with it whatever was added.
    """
    if folder.name == "model" and (holder := holder_of(folder.resolve().parent / RUN_LOCK)):
        raise BusyError(f"{folder}: {holder} is training this model; wait until it is done", holder)
    with lock_folder(folder):
        yield


def lock_if_same(source: Path, out: Path) -> AbstractContextManager[None]:
    """:func:`lock_model` for a model that is read from ``source`` and written to ``out``, if they are one
    folder: nothing may come between."""
    return lock_model(out) if same_file(source, out) else nullcontext()
