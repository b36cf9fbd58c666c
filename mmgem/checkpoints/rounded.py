"""What files of weights hold in 4, 8 and 16 bits: how it is stored, by their headers, and some of it as
arrays. Needs no torch (:mod:`mmgem.checkpoints.tensors` is the same for all of a file, with it)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from mmgem.config.legacy import current_tensor
from mmgem.errors import CheckpointError
from mmgem.utils.model_files import parse_json_object
from mmgem.utils.safetensors_files import Header, read_header

GROUP_OF_4_BITS = 32
PARTS = ("q", "scale", "low")
"""Names that the tensors of a rounded one have behind its own."""

_DTYPES = {"F16": "<f2", "F32": "<f4", "U8": "u1"}


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of what :func:`~mmgem.checkpoints.tensors.load_tensors` makes of a file, of which only the
    header is read.

    Raises ``CheckpointError`` for a missing or damaged file, and where the parts of a rounded tensor do not
    fit together.
    """
    header = read_header(path)
    return _shapes(header, rounded_tensors(header, path))


def _shapes(header: Header, rounded: dict[str, tuple[int, tuple[int, ...]]]) -> dict[str, tuple[int, ...]]:
    parts = {f"{name}.{part}" for name in rounded for part in PARTS}
    shapes = {name: tensor.shape for name, tensor in header.tensors.items() if name not in parts}
    return shapes | {name: shape for name, (_, shape) in rounded.items()}


def rounded_tensors(header: Header, path: Path) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Bits and shape of each rounded tensor of a file, whose parts are there and fit it. Raises
    ``CheckpointError``."""
    where = f"{path}: damaged, or not in the safetensors format (quantized"
    entries = parse_json_object(header.metadata.get("quantized", "{}"), f"{where})")
    rounded = {}
    for name, entry in entries.items():
        bits, shape = (entry.get("bits"), entry.get("shape")) if isinstance(entry, dict) else (None, None)
        if type(bits) is not int or bits not in (4, 8) or not isinstance(shape, list) or not shape:
            raise CheckpointError(f"{where}.{name}: not bits, 4 or 8, and a shape)")
        if not all(type(side) is int and 1 <= side < 2**31 for side in shape):
            raise CheckpointError(f"{where}.{name}: shape: must be whole numbers from 1)")
        if missing := [part for part in PARTS if f"{name}.{part}" not in header.tensors]:
            raise CheckpointError(f"{path}: missing tensor '{name}.{missing[0]}'")
        if name in header.tensors:
            raise CheckpointError(f"{where}.{name}: is stored plain as well)")
        q, scale, low = (header.tensors[f"{name}.{part}"] for part in PARTS)
        groups = math.prod(shape[1:]) // GROUP_OF_4_BITS if bits == 4 else 1
        columns = groups * GROUP_OF_4_BITS // 2 if bits == 4 else math.prod(shape[1:])
        fits = (
            q.shape == (shape[0], columns)
            and scale.shape == low.shape == (shape[0], groups)
            and columns * 8 // bits == math.prod(shape[1:])
            and (q.dtype, scale.dtype, low.dtype) == ("U8", "F16", "F16")
        )
        if not fits:
            raise CheckpointError(f"{where}.{name}: its parts do not make {str(shape)[:60]} in {bits} bits)")
        rounded[name] = (bits, tuple(shape))
    return rounded


class StoredArrays:
    """The tensors of a file of weights by the names they have now, each read when it is asked for: what is
    not asked for costs nothing. ``shapes``: of all. Raises ``CheckpointError`` as :func:`stored_shapes`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = read_header(path)
        self._rounded = rounded_tensors(self._header, path)
        stored = _shapes(self._header, self._rounded)
        self._names = {current_tensor(name): name for name in stored}
        self.shapes = {current_tensor(name): shape for name, shape in stored.items()}
        self._file = np.memmap(path, np.uint8, "r")

    def read(self, name: str, rows: np.ndarray | None = None) -> np.ndarray:
        """A tensor, or ``rows`` ``(n,)`` int64 of it, in float32, to the bit as torch makes it of what is
        rounded. Raises ``CheckpointError`` for numbers of another type, or that are not finite."""
        stored = self._names[name]
        if stored not in self._rounded:
            array = self._plain(stored, rows).astype(np.float32)
        else:
            bits, shape = self._rounded[stored]
            q, scale, low = (self._plain(f"{stored}.{part}", rows) for part in PARTS)
            if bits == 4:
                q = np.stack([q & 15, q >> 4], -1).reshape(len(q), -1)
            groups = q.reshape(len(q), scale.shape[-1], -1).astype(np.float32)
            groups *= scale.astype(np.float32)[..., None]
            groups += low.astype(np.float32)[..., None]
            array = groups.reshape(len(q), *shape[1:])
        if not np.isfinite(array).all():
            raise CheckpointError(f"{self.path}: {name} has numbers that are not finite")
        return array

    def _plain(self, stored: str, rows: np.ndarray | None) -> np.ndarray:
        tensor = self._header.tensors[stored]
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{self.path}: {stored} is of {tensor.dtype}, not of float32")
        array = self._file[tensor.begin : tensor.end].view(_DTYPES[tensor.dtype]).reshape(tensor.shape)
        return np.asarray(array if rows is None else array[rows])
