"""Bring the index of a folder of photos and clips up to date: embed what is new, forget what is gone.

Notable choices. A file whose size, modification time and time of change are as recorded is not opened, so a
run with nothing to do is one walk over the folder. Any other file is hashed first, and embedded only if its
bytes are new to the index. The model is made when the first photo needs it, never before. Work is recorded
batch by batch (:mod:`mmgem.search.index_store`): a killed run loses at most one batch and the next run goes
on from there. A photo that cannot be decoded is recorded too, with the reason, and tried again when its bytes
change. What was wrong only now (memory, rights, the disk) is reported but not recorded, so the next run tries
again. A clip (:mod:`mmgem.data.clips`) is a photo with several rows, its moments, and a batch of its own.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from mmgem.data.clips import is_clip
from mmgem.data.content_hashes import content_digest
from mmgem.data.images import list_images
from mmgem.data.moments import VIDEO_SUFFIXES, Moment, is_video
from mmgem.data.photo_metadata import PhotoMetadata, read_metadata
from mmgem.data.records import Box
from mmgem.data.video import has_av
from mmgem.errors import (
    EmptyFolderError,
    ImageError,
    SearchIndexError,
    TransientImageError,
    UsageError,
    is_transient,
    is_transient_reason,
)
from mmgem.search.index_files import database_file
from mmgem.search.index_store import HashedFile, IndexStore, NewContent, StoredPhoto
from mmgem.search.moments import VideoEmbedder, embed_clip
from mmgem.utils.files import open_regular
from mmgem.utils.unit_vectors import embedding_problem

# Record files whose content is known already (moved, touched) at least this often.
_FILES_A_TRANSACTION = 1024


class Embedder(VideoEmbedder, Protocol):
    """What an index needs of a model; ``fingerprint`` identifies the weights, ``dim`` is D."""

    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def dim(self) -> int: ...  # noqa: D102

    def embed_images(self, images: Sequence[Path], /) -> np.ndarray:
        """Return (n, D) float32 rows of unit length; raise ImageError if any image cannot be decoded."""
        ...

    def find_regions(self, images: Sequence[Path], count: int, /) -> list[tuple[list[Box], np.ndarray]]:
        """Return up to ``count`` boxes of each image and their vectors; called for an index with regions."""
        ...


@dataclass(frozen=True, slots=True)
class UnreadablePhoto:
    """A photo that is not in the index; ``path`` is relative to the folder. ``transient``: its bytes are not
    at fault, and the next run tries again."""

    path: str
    reason: str
    transient: bool = False

    @property
    def explanation(self) -> str:
        """The reason, and whether it holds for this run only."""
        return f"could not be read now: {self.reason}" if self.transient else self.reason


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What a run did.

    ``photos`` can be found now, the sum of three: ``embedded`` went through the model, ``reused`` are moved,
    touched or copies of others, and ``unchanged`` are as they were at the last run.
    ``removed`` are gone from the folder (moved ones not counted). ``failed`` lists every photo that is in
    the folders but not in the index, those of earlier runs included. ``folders``: of the index, the first
    that to which paths are relative. ``clips`` of the ``photos`` move, and are found by their ``moments``.
    ``shortened``: regions became short (:mod:`mmgem.search.region_rows`).
    """

    photos: int
    embedded: int
    reused: int
    unchanged: int
    removed: int
    failed: tuple[UnreadablePhoto, ...]
    seconds: float
    folders: tuple[Path, ...] = ()
    clips: int = 0
    moments: int = 0
    shortened: bool = False


