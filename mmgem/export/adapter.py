"""A model as what it has beside its base LLM: an adapter of some megabytes, and the way back.

LoRA (arXiv 2106.09685) changes a matrix W by a product of low rank, and training folds that into W. Here it
is taken apart again: ``W - W_base = up @ down`` by its singular values. A folder of these, with the tensors
that the base lacks, is for shipping alone; :func:`compose_model` makes a whole model of it and the base.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmgem.checkpoints.hub import read_card
from mmgem.checkpoints.initialize import source_folder
from mmgem.checkpoints.model_folder import load_into, load_model, own_tensors, save_model
from mmgem.checkpoints.resolve import ADAPTER, FORMAT, composed_folder, read_config
from mmgem.checkpoints.tensors import load_tensors, save_tensors
from mmgem.config import to_dict
from mmgem.data.tokens import Tokenizer
from mmgem.errors import CheckpointError, UsageError
from mmgem.models.networks import make_network
from mmgem.utils.checksums import write_checksums
from mmgem.utils.files import folder_bytes, replace_folder, write_atomic
from mmgem.utils.locks import lock_folder
from mmgem.utils.model_files import read_json_object
from mmgem.utils.pretrained import load_pretrained, local_folder, refuse_missing

ADAPTER_FILE = "adapter.safetensors"
_UP, _DOWN = ".up", ".down"
_LLM = "llm.lm."
_NOTHING = 1e-6  # of a matrix's norm: what is no change
_LOST = 1e-3  # of the change's norm: what a rank may leave out


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds what :func:`write_adapter` writes."""
    return (folder / ADAPTER).is_file()


def write_adapter(source: Path, base: str, out: Path, rank: int) -> int:
    """Write what the model folder ``source`` has beside the LLM ``base`` (a pulled name, a folder or a hub
    id) to ``out``; returns its size in bytes.

    Raises ``UsageError`` for a matrix that differs from the base's by more than ``rank`` (one that was not
    trained by LoRA), ``CheckpointError`` if one of the two cannot be read or they are of other shapes.
    """
    network, tokenizer = load_model(source)
    tensors = _base(base)[1]
    kept: dict[str, Tensor] = {}
    bits: dict[str, int] = {}
    for name, value in own_tensors(network).items():
        value = value.detach().float()
        old = tensors.get(name.removeprefix(_LLM)) if name.startswith(_LLM) else None
        if old is None:
            kept[name] = value
            continue
        if old.shape != value.shape:
            raise CheckpointError(f"{source}: {name} is {tuple(value.shape)}, in {base} {tuple(old.shape)}")
        change = value - old
        if change.norm() <= _NOTHING * old.norm():
            continue
        if value.ndim != 2:
            kept[name] = value
            continue
        kept[name + _UP], kept[name + _DOWN] = _factors(change, rank, f"{source}: {name}", base)
        bits |= {name + _UP: 16, name + _DOWN: 16}

    def fill(new: Path) -> None:
        about = {"format": FORMAT, "base": base, "sha256": _digest(tensors), "model": to_dict(network.config)}
        write_atomic(new / ADAPTER, json.dumps(about, indent=1) + "\n")
        write_atomic(new / "preprocessor.json", json.dumps(to_dict(tokenizer.prep), indent=1) + "\n")
        save_tensors(new / ADAPTER_FILE, kept, bits)
        write_atomic(new / "README.md", read_card(source))
        write_checksums(new)

    replace_folder(out.absolute(), fill, is_adapter, "an adapter")
    return folder_bytes(out)


def compose_model(adapter: Path, out: Path) -> int:
    """Write the model that an adapter and its base make to ``out``, the LLM in 16 bits; returns its size in
    bytes. Raises ``CheckpointError`` for an adapter that is damaged or of another base, ``DownloadError`` if
    the base cannot be had."""
    base = adapter_base(adapter)
    digest = read_json_object(adapter / ADAPTER).get("sha256")
    folder, tensors = _base(base)
    if _digest(tensors) != digest:
        raise CheckpointError(f"{adapter}: was made for other weights than those of {base} here")
    config, prep = read_config(adapter, ADAPTER)
    network = make_network(config)
    own = load_tensors(adapter / ADAPTER_FILE)
    known = own_tensors(network)
    values = {f"{_LLM}{name}": value for name, value in tensors.items() if f"{_LLM}{name}" in known}
    for name, value in own.items():
        if name.endswith(_UP):
            matrix = name.removesuffix(_UP)
            if matrix not in values or matrix + _DOWN not in own:
                raise CheckpointError(f"{adapter / ADAPTER_FILE}: {name} fits nothing")
            values[matrix] = values[matrix] + value @ own[matrix + _DOWN]
        elif not name.endswith(_DOWN):
            values[name] = value
    load_into(network, values, str(adapter / ADAPTER_FILE))
    bits = {name: 16 for name in values if name.startswith(_LLM) and values[name].ndim == 2}
    save_model(out, network, Tokenizer.from_folder(folder, prep), read_card(adapter), bits)
    return folder_bytes(out)


def adapter_base(adapter: Path) -> str:
    """The base LLM an adapter was made for. Raises ``CheckpointError`` if it does not say."""
    base = read_json_object(adapter / ADAPTER).get("base")
    if not isinstance(base, str):
        raise CheckpointError(f"{adapter / ADAPTER}: base is missing")
    return base


def pull_adapter(adapter: Path) -> Path:
    """The folder of the model that a packaged adapter and its base make, made if it is not in the cache.
    Raises as :func:`compose_model` does."""
    folder = composed_folder(adapter)
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with lock_folder(folder):
            if not folder.is_dir():
                compose_model(adapter, folder)
    return folder


def _base(name: str) -> tuple[Path, dict[str, Tensor]]:
    """The folder of a base LLM and its tensors by the names of transformers."""
    from transformers import AutoModelForCausalLM

    folder = local_folder(source_folder(name))
    lm: Any
    lm, found = load_pretrained(AutoModelForCausalLM, folder)
    refuse_missing(found, str(folder), spare="pooler")
    return folder, {name: value.detach() for name, value in own_tensors(lm).items()}


def _factors(change: Tensor, rank: int, what: str, base: str) -> tuple[Tensor, Tensor]:
    """``(rows, r)`` and ``(r, columns)`` whose product is ``change``, of the lowest rank up to ``rank``."""
    left, sizes, right = torch.linalg.svd(change, full_matrices=False)
    rest = torch.sqrt(torch.cumsum(sizes.flip(0).square(), 0)).flip(0)  # norm of what begins at each place
    enough = torch.nonzero(rest <= _LOST * rest[0])
    needed = int(enough[0]) if len(enough) else len(sizes)
    if needed > rank:
        raise UsageError(f"{what} differs from {base} by a rank of {needed}, above {rank}")
    roots = sizes[:needed].sqrt()
    return left[:, :needed] * roots, roots[:, None] * right[:needed]


def _digest(tensors: dict[str, Tensor]) -> str:
    """Of a base's weights, however they are stored."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.float().contiguous().numpy().tobytes())
    return digest.hexdigest()
