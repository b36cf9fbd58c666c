"""A graph beside the vectors of an index, for fast search (HNSW, arXiv 1603.09320, by usearch).

    IDX/ann/graph.json         what the graph is of, and the names of its files
    IDX/ann/photos-V.usearch   the graph of the whole photos, its V-th version
    IDX/ann/regions-V.usearch  that of the boxes, if the index has any
    IDX/ann/axes-V.npy         the axes of a graph of fewer dimensions, (D, dims) float32

Notable choices. A graph keeps short forms of the vectors (8 bits, signs only, fewer dimensions) and only
proposes candidates: scores come from the index's own float vectors. Its keys are row numbers, which mean
nothing without the manifest, so a photo that is gone cannot be found, and rows newer than the graph are for
the search to compare. A graph that does not fit (rows numbered anew, other vectors, a damaged file) is not
used, and the next update makes it again. Files are never changed in place and ``graph.json`` is replaced
last: killed at any moment, the last whole version is there.

The first dimensions alone are enough for models trained for that (Matryoshka, arXiv 2205.13147), and for any
other after a rotation: cosines stay as they are, and the directions in which the index's own vectors are long
(eigenvectors of their second moments) come first.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.errors import SearchIndexError, UsageError
from mmgem.inference.pca import FITTED, pca_components
from mmgem.search.store import Snapshot, read_store, write_lock
from mmgem.utils.files import write_atomic

FOLDER = "ann"
_PARTS = ("photos", "regions")
_STATE = "graph.json"
_FORMAT = 1
_LINKS, _BUILD_WIDTH = 16, 128  # of a node, and how many are looked at to find them: usearch's defaults
_BLOCK = 2048  # rows encoded and added at once
_PIECE = 100_000  # rows after which the graph is saved, or a tenth of all if that is more
_GROWN = 4  # an index of so many times the rows that its axes are from needs others
_SAMPLED = 64  # rows by which vectors are known again
_KNOWN = 0.9  # of the rows; a graph of fewer is no help, the others being compared one by one
_OVERSAMPLED = 3  # candidates for each row that is wanted, if that is more than the kind's own
_WORTHWHILE = 4  # a graph of so many times the candidates is faster than comparing all


def _int8(vectors: np.ndarray) -> np.ndarray:
    """Each row over all of 8 bits: cosines do not mind its length."""
    longest = np.abs(vectors).max(1, keepdims=True)
    return np.rint(vectors * (127 / np.maximum(longest, 1e-30))).astype(np.int8)


@dataclass(frozen=True, slots=True)
class Kind:
    """A short form of vectors: usearch's names of its numbers and of how they are compared, how float32 rows
    (n, d) become it, and the fewest candidates that make up for what it loses."""

    dtype: str
    metric: str
    encode: Callable[[np.ndarray], np.ndarray]
    candidates: int


KINDS = {
    "int8": Kind("i8", "cos", _int8, 192),
    "float16": Kind("f16", "cos", lambda vectors: vectors.astype(np.float16), 192),
    "float32": Kind("f32", "cos", lambda vectors: vectors.astype(np.float32), 192),
    "binary": Kind("b1", "hamming", lambda vectors: np.packbits(vectors > 0, axis=1), 512),
}
"""What graphs can be made of, by name."""


@dataclass(frozen=True, slots=True)
class Ann:
    """Which graph to keep: of which of the :data:`KINDS`, and of how many dimensions (0: all)."""

    kind: str = "int8"
    dims: int = 0

    @classmethod
    def parse(cls, text: str) -> Ann:
        """``int8`` or ``int8:256``. Raises UsageError for anything else."""
        kind, colon, dims = text.partition(":")
        if kind not in KINDS or (colon and not (dims.isdecimal() and int(dims))):
            raise UsageError(f"no graph {text!r}; there are {', '.join(KINDS)}, with dimensions: int8:256")
        return cls(kind, int(dims) if colon else 0)

    def __str__(self) -> str:
        return f"{self.kind}:{self.dims}" if self.dims else self.kind


@dataclass(frozen=True, slots=True)
class GraphReport:
    """What an update did: the graph's form, the rows it is of, how many were added, its bytes on the disk."""

    ann: Ann
    rows: int
    added: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _State:
    """``graph.json``: the graph is of the first ``rows`` rows of ``generation``, ``sample`` is a hash of some
    of them, ``fitted`` of them made the axes; ``files`` are names and sizes in bytes."""

    kind: str
    dims: int
    generation: int
    rows: int = 0
    sample: str = ""
    fitted: int = 0
    version: int = 0
    files: dict[str, int] = field(default_factory=dict)
    format: int = _FORMAT

    @property
    def ann(self) -> Ann:
        return Ann(self.kind, self.dims)

    def file(self, folder: Path, part: str) -> Path | None:
        """The file of "photos", "regions" or "axes"; None if there is none."""
        found = (folder / name for name in self.files if name.startswith(f"{part}-"))
        return next(found, None)

    def misfit(self, folder: Path, snapshot: Snapshot) -> str | None:
        """Why this is no graph of ``snapshot``, or None if it is one."""
        if self.generation != snapshot.generation:
            return "is of rows that have been numbered anew"
        if self.rows > len(snapshot.vectors) or self.sample != _sample(snapshot.vectors[: self.rows]):
            return "is of other vectors"
        for name, size in self.files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                return f"is damaged ({name})"
        return None


