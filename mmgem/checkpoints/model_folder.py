"""The checkpoint folder: ``config.json``, ``preprocessor.json``, tokenizer files, ``model.safetensors``.

It needs nothing beside it and loads offline. A missing or unexpected tensor, or one of another shape, is an
error that lists the names; weights are never left random.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mmgem.checkpoints.resolve import FORMAT, complete, read_config, read_json
from mmgem.checkpoints.tensors import load_tensors, save_tensors
from mmgem.config import ModelConfig, Preprocessing, to_dict
from mmgem.config.legacy import current_tensors
from mmgem.data.tokens import Tokenizer
from mmgem.errors import CheckpointError, ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.models.packing_check import check_unknown
from mmgem.utils.files import replace_folder, write_atomic


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """State dict without second names of shared (tied) tensors."""
    name_of: dict[tuple[int, tuple[int, ...]], str] = {}
    tensors = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        key = (id(tensor), tuple(tensor.shape))
        if key not in name_of:
            name_of[key] = name
            tensors[name] = tensor
    return tensors


def load_into(module: nn.Module, tensors: dict[str, Tensor], where: str) -> None:
    """Copy ``tensors`` into ``module``. Raises ``CheckpointError`` listing names that do not fit."""
    expected = own_tensors(module)
    missing = sorted(expected.keys() - tensors.keys())
    unexpected = sorted(tensors.keys() - expected.keys())
    shapes = [
        f"{n} {tuple(tensors[n].shape)} instead of {tuple(expected[n].shape)}"
        for n in expected.keys() & tensors.keys()
        if expected[n].shape != tensors[n].shape
    ]
    problems = [
        f"{kind} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", shapes))
        if names
    ]
    if problems:
        raise CheckpointError(f"{where}: tensors do not fit the model: {'; '.join(problems)}")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(tensors[name])


def write_model(
    folder: Path,
    network: MMGEMNetwork,
    tokenizer: Tokenizer,
    card: str,
    bits: dict[str, int] | None = None,
) -> None:
    """Write the files of a model into a folder. ``bits``: tensors to round (see ``storage``)."""
    config = {"format": FORMAT, "model": to_dict(network.config)}
    write_atomic(folder / "config.json", json.dumps(config, indent=1) + "\n")
    write_atomic(folder / "preprocessor.json", json.dumps(to_dict(tokenizer.prep), indent=1) + "\n")
    tokenizer.hf.save_pretrained(str(folder))
    save_tensors(folder / "model.safetensors", own_tensors(network), bits)
    write_atomic(folder / "README.md", card)


def save_model(
    folder: Path,
    network: MMGEMNetwork,
    tokenizer: Tokenizer,
    card: str,
    bits: dict[str, int] | None = None,
    more: Callable[[Path], None] | None = None,
) -> None:
    """:func:`write_model` to a folder that is replaced as :func:`replace_model` does; ``more`` writes what
    else belongs into it."""

    def fill(new: Path) -> None:
        write_model(new, network, tokenizer, card, bits)
        if more is not None:
            more(new)

    replace_model(folder, fill)


def replace_model(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a model, which then takes the place of ``folder`` as a whole.

    Raises ``UsageError`` if that is something else than a model, nothing, or an empty folder.
    """
    replace_folder(folder.absolute(), fill, _is_model, "a model")


def _is_model(folder: Path) -> bool:
    try:
        return {"format", "model"} <= read_json(folder / "config.json").keys()
    except CheckpointError:
        return False


def load_model(folder: Path) -> tuple[MMGEMNetwork, Tokenizer]:
    """Read a model folder into float32 on the CPU, in eval mode. Raises ``CheckpointError``."""
    folder = complete(folder)
    config, prep = read_config(folder)
    try:
        network = build(config)
        check_size(network, prep)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    weights = folder / "model.safetensors"
    load_into(network, current_tensors(load_tensors(weights)), str(weights))
    try:
        check_unknown(network.llm)
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    return network.eval(), Tokenizer.from_folder(folder, prep)


def build(config: ModelConfig) -> MMGEMNetwork:
    """An :class:`MMGEMNetwork` whose weights will all be overwritten: initialisation is skipped."""
    try:
        from transformers.initialization import no_init_weights as skip_init
    except ImportError:  # another transformers 5: initialising is only slower
        skip_init = contextlib.nullcontext
    with skip_init():
        return MMGEMNetwork(config)


def check_size(network: MMGEMNetwork, prep: Preprocessing) -> None:
    """Raise ``ConfigError`` if pictures are prepared at another size than the encoder's (boxes would shift),
    or at more scales that cannot be."""
    for field in ("scales", "region_scales"):
        if wrong := [side for side in getattr(prep, field) if not 1 <= side <= 4096]:
            raise ConfigError(f"preprocessing.{field}: {wrong[0]} is not a side of 1 to 4096 pixels")
    if network.encoder.size != prep.size:
        raise ConfigError(
            f"preprocessing.size: {prep.size}, but the encoder reads {network.encoder.size} pixels a side; "
            "change it, or model.encoder.config.size"
        )
