"""Tensors on disk: safetensors, with optional 8- or 4-bit values for weights that ship in a package.

A quantised matrix is cut into groups along its rows; each group keeps float16 ``scale`` and ``low`` and
its values as ``low + q * scale``. What is rounded is listed in the file's metadata; loading returns float32.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from mmgem.checkpoints.rounded import GROUP_OF_4_BITS, PARTS, rounded_tensors
from mmgem.utils.checksums import verify_file
from mmgem.utils.safetensors_files import load_safetensors, read_header

REMEDY = "copy or make its folder again"


def quantize(weight: Tensor, bits: int) -> dict[str, Tensor]:
    """Round a matrix ``(rows, columns)`` float to 8 bits a value, a group a row, or to 4 bits, a group 32
    columns (of which there must be a multiple).

    Returns ``q`` uint8 (two 4-bit values a byte) and ``scale``, ``low`` float16 ``(rows, groups)``.
    """
    width = GROUP_OF_4_BITS if bits == 4 else weight.shape[-1]
    groups = weight.float().unflatten(-1, (-1, width))
    low = groups.amin(-1).half()
    scale = ((groups.amax(-1) - low.float()) / (2**bits - 1)).clamp(min=1e-7).half()
    q = ((groups - low.float()[..., None]) / scale.float()[..., None]).round().clamp(0, 2**bits - 1)
    q = q.to(torch.uint8).flatten(-2)
    if bits == 4:
        q = q[..., 0::2] | (q[..., 1::2] << 4)
    return {"q": q.contiguous(), "scale": scale, "low": low}


def dequantize(parts: dict[str, Tensor], bits: int) -> Tensor:
    """Inverse of :func:`quantize`: ``(rows, columns)`` float32."""
    q = parts["q"]
    if bits == 4:
        q = torch.stack([q & 15, q >> 4], -1).flatten(-2)
    groups = q.float().unflatten(-1, (parts["scale"].shape[-1], -1))
    return (parts["low"].float()[..., None] + groups * parts["scale"].float()[..., None]).flatten(-2)


def save_tensors(path: Path, tensors: dict[str, Tensor], bits: dict[str, int] | None = None) -> None:
    """Write ``tensors``; those in ``bits`` in 16 bits, or 8 or 4 if their shape allows."""
    stored: dict[str, Tensor] = {}
    rounded: dict[str, dict[str, object]] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        tensor_bits = (bits or {}).get(name)
        if tensor_bits is None:
            stored[name] = tensor.contiguous()
        elif tensor.ndim >= 2 and (
            tensor_bits == 8 or (tensor_bits == 4 and tensor[0].numel() % GROUP_OF_4_BITS == 0)
        ):
            for part, value in quantize(tensor.reshape(len(tensor), -1), tensor_bits).items():
                stored[f"{name}.{part}"] = value
            rounded[name] = {"bits": tensor_bits, "shape": list(tensor.shape)}
        else:
            stored[name] = tensor.half().contiguous()
    _separate_storages(stored)
    # One entry only: the library writes several in random order, and equal weights shall be equal files.
    save_file(stored, str(path), metadata={"quantized": json.dumps(rounded)} if rounded else {"format": "pt"})
    path.chmod(0o666 & ~_umask())  # the library leaves it readable by its owner alone


def _separate_storages(tensors: dict[str, Tensor]) -> None:
    """Copy those that lie in the memory of others, which the library refuses to write."""
    end = 0
    for name in sorted(tensors, key=lambda name: tensors[name].data_ptr()):
        tensor = tensors[name]
        start = tensor.data_ptr()
        if start < end:
            tensors[name] = tensor.clone()
        end = max(end, start + tensor.nbytes)


def _umask() -> int:
    """The process's mask of new files' permissions; there is no way to read it but to set it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def load_tensors(path: Path, remedy: str | None = REMEDY) -> dict[str, Tensor]:
    """Read a file of :func:`save_tensors` (or any safetensors file). Rounded weights come back float32.

    Raises ``CheckpointError`` for a missing or damaged file, also by the checksums of its folder if it has
    some (``remedy``: what to do then; None: they were compared before), and for numbers that are not finite.
    """
    if remedy is not None and path.is_file():
        verify_file(path, remedy)
    rounded = rounded_tensors(read_header(path), path)
    tensors = load_safetensors(path)
    for name, (bits, shape) in rounded.items():
        parts = {part: tensors.pop(f"{name}.{part}") for part in PARTS}
        tensors[name] = dequantize(parts, bits).reshape(shape)
    return {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}