class Graph:
    """The graph of an index as it was when opened, memory-mapped: of its first ``rows`` rows."""

    def __init__(self, folder: Path, state: _State, dim: int) -> None:
        """``dim``: D, of the index's vectors."""
        self.ann, self.rows, self.bytes = state.ann, state.rows, sum(state.files.values())
        self._code = _Code(state.ann, _read_axes(folder, state))
        self._parts = {}
        for part in _PARTS:
            if (file := state.file(folder, part)) is not None:
                self._parts[part] = self._code.empty(dim)
                self._parts[part].view(file)

    @classmethod
    def open(cls, out: Path, snapshot: Snapshot) -> Graph | None:
        """The graph of the index ``out``, whose state is ``snapshot``; None if it keeps none.

        Raises SearchIndexError if it does not fit the index or lacks too much of it, UsageError if usearch is
        not installed.
        """
        state = _read_state(out)
        if state is None:
            return None
        require_usearch()
        if problem := state.misfit(out / FOLDER, snapshot):
            raise SearchIndexError(f"{out}: its graph {problem}; mmgem index makes it again")
        if state.rows < _KNOWN * (total := len(snapshot.vectors)):
            raise SearchIndexError(
                f"{out}: its graph is of {state.rows} of {total} vectors; mmgem index goes on"
            )
        try:
            return cls(out / FOLDER, state, snapshot.vectors.shape[1])
        except (OSError, RuntimeError, ValueError) as error:  # also replaced just now by a newer version
            raise SearchIndexError(f"{out}: its graph cannot be read ({error})") from error

    def near(self, queries: np.ndarray, count: int, boxed: bool = False) -> list[np.ndarray] | None:
        """Rows near to each of ``queries`` (q, D) float32, int64, in no order: enough that the nearest
        ``count`` are among them; of boxes if ``boxed``, else of photos. None where so many are wanted that
        comparing all is as good. Rows that no photo points to any more may be among them.
        """
        graph = self._parts.get(_PARTS[boxed])
        many = max(count * _OVERSAMPLED, KINDS[self.ann.kind].candidates)
        if graph is None or many * _WORTHWHILE > len(graph):
            return None
        codes = self._code(queries)
        if len(queries) == 1:
            return [graph.search(codes[0], many, threads=1).keys.astype(np.int64)]
        found = graph.search(codes, many)
        return [keys[:n].astype(np.int64) for keys, n in zip(found.keys, found.counts, strict=True)]


def update_graph(
    out: Path,
    ann: Ann | None = None,
    *,
    threads: int = 0,
    progress: Callable[[Sequence[slice]], Iterable[slice]] = iter,
) -> GraphReport | None:
    """Make the graph of the index ``out`` be of all its rows; None, and nothing done, for an index without
    vectors, or without ``ann`` and without a graph.

    ``ann``: which to keep from now on (None: as it is). ``threads`` that add rows, 0: one a core.
    ``progress`` is handed the slices of rows to add and gives them back one by one, showing a bar. Stopped,
    it goes on from where the graph was saved last. Raises UsageError if usearch is not installed or the
    vectors have fewer dimensions, SearchIndexError if the index is missing, damaged or being written.
    """
    began = time.perf_counter()
    with closing(write_lock(out)):
        state = _known_state(out, ann)
        if state is None:
            return None
        require_usearch()
        snapshot = read_store(out)
        total, dim = snapshot.vectors.shape
        if not total:
            return None
        if state.dims > dim:
            raise UsageError(f"--ann {state.ann}: the vectors of {out} have {dim} numbers")
        build = _Build(out / FOLDER, state, snapshot, threads)
        added = total - build.state.rows
        if added:
            build.run(progress)
    size = sum(build.state.files.values())
    return GraphReport(state.ann, total, added, size, time.perf_counter() - began)


def drop_graph(out: Path) -> None:
    """Search the index ``out`` exactly from now on."""
    with closing(write_lock(out)):
        (out / FOLDER / _STATE).unlink(missing_ok=True)
        shutil.rmtree(out / FOLDER, ignore_errors=True)


def require_usearch() -> Any:
    """The module, or a UsageError that says how to get it."""
    try:
        from usearch import index
    except ImportError as error:
        raise UsageError("a graph (--ann) needs usearch: pip install 'mmgem[index]'") from error
    return index


