"""Keep something up to date with folders of photos, for as long as it is asked to: what ``mmgem watch`` runs.

Notable choices. What the system says of changes only tells *when* to look; what there is to do is found as
``mmgem index`` finds it, by a walk, so that what comes out is the same. Changes that come together are one.
Between the end of one watcher and the beginning of the next (a folder was removed, or came back) nothing is
seen, so each begins with a look. What could not be done (another process writes the index, the folder is
gone) is tried again until it can.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from mmgem.data.image_kinds import readable_suffixes
from mmgem.data.moments import VIDEO_SUFFIXES
from mmgem.errors import UsageError

LOOK_SECONDS = 2.0
"""How long nothing has to happen until folders are looked for, and what could not be done is tried again."""

_DEBOUNCE_MS = 1600


def require_watchfiles() -> None:
    """Raise UsageError unless folders can be watched."""
    try:
        import watchfiles  # noqa: F401
    except ImportError as error:
        raise UsageError('watching folders needs one more package: pip install "mmgem[watch]"') from error


def watch_folders(
    folders: Callable[[], Sequence[Path]],
    own: Path,
    update: Callable[[], bool],
    stop: Event | None = None,
    look: float = LOOK_SECONDS,
) -> None:
    """Call ``update`` at first, and whenever something under ``folders`` changes that may be a photo, until
    ``stop`` is set or the user interrupts (``KeyboardInterrupt``).

    ``update`` says whether it could be done; if not it is called again every ``look`` seconds, as it is when
    a folder is removed or comes back. ``own``: a folder of ours, which does not count. Raises UsageError
    without the package watchfiles, and if the system will not watch so many folders.
    """
    require_watchfiles()
    import watchfiles

    stop = Event() if stop is None else stop
    own, suffixes = own.resolve(), readable_suffixes() + VIDEO_SUFFIXES

    def may_be_a_photo(change: watchfiles.Change, path: str) -> bool:
        return _counts(Path(path), change == watchfiles.Change.modified, own, roots, suffixes)

    pending = True
    while not stop.is_set():
        roots = _present(folders())
        pending = not update() if pending or not roots else pending
        if not roots:
            stop.wait(look)
            continue
        try:
            for changes in watchfiles.watch(
                *roots,
                watch_filter=may_be_a_photo,
                debounce=_DEBOUNCE_MS,
                stop_event=stop,
                rust_timeout=int(1000 * look),
                yield_on_timeout=True,
                raise_interrupt=True,
            ):
                if pending or changes:
                    pending = not update()
                moved = any(Path(path) in roots for _, path in changes)  # the system looks there no more
                if pending or moved or _present(folders()) != roots:
                    pending = True
                    break
        except (OSError, RuntimeError) as error:  # what watchfiles says of the system
            if _present(folders()) == roots:
                raise UsageError(f"the folders cannot be watched: {error}") from error
            pending = True


def _present(folders: Sequence[Path]) -> dict[Path, tuple[int, int]]:
    """Those that are there, and which they are."""
    found: dict[Path, Any] = {}
    for folder in folders:
        try:
            stat = folder.stat()
        except OSError:
            continue
        if folder.is_dir():
            found[folder] = stat.st_dev, stat.st_ino
    return found


def _counts(
    path: Path, modified: bool, own: Path, roots: Sequence[Path] | dict[Path, Any], suffixes: tuple[str, ...]
) -> bool:
    """Whether a change of ``path`` may be one of photos: it is not hidden below its root, not of ours, and
    named as a photo, a folder, or something that is gone."""
    if path.is_relative_to(own):
        return False
    root = next((root for root in roots if path.is_relative_to(root)), None)
    if root is None or any(part.startswith(".") for part in path.relative_to(root).parts):
        return False
    suffix = path.suffix.lower()
    if not suffix or suffix in suffixes:
        return True
    return not modified and (path.is_dir() or not os.path.lexists(path))
