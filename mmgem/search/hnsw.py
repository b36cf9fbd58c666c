"""An HNSW index (arXiv 1603.09320, by usearch) beside the vectors of a photo index, for fast search.

    IDX/ann/graph.json         which rows it has, and the names of its files
    IDX/ann/photos-V.usearch   the HNSW index of the whole photos, its V-th version
    IDX/ann/regions-V.usearch  that of the boxes, if the photo index has any
    IDX/ann/axes-V.npy         the PCA components for fewer dimensions, (D, dims) float32

Notable choices. It keeps quantized vectors (8 bits, signs only, fewer dimensions) and only proposes
candidates: scores come from the photo index's own float vectors. Its keys are row numbers, which mean
nothing without the manifest, so a photo that is gone cannot be found, and rows that it does not have yet are
for the search to compare. One that does not fit (rows numbered anew, other vectors, a damaged file) is not
used, and the next update makes it again; ``graph.json`` has the checksums of all. Files are never changed in
place and ``graph.json`` is replaced last: killed at any moment, the last whole version is there.

The first dimensions alone are enough for models trained for that (Matryoshka, arXiv 2205.13147), and for any
other after a rotation: cosines stay as they are, and the directions in which the index's own vectors are long
(eigenvectors of their second moments) come first.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
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
from mmgem.inference.pca import MAX_FIT_ROWS, pca_components
from mmgem.search.index_files import write_lock
from mmgem.search.index_store import IndexSnapshot, read_index
from mmgem.utils.checksums import file_crc32, sealed_json, unsealed_json
from mmgem.utils.files import create_file, sync_file, write_atomic

FOLDER = "ann"
_ROW_TYPES = ("photos", "regions")
_STATE_FILE = "graph.json"
_FORMAT = 1
_CONNECTIVITY, _EXPANSION_ADD = 16, 128  # usearch's defaults
_BATCH_ROWS = 2048  # rows encoded and added at once
_SAVE_EVERY = 100_000  # rows after which it is saved, or a tenth of all if that is more
_REFIT_GROWTH = 4  # times the rows that the PCA was fitted on, from which on it is fitted anew
_HASHED_ROWS = 64  # rows by which vectors are known again
_MIN_COVERAGE = 0.9  # of the rows; with fewer it is no help, the others being compared one by one
_OVERSAMPLING = 3  # candidates for each row that is wanted, if that is more than the quantization's own
_MIN_ROWS_A_CANDIDATE = 4  # with so many times the candidates it is faster than comparing all


def _int8(vectors: np.ndarray) -> np.ndarray:
    """Each row over all of 8 bits: cosines do not mind its length."""
    peak = np.abs(vectors).max(1, keepdims=True)
    return np.rint(vectors * (127 / np.maximum(peak, 1e-30))).astype(np.int8)


@dataclass(frozen=True, slots=True)
class Quantization:
    """A quantization of vectors: usearch's names of its dtype and metric, how float32 rows (n, d) become it,
    and the fewest candidates that make up for what it loses."""

    dtype: str
    metric: str
    encode: Callable[[np.ndarray], np.ndarray]
    candidates: int


QUANTIZATIONS = {
    "int8": Quantization("i8", "cos", _int8, 192),
    "float16": Quantization("f16", "cos", lambda vectors: vectors.astype(np.float16), 192),
    "float32": Quantization("f32", "cos", lambda vectors: vectors.astype(np.float32), 192),
    "binary": Quantization("b1", "hamming", lambda vectors: np.packbits(vectors > 0, axis=1), 512),
}
"""The quantizations by name."""


@dataclass(frozen=True, slots=True)
class HNSWConfig:
    """The HNSW index to keep: one of the :data:`QUANTIZATIONS`, and how many dimensions (0: all)."""

    quantization: str = "int8"
    dims: int = 0

    @classmethod
    def parse(cls, text: str) -> HNSWConfig:
        """``int8`` or ``int8:256``. Raises UsageError for anything else."""
        quantization, colon, dims = text.partition(":")
        if quantization not in QUANTIZATIONS or (colon and not (dims.isdecimal() and int(dims))):
            raise UsageError(
                f"no HNSW index {text!r}; there are {', '.join(QUANTIZATIONS)}, with dimensions: int8:256"
            )
        return cls(quantization, int(dims) if colon else 0)

    def __str__(self) -> str:
        return f"{self.quantization}:{self.dims}" if self.dims else self.quantization


@dataclass(frozen=True, slots=True)
class HNSWReport:
    """What an update did: the index's form, its rows, how many were added, its bytes on the disk."""

    config: HNSWConfig
    rows: int
    added: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _State:
    """``graph.json``: the HNSW index has the first ``rows`` rows of ``generation``, ``sample`` is a hash of
    some of them, the PCA was fitted on ``fitted`` of them; ``files`` are names and sizes in bytes,
    ``checksums`` their CRC-32."""

    kind: str
    dims: int
    generation: int
    rows: int = 0
    sample: str = ""
    fitted: int = 0
    version: int = 0
    files: dict[str, int] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    format: int = _FORMAT

    @property
    def config(self) -> HNSWConfig:
        return HNSWConfig(self.kind, self.dims)

    def file(self, folder: Path, prefix: str) -> Path | None:
        """The file of "photos", "regions" or "axes"; None if there is none."""
        matches = (folder / name for name in self.files if name.startswith(f"{prefix}-"))
        return next(matches, None)

    def mismatch(self, folder: Path, snapshot: IndexSnapshot) -> str | None:
        """Why this is no HNSW index of ``snapshot``, or None if it is one."""
        if self.generation != snapshot.generation:
            return "is of rows that have been numbered anew"
        if self.rows > len(snapshot.vectors) or self.sample != _hash_sample(snapshot.vectors[: self.rows]):
            return "is of other vectors"
        for name, size in self.files.items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != size:
                return f"is damaged ({name})"
            if name in self.checksums and file_crc32(folder / name) != self.checksums[name]:
                return f"cannot be read ({name}: its checksum does not match)"
        return None