class _Code:
    """Vectors as the graph has them."""

    def __init__(self, ann: Ann, axes: np.ndarray | None) -> None:
        self.kind, self.axes = KINDS[ann.kind], axes

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        return self.kind.encode(vectors if self.axes is None else vectors @ self.axes)

    def empty(self, dim: int) -> Any:
        """A graph of nothing yet, for vectors of ``dim`` numbers."""
        width = dim if self.axes is None else self.axes.shape[1]
        return require_usearch().Index(
            ndim=-width % 8 + width if self.kind.dtype == "b1" else width,
            metric=self.kind.metric,
            dtype=self.kind.dtype,
            connectivity=_LINKS,
            expansion_add=_BUILD_WIDTH,
            enable_key_lookups=False,
        )


class _Build:
    """The graph in memory, while rows are added; ``state`` is that of the last version saved."""

    def __init__(self, folder: Path, state: _State, snapshot: Snapshot, threads: int) -> None:
        self.folder, self.snapshot, self.threads = folder, snapshot, threads
        total = len(snapshot.vectors)
        grown = state.dims and state.fitted < min(FITTED, total // _GROWN)
        if state.misfit(folder, snapshot) or grown:
            state = _State(state.kind, state.dims, snapshot.generation, version=state.version)
        self.state = state

    def run(self, progress: Callable[[Sequence[slice]], Iterable[slice]]) -> None:
        """Add the rows that are missing, and save now and then."""
        vectors, total = self.snapshot.vectors, len(self.snapshot.vectors)
        boxed = self.snapshot.boxed if self.snapshot.boxed is not None else np.zeros(total, bool)
        if self.state.rows:
            code = _Code(self.state.ann, _read_axes(self.folder, self.state))
        else:
            code = _Code(
                self.state.ann, pca_components(vectors, self.state.dims) if self.state.dims else None
            )
            self.state = dataclasses.replace(self.state, fitted=min(FITTED, total))
            self._save({}, None, 0)  # what is wanted is known from now on
        parts = {part: code.empty(vectors.shape[1]) for part in _PARTS}
        for part, graph in parts.items():
            if (file := self.state.file(self.folder, part)) is not None:
                graph.load(file)
        piece, start = max(_PIECE, total // 10), self.state.rows
        blocks = [slice(at, min(at + _BLOCK, total)) for at in range(start, total, _BLOCK)]
        for block in progress(blocks):
            rows, codes = np.arange(block.start, block.stop), code(vectors[block])
            for part, mine in zip(_PARTS, (~boxed[block], boxed[block]), strict=True):
                if mine.any():
                    parts[part].add(rows[mine], codes[mine], threads=self.threads)
            if block.stop - self.state.rows >= piece or block.stop == total:
                self._save(parts, code.axes, block.stop)

    def _save(self, parts: dict[str, Any], axes: np.ndarray | None, rows: int) -> None:
        """Write the next version, then name it in ``graph.json``, then remove the one before."""
        version, files = self.state.version + 1, []
        self.folder.mkdir(exist_ok=True)
        for part, graph in parts.items():
            if len(graph):
                files.append(self.folder / f"{part}-{version}.usearch")
                graph.save(files[-1])
        if axes is not None:
            files.append(self.folder / f"axes-{version}.npy")
            np.save(files[-1], axes, allow_pickle=False)
        for file in files:
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        self.state = dataclasses.replace(
            self.state,
            rows=rows,
            sample=_sample(self.snapshot.vectors[:rows]),
            version=version,
            files={file.name: file.stat().st_size for file in files},
        )
        write_atomic(self.folder / _STATE, json.dumps(dataclasses.asdict(self.state)))
        for stray in self.folder.iterdir():
            if stray not in files and stray.name != _STATE:
                with suppress(OSError):  # Windows keeps a file that a reader has mapped
                    stray.unlink()


def _known_state(out: Path, ann: Ann | None) -> _State | None:
    """The state of the graph that is to be kept, from which it can go on; None: none is to be."""
    try:
        state = _read_state(out)
    except SearchIndexError:
        if ann is None:
            raise
        state = None
    if ann is None or (state is not None and state.ann == ann):
        return state
    return _State(ann.kind, ann.dims, -1, version=0 if state is None else state.version)


def _read_state(out: Path) -> _State | None:
    path = out / FOLDER / _STATE
    if not path.is_file():
        return None
    try:
        state = _State(**json.loads(path.read_text(encoding="utf-8")))
        known = state.format == _FORMAT and state.kind in KINDS
    except (OSError, ValueError, TypeError):
        known = False
    if not known:
        raise SearchIndexError(f"{path}: cannot be read; mmgem index --ann makes the graph again")
    return state


def _read_axes(folder: Path, state: _State) -> np.ndarray | None:
    file = state.file(folder, "axes")
    return None if file is None else np.load(file, allow_pickle=False)


def _sample(vectors: np.ndarray) -> str:
    rows = np.linspace(0, len(vectors) - 1, min(_SAMPLED, len(vectors))).astype(int)
    return hashlib.blake2b(vectors[rows].tobytes(), digest_size=16).hexdigest()