def update_index(
    out: Path,
    folders: Path | Sequence[Path],
    make_embedder: Callable[[], Embedder],
    fingerprint: str,
    *,
    exclude: Sequence[str] | None = None,
    model: str = "",
    regions: int | None = None,
    batch: int = 32,
    repair: bool = False,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> IndexReport:
    """Make the index ``out`` (a folder of its own) hold the photos and clips under ``folders`` and under
    those that it has already, and only those. Videos are left out where there is no PyAV.

    A folder that has moved, with the same photos, is the same one if it was the first. One that is not there
    now (a drive that is not mounted) keeps its photos, unless it is among ``folders``. ``exclude``: patterns
    of files and folders to leave out, see :func:`mmgem.data.images.list_images` (None: as the index has it).

    ``make_embedder`` is called at most once, and only if some photo has to be embedded; ``fingerprint`` is
    that of the model it makes. ``model`` is kept in the index for whoever opens it (a name or a path that
    loads the model again). ``regions``: how many boxes of each photo can be found beside the whole (None: as
    the index has it, 0 if it is new). ``repair``: look for damage among all vectors, and embed the photos of
    what is damaged again. ``progress`` is handed the paths of the new, changed, moved and touched
    files and gives them back one by one, showing a bar: ``partial(track, label=…)`` of
    :mod:`mmgem.utils.progress`.

    Raises UsageError if one of ``folders`` is not a folder or is ``out``, or if there are none, and
    SearchIndexError if the index belongs to another model or another number of regions, is damaged, or is
    being written by another process, or (EmptyFolderError) if the folders have no photos although the index
    does (a drive that is not mounted looks like that).
    """
    began = time.perf_counter()
    given = [path.resolve() for path in ([folders] if isinstance(folders, Path) else folders)]
    for root in given:
        if not root.is_dir():
            raise UsageError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
        if out.resolve() == root:
            raise UsageError(f"{out}: the index would lie among the photos; give --out a folder of its own")
    if not given and not database_file(out).is_file():
        raise UsageError(f"{out}: no index here yet; say which folder's photos it is to hold")
    with IndexStore(out, fingerprint, regions) as store:
        roots = _roots(store, given)
        folder, patterns = roots[0], store.exclude if exclude is None else tuple(exclude)
        files_found = _scan(roots, patterns)
        damaged = store.drop_damaged() if repair else []
        store.forget_problems([path for path, reason in store.problems() if is_transient_reason(reason)])
        known = store.photos()
        if not has_av():
            for path in [path for path in files_found if is_video(path)]:
                if path not in known or not known[path].unchanged(files_found[path]):
                    del files_found[path]
        if (known or damaged) and not files_found:
            raise EmptyFolderError(
                f"{folder}: no photos here, but {out} holds {len(known) + len(damaged)}; "
                f"delete {out} if they are really gone"
            )
        store.set_source(folder, model, roots[1:], patterns)
        pending = [
            path for path, stat in files_found.items() if path not in known or not known[path].unchanged(stat)
        ]
        away = tuple(f"{root.as_posix()}/" for root in roots[1:] if not root.is_dir())
        removed_paths = [path for path in known if path not in files_found and not path.startswith(away)]
        store.forget(removed_paths)
        run = _IndexUpdate(store, folder, make_embedder, fingerprint, known)
        for path in progress(pending):
            run.add(path)
            if len(run.queue) >= batch or len(run.recorded) >= _FILES_A_TRANSACTION:
                run.flush()
        run.flush()
        _read_missing_metadata(store, folder, progress)
        store.compact()
        failed = dict(store.problems()) | run.unreadable
        indexed = store.photos().keys() - failed.keys()
        reused = len(indexed & set(pending)) - run.embedded
        clips, moments = store.clips()
    moved = sum((Counter(known[path].content for path in removed_paths) & run.reused_by_new_paths).values())
    return IndexReport(
        photos=len(indexed),
        embedded=run.embedded,
        reused=reused,
        unchanged=len(indexed) - run.embedded - reused,
        removed=len(removed_paths) - moved,
        failed=tuple(
            UnreadablePhoto(path, reason, path in run.unreadable) for path, reason in sorted(failed.items())
        ),
        seconds=time.perf_counter() - began,
        folders=tuple(roots),
        clips=clips,
        moments=moments,
        shortened=store.shortened,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Embedded:
    """The vectors (m, D) of a file, of which the whole photo is the first, or all are moments."""

    vectors: np.ndarray
    boxes: Sequence[Box | None]
    moments: Sequence[Moment] = ()
    metadata: PhotoMetadata | None = None


class _IndexUpdate:
    """The state of one update: ``queue`` waits for the model, ``settled`` only for a transaction."""

    def __init__(
        self,
        store: IndexStore,
        folder: Path,
        make_embedder: Callable[[], Embedder],
        fingerprint: str,
        known: dict[str, StoredPhoto],
    ) -> None:
        self.store, self.folder, self.known = store, folder, known
        self.make_embedder, self.fingerprint = make_embedder, fingerprint
        self.embedder: Embedder | None = None
        self.queue: dict[bytes, list[HashedFile]] = {}
        self.recorded: list[HashedFile] = []
        self.unreadable: dict[str, str] = {}
        self.reused_by_new_paths: Counter[int] = Counter()
        self.embedded = 0

    def add(self, path: str) -> None:
        """Hash one file and decide what it needs. One that cannot be read loses its entry."""
        try:
            file = _hash_file(self.folder, path)
        except OSError as error:
            self.store.forget([path])
            if not isinstance(error, FileNotFoundError):
                self.unreadable[path] = error.strerror or str(error)
            return
        content = self.store.content(file.digest)
        if content is None:
            alone = file.digest not in self.queue and is_clip(self.folder / path)
            if alone:
                self.flush()
            self.queue.setdefault(file.digest, []).append(file)
            if alone:
                self.flush()
            return
        self.recorded.append(file)
        if path not in self.known:
            self.reused_by_new_paths[content] += 1

    def flush(self) -> None:
        """Embed the queue and record everything so far, in one transaction.

        A file that changed while it was being embedded is left for the next run.
        """
        contents: list[NewContent] = []
        files = self.recorded
        if self.queue:
            firsts = [copies[0] for copies in self.queue.values()]
            results = self._embed([self.folder / file.path for file in firsts])
            for first, result in zip(firsts, results, strict=True):
                if _stat(self.folder / first.path) != (first.size, first.mtime_ns, first.ctime_ns):
                    continue
                if isinstance(result, TransientImageError):
                    paths = [file.path for file in self.queue[first.digest]]
                    self.store.forget(paths)
                    self.unreadable.update(dict.fromkeys(paths, str(result)))
                    continue
                files.extend(self.queue[first.digest])
                if isinstance(result, str):
                    contents.append(NewContent(first.digest, np.zeros((0, 0), np.float32), problem=result))
                else:
                    metadata = result.metadata or read_metadata(self.folder / first.path)
                    size, facts = (metadata.width, metadata.height), (result.vectors, result.boxes)
                    contents.append(
                        NewContent(first.digest, *facts, size=size, metadata=metadata, moments=result.moments)
                    )
                    self.embedded += 1
        self.store.record(contents, files)
        self.queue, self.recorded = {}, []

    def _embed(self, paths: list[Path]) -> list[_Embedded | str | TransientImageError]:
        """Return the vectors of each photo, or why it has none; a TransientImageError if that is not the
        fault of its bytes. A clip is alone.

        A batch with a bad photo, or too large for the memory, is halved until that one is alone.
        """
        if self.embedder is None:
            self.embedder = self.make_embedder()
            if self.embedder.fingerprint != self.fingerprint:
                actual = self.embedder.fingerprint
                raise SearchIndexError(
                    f"the model's fingerprint is {actual}, not {self.fingerprint} as announced"
                )
        try:
            if len(paths) == 1 and is_clip(paths[0]):
                clip = embed_clip(self.embedder, paths[0])
                whole = [None] * len(clip.moments)
                problem = embedding_problem(clip.vectors)
                return [problem or _Embedded(clip.vectors, whole, clip.moments, clip.metadata)]
            vectors = np.asarray(self.embedder.embed_images(paths), np.float32)
            regions = self.embedder.find_regions(paths, count) if (count := self.store.regions) else []
        except (ImageError, MemoryError) as error:
            if len(paths) == 1:
                reason = str(error).removeprefix(f"{paths[0]}: ").removeprefix("could not be read now: ")
                return [TransientImageError(reason or "out of memory") if is_transient(error) else reason]
            middle = len(paths) // 2
            return self._embed(paths[:middle]) + self._embed(paths[middle:])
        if vectors.shape != (len(paths), self.embedder.dim):
            raise SearchIndexError(
                f"the model gave an array {vectors.shape}, not {(len(paths), self.embedder.dim)}"
            )
        regions = regions or [([], vectors[:0])] * len(paths)
        rows = [np.concatenate([v[None], more]) for v, (_, more) in zip(vectors, regions, strict=True)]
        return [
            embedding_problem(photo_vectors) or _Embedded(photo_vectors, [None, *boxes])
            for photo_vectors, (boxes, _) in zip(rows, regions, strict=True)
        ]


def _read_missing_metadata(
    store: IndexStore, folder: Path, progress: Callable[[Iterable[str]], Iterable[str]]
) -> None:
    """Read the headers of photos that an earlier version has embedded."""
    missing = store.without_metadata()
    found: dict[bytes, PhotoMetadata] = {}
    for digest, path in zip(missing, progress(list(missing.values())) if missing else (), strict=True):
        with suppress(ImageError):  # gone or changed by now: the next run sees to it
            found[digest] = read_metadata(folder / path)
        if len(found) >= _FILES_A_TRANSACTION:
            store.record_metadata(found)
            found = {}
    store.record_metadata(found)


def _scan(roots: Sequence[Path], exclude: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    """Map the path of each photo under ``roots``, relative to the first or else absolute, to (size in bytes,
    mtime in ns, ctime in ns). Roots after the first may be missing."""
    stats = {}
    first = str(roots[0])
    for number, root in enumerate(roots):
        for path in list_images(root, exclude, VIDEO_SUFFIXES) if number == 0 or root.is_dir() else ():
            stat = _stat(path)
            if stat is not None:
                name = str(path)[len(first) :].lstrip(os.sep) if path.is_relative_to(first) else str(path)
                stats[name.replace(os.sep, "/")] = stat
    return stats


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _hash_file(folder: Path, path: str) -> HashedFile:
    with open_regular(folder / path) as file:
        stat = os.fstat(file.fileno())
        digest = content_digest(file)
    return HashedFile(path, stat.st_size, stat.st_mtime_ns, digest, stat.st_ctime_ns)


def _roots(store: IndexStore, given: Sequence[Path]) -> list[Path]:
    """The folders of the index, with those that are ``given``, none below another that comes before it."""
    first, more = store.folder, store.further_folders
    if first is not None and not first.is_dir() and given and given[0] not in more:
        first = None  # moved
    roots: list[Path] = []
    for folder in [*([] if first is None else [first]), *more, *given]:
        if not any(folder.is_relative_to(root) for root in roots):
            roots.append(folder)
    return roots