class HNSWIndex:
    """The HNSW index of a photo index as it was when opened, memory-mapped: its first ``rows`` rows."""

    def __init__(self, folder: Path, state: _State, dim: int) -> None:
        """``dim``: D, of the index's vectors."""
        self.config, self.rows, self.bytes = state.config, state.rows, sum(state.files.values())
        self._quantizer = _Quantizer(state.config, _read_components(folder, state))
        self._indexes = {}
        for row_type in _ROW_TYPES:
            if (file := state.file(folder, row_type)) is not None:
                self._indexes[row_type] = self._quantizer.empty(dim)
                self._indexes[row_type].view(file)

    @classmethod
    def open(cls, out: Path, snapshot: IndexSnapshot) -> HNSWIndex | None:
        """That of the photo index ``out``, whose state is ``snapshot``; None if it keeps none.

        Raises SearchIndexError if it does not fit the index or lacks too much of it, UsageError if usearch is
        not installed.
        """
        state = _read_state(out)
        if state is None:
            return None
        require_usearch()
        if problem := state.mismatch(out / FOLDER, snapshot):
            raise SearchIndexError(f"{out}: its HNSW index {problem}; mmgem index makes it again")
        if state.rows < _MIN_COVERAGE * (total := len(snapshot.vectors)):
            raise SearchIndexError(
                f"{out}: its HNSW index is of {state.rows} of {total} vectors; mmgem index goes on"
            )
        try:
            return cls(out / FOLDER, state, snapshot.vectors.shape[1])
        except (OSError, RuntimeError, ValueError) as error:  # also replaced just now by a newer version
            raise SearchIndexError(f"{out}: its HNSW index cannot be read ({error})") from error

    def candidates(self, queries: np.ndarray, count: int, regions: bool = False) -> list[np.ndarray] | None:
        """Rows near to each of ``queries`` (q, D) float32, int64, in no order: enough that the nearest
        ``count`` are among them; of boxes if ``regions``, else of photos. None where so many are wanted that
        comparing all is as good. Rows that no photo points to any more may be among them.
        """
        index = self._indexes.get(_ROW_TYPES[regions])
        candidate_count = max(count * _OVERSAMPLING, QUANTIZATIONS[self.config.quantization].candidates)
        if index is None or candidate_count * _MIN_ROWS_A_CANDIDATE > len(index):
            return None
        codes = self._quantizer(queries)
        if len(queries) == 1:
            return [index.search(codes[0], candidate_count, threads=1).keys.astype(np.int64)]
        matches = index.search(codes, candidate_count)
        return [keys[:n].astype(np.int64) for keys, n in zip(matches.keys, matches.counts, strict=True)]


