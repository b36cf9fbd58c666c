"""Files of safetensors: their headers checked before anything is allocated, then their tensors.

The format: 8 bytes that count the header's, the header in JSON, the tensors without gaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmgem.errors import CheckpointError, why
from mmgem.utils.model_files import check_file, parse_json_object

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

MAX_HEADER_BYTES = 16 << 20
"""Of a header; a tensor takes a hundred bytes."""

_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16}
_BITS |= {"I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: ``dtype`` as the format names it, ``begin`` and ``end`` in bytes of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a file of safetensors holds; ``size``: bytes before the first tensor."""

    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    size: int


def read_header(path: Path, folder: Path | None = None) -> Header:
    """The header of a file of ``folder`` (its own if not given). Needs no torch.

    Raises ``CheckpointError`` unless every tensor has a known type, a shape that its bytes hold, and a place
    of its own, all of them together filling the file.
    """
    size = check_file(path, folder)
    damaged = f"{path}: damaged, or not in the safetensors format"
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            start = 8 + length
            if size < 8 or start > size:
                raise CheckpointError(f"{damaged} (a header of {length} bytes in a file of {size})")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(f"{damaged} (a header of {length} bytes, over {MAX_HEADER_BYTES})")
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {why(error)}") from error
    entries = parse_json_object(text, f"{damaged}: its header")
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{damaged} (its metadata are not all text)")
    tensors = {name: _tensor(entry, start, f"{damaged} ({name}") for name, entry in entries.items()}
    place = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != place:
            raise CheckpointError(f"{damaged} ({name}: overlaps another tensor, or leaves a gap)")
        place = tensor.end
    if place != size:
        raise CheckpointError(f"{damaged} (its tensors end at byte {place}, the file at {size})")
    return Header(tensors, metadata, start)


def _tensor(entry: Any, start: int, where: str) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise CheckpointError(f"{where}: not a dtype, a shape and offsets)")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise CheckpointError(f"{where}: unknown dtype {str(dtype)[:40]!r})")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2:
        raise CheckpointError(f"{where}: shape and offsets must be whole numbers from 0)")
    if len(shape) > 16 or math.prod(shape) * (_BITS[dtype] // 8) != offsets[1] - offsets[0]:
        raise CheckpointError(f"{where}: its bytes are not those of {dtype} {str(shape)[:60]})")
    return StoredTensor(dtype, tuple(shape), start + offsets[0], start + offsets[1])


def _sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def load_safetensors(path: Path, folder: Path | None = None) -> dict[str, Tensor]:
    """Every tensor of a file, as it is stored, on the CPU. Raises ``CheckpointError`` as :func:`read_header`
    does, and for numbers that are not finite."""
    tensors = _load(path, folder, "pt")
    check_finite(tensors, str(path))
    return tensors


def load_arrays(path: Path, folder: Path | None = None) -> dict[str, np.ndarray]:
    """:func:`load_safetensors` into numpy, without torch."""
    import numpy as np

    arrays = _load(path, folder, "numpy")
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"{path}: {name} has numbers that are not finite")
    return arrays


def _load(path: Path, folder: Path | None, framework: str) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    read_header(path, folder)
    try:
        with safe_open(str(path), framework=framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged, or not in the safetensors format ({error})") from error


def check_finite(tensors: dict[str, Tensor], where: str) -> None:
    """Raise ``CheckpointError`` naming the first of ``tensors`` with numbers that are not finite."""
    import torch

    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        plain = tensor.float() if tensor.element_size() == 1 else tensor
        if not all(torch.isfinite(end) for end in torch.aminmax(plain)):
            raise CheckpointError(f"{where}: {name} has numbers that are not finite")