def update_hnsw_index(
    out: Path,
    config: HNSWConfig | None = None,
    *,
    threads: int = 0,
    progress: Callable[[Sequence[slice]], Iterable[slice]] = iter,
) -> HNSWReport | None:
    """Bring the HNSW index of the photo index ``out`` up to date with all its rows; None, and nothing done,
    for one without vectors, or without ``config`` and without an HNSW index.

    ``config``: which to keep from now on (None: as it is). ``threads`` that add rows, 0: one a core.
    ``progress`` is handed the slices of rows to add and gives them back one by one, showing a bar. Stopped,
    it goes on from where it was saved last. Raises UsageError if usearch is not installed or the
    vectors have fewer dimensions, SearchIndexError if the index is missing, damaged or being written.
    """
    began = time.perf_counter()
    with closing(write_lock(out)):
        state = _state_to_update(out, config)
        if state is None:
            return None
        require_usearch()
        snapshot = read_index(out)
        total, dim = snapshot.vectors.shape
        if not total:
            return None
        if state.dims > dim:
            raise UsageError(f"--hnsw {state.config}: the vectors of {out} have {dim} numbers")
        builder = _IndexBuilder(out / FOLDER, state, snapshot, threads)
        added = total - builder.state.rows
        if added:
            snapshot.verify()
            builder.run(progress)
    size = sum(builder.state.files.values())
    return HNSWReport(state.config, total, added, size, time.perf_counter() - began)


def hnsw_problem(out: Path, snapshot: IndexSnapshot) -> str | None:
    """What is wrong with the HNSW index of the photo index ``out``; None if nothing is, or it keeps none."""
    try:
        state = _read_state(out)
    except SearchIndexError as error:
        return str(error).partition(": ")[2].partition(";")[0]
    return None if state is None else state.mismatch(out / FOLDER, snapshot)


def drop_hnsw_index(out: Path) -> None:
    """Search the index ``out`` exactly from now on."""
    with closing(write_lock(out)):
        (out / FOLDER / _STATE_FILE).unlink(missing_ok=True)
        shutil.rmtree(out / FOLDER, ignore_errors=True)


def require_usearch() -> Any:
    """The module, or a UsageError that says how to get it."""
    try:
        from usearch import index
    except ImportError as error:
        raise UsageError("an HNSW index (--hnsw) needs usearch: pip install 'mmgem[index]'") from error
    return index


class _Quantizer:
    """Vectors as the HNSW index has them."""

    def __init__(self, config: HNSWConfig, components: np.ndarray | None) -> None:
        self.quantization, self.components = QUANTIZATIONS[config.quantization], components

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        return self.quantization.encode(vectors if self.components is None else vectors @ self.components)

    def empty(self, dim: int) -> Any:
        """An HNSW index of nothing yet, for vectors of ``dim`` numbers."""
        width = dim if self.components is None else self.components.shape[1]
        return require_usearch().Index(
            ndim=-width % 8 + width if self.quantization.dtype == "b1" else width,
            metric=self.quantization.metric,
            dtype=self.quantization.dtype,
            connectivity=_CONNECTIVITY,
            expansion_add=_EXPANSION_ADD,
            enable_key_lookups=False,
        )


class _IndexBuilder:
    """The HNSW index in memory, while rows are added; ``state`` is that of the last version saved."""

    def __init__(self, folder: Path, state: _State, snapshot: IndexSnapshot, threads: int) -> None:
        self.folder, self.snapshot, self.threads = folder, snapshot, threads
        total = len(snapshot.vectors)
        outgrown = state.dims and state.fitted < min(MAX_FIT_ROWS, total // _REFIT_GROWTH)
        if state.mismatch(folder, snapshot) or outgrown:
            state = _State(state.kind, state.dims, snapshot.generation, version=state.version)
        self.state = state

    def run(self, progress: Callable[[Sequence[slice]], Iterable[slice]]) -> None:
        """Add the rows that are missing, and save now and then."""
        vectors, total = self.snapshot.vectors, len(self.snapshot.vectors)
        is_region = self.snapshot.is_region if self.snapshot.is_region is not None else np.zeros(total, bool)
        if self.state.rows:
            quantizer = _Quantizer(self.state.config, _read_components(self.folder, self.state))
        else:
            quantizer = _Quantizer(
                self.state.config, pca_components(vectors, self.state.dims) if self.state.dims else None
            )
            self.state = dataclasses.replace(self.state, fitted=min(MAX_FIT_ROWS, total))
            self._save({}, None, 0)  # what is wanted is known from now on
        indexes = {row_type: quantizer.empty(vectors.shape[1]) for row_type in _ROW_TYPES}
        for row_type, index in indexes.items():
            if (file := self.state.file(self.folder, row_type)) is not None:
                index.load(file)
        save_interval, start = max(_SAVE_EVERY, total // 10), self.state.rows
        blocks = [slice(at, min(at + _BATCH_ROWS, total)) for at in range(start, total, _BATCH_ROWS)]
        for block in progress(blocks):
            rows, codes = np.arange(block.start, block.stop), quantizer(vectors[block])
            for row_type, selected in zip(_ROW_TYPES, (~is_region[block], is_region[block]), strict=True):
                if selected.any():
                    indexes[row_type].add(rows[selected], codes[selected], threads=self.threads)
            if block.stop - self.state.rows >= save_interval or block.stop == total:
                self._save(indexes, quantizer.components, block.stop)

    def _save(self, indexes: dict[str, Any], components: np.ndarray | None, rows: int) -> None:
        """Write the next version, then name it in ``graph.json``, then remove the one before."""
        version, files = self.state.version + 1, []
        self.folder.mkdir(exist_ok=True)
        for row_type, index in indexes.items():
            if len(index):
                files.append(self.folder / f"{row_type}-{version}.usearch")
                _save_index(index, files[-1])
        if components is not None:
            files.append(self.folder / f"axes-{version}.npy")
            files[-1].unlink(missing_ok=True)
            with create_file(files[-1]) as axes:
                np.save(axes, components, allow_pickle=False)
        for file in files:
            sync_file(file)
        self.state = dataclasses.replace(
            self.state,
            rows=rows,
            sample=_hash_sample(self.snapshot.vectors[:rows]),
            version=version,
            files={file.name: file.stat().st_size for file in files},
            checksums={file.name: file_crc32(file) for file in files},
        )
        write_atomic(self.folder / _STATE_FILE, sealed_json(dataclasses.asdict(self.state)))
        for stray in self.folder.iterdir():
            if stray not in files and stray.name != _STATE_FILE:
                with suppress(OSError):  # Windows keeps a file that a reader has mapped
                    stray.unlink()


def _save_index(index: Any, file: Path) -> None:
    try:
        index.save(file)
    except RuntimeError as error:
        raise SearchIndexError(f"{file}: {error}") from error
    if file.stat().st_size != index.serialized_length:  # closing it failed, which usearch does not say
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def _state_to_update(out: Path, config: HNSWConfig | None) -> _State | None:
    """The state of the HNSW index that is to be kept, from which it can go on; None: none is to be."""
    try:
        state = _read_state(out)
    except SearchIndexError:
        if config is None:
            raise
        state = None
    if config is None or (state is not None and state.config == config):
        return state
    return _State(config.quantization, config.dims, -1, version=0 if state is None else state.version)


def _read_state(out: Path) -> _State | None:
    path = out / FOLDER / _STATE_FILE
    if not path.is_file():
        return None
    try:
        state = _State(**unsealed_json(path.read_text(encoding="utf-8"), "checksums"))
        readable = state.format == _FORMAT and state.kind in QUANTIZATIONS
    except (OSError, ValueError, TypeError):
        readable = False
    if not readable:
        raise SearchIndexError(f"{path}: cannot be read; mmgem index --hnsw makes it again")
    return state


def _read_components(folder: Path, state: _State) -> np.ndarray | None:
    file = state.file(folder, "axes")
    return None if file is None else np.load(file, allow_pickle=False)


def _hash_sample(vectors: np.ndarray) -> str:
    rows = np.linspace(0, len(vectors) - 1, min(_HASHED_ROWS, len(vectors))).astype(int)
    return hashlib.blake2b(vectors[rows].tobytes(), digest_size=16).hexdigest()
