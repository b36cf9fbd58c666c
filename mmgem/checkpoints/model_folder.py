"""The checkpoint folder: ``config.json``, ``preprocessor.json``, tokenizer files, ``model.safetensors``.

It needs nothing beside it and loads offline. A missing or unexpected tensor, or one of another shape, is an
error that lists the names; weights are never left random.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from mmgem.checkpoints.resolve import FORMAT, complete, is_model, read_config
from mmgem.checkpoints.rounded import stored_shapes
from mmgem.checkpoints.tensors import REMEDY, load_tensors, save_tensors
from mmgem.config import ModelConfig, Preprocessing, to_dict
from mmgem.config.legacy import current_tensors
from mmgem.data.tokens import Tokenizer
from mmgem.errors import CheckpointError, ConfigError
from mmgem.models.network import MMGEMNetwork
from mmgem.models.networks import make_network
from mmgem.models.packing_check import check_unknown
from mmgem.models.parameter_count import meta_model
from mmgem.utils.bounded_build import bounded_build, check_total
from mmgem.utils.checksums import verify_file, warn_of_edits, write_checksums
from mmgem.utils.disk import disk_errno
from mmgem.utils.files import read_again_if_replaced, replace_folder, write_atomic
from mmgem.utils.hf_config import last_line

OWN_CHECKSUM = ("calibration.safetensors",)
"""Files of a model folder that are written on their own, with a checksum inside."""


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
    check_tensors(module, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, where)
    for name, tensor in tensors.items():
        if tensor.is_floating_point() != expected[name].is_floating_point():
            raise CheckpointError(f"{where}: {name} is of {tensor.dtype}, not {expected[name].dtype}")
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(tensors[name])


def check_tensors(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Raise ``CheckpointError`` listing names and ``shapes`` that are not those of ``module``'s tensors."""
    expected = {name: tuple(tensor.shape) for name, tensor in own_tensors(module).items()}
    missing = sorted(expected.keys() - shapes.keys())
    unexpected = sorted(shapes.keys() - expected.keys())
    others = [
        f"{n} {shapes[n]} instead of {expected[n]}"
        for n in sorted(expected.keys() & shapes.keys())
        if expected[n] != shapes[n]
    ]
    problems = [
        f"{kind} {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", others))
        if names
    ]
    if problems:
        raise CheckpointError(f"{where}: tensors do not fit the model: {'; '.join(problems)}")


def write_model(
    folder: Path,
    network: MMGEMNetwork,
    tokenizer: Tokenizer,
    card: str,
    bits: dict[str, int] | None = None,
) -> None:
    """Write the files of a model into a folder, without their checksums. ``bits``: tensors to round (see
    ``storage``)."""
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
    """Let ``fill`` write a model, which gets checksums and then takes the place of ``folder`` as a whole.

    Raises ``UsageError`` if that is something else than a model, nothing, or an empty folder.
    """

    def fill_and_sum(new: Path) -> None:
        fill(new)
        write_checksums(new, OWN_CHECKSUM)

    replace_folder(folder.absolute(), fill_and_sum, is_model, "a model")


@read_again_if_replaced
def load_model(folder: Path) -> tuple[MMGEMNetwork, Tokenizer]:
    """Read a model folder into float32 on the CPU, in eval mode. Raises ``CheckpointError``.

    Files and their sizes are compared with the configuration before anything is allocated.
    """
    folder = complete(folder)
    config, prep = read_config(folder)
    weights = folder / "model.safetensors"
    if weights.is_file():
        verify_file(weights, REMEDY)
    shapes = current_tensors(stored_shapes(weights))
    sizes, where = [math.prod(shape) for shape in shapes.values()], str(folder / "config.json")
    with _named(folder):
        with bounded_build(sizes, where):
            outline = meta_model(config)
        check_total(outline, sizes, where)
        check_size(outline, prep)
        check_tensors(outline, shapes, str(weights))
        tokenizer = Tokenizer.from_folder(folder, prep)
        tokenizer.check_vocabulary(outline.llm.vocabulary, str(folder))
        network = build(config)
        load_into(network, current_tensors(load_tensors(weights, remedy=None)), str(weights))
        check_unknown(network.llm)
        network.eval()
        check_embeds(network)
    warn_of_edits(folder)
    return network, tokenizer


@contextlib.contextmanager
def _named(folder: Path) -> Iterator[None]:
    """Put the folder before what is wrong with its model, whichever code finds it."""
    try:
        yield
    except CheckpointError:
        raise
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except OSError as error:
        if disk_errno(error) is not None:
            raise
        raise CheckpointError(f"{folder}: {last_line(error)}") from error
    except Exception as error:  # of values that no class of transformers checks
        reason = f"{type(error).__name__}: {last_line(error)}"
        raise CheckpointError(f"{folder}: describes no model that can be built ({reason})") from error


@torch.no_grad()
def check_embeds(network: MMGEMNetwork) -> None:
    """Embed a text of two tokens. Raises ``ConfigError`` unless that gives finite numbers: fields like the
    base of the rotary positions have no shape to be compared with."""
    if not network.embeds:
        return
    vector = network.encode_text([torch.arange(2) % network.llm.vocabulary])
    if not vector.isfinite().all():
        raise ConfigError("model.llm.config: the embedding of a text has numbers that are not finite")


def build(config: ModelConfig) -> MMGEMNetwork:
    """An :class:`MMGEMNetwork` whose weights will all be overwritten: initialisation is skipped."""
    try:
        from transformers.initialization import no_init_weights as skip_init
    except ImportError:  # another transformers 5: initialising is only slower
        skip_init = contextlib.nullcontext
    with skip_init():
        return make_network(config)


def check_size(network: MMGEMNetwork, prep: Preprocessing) -> None:
    """Raise ``ConfigError`` if pictures are prepared at another size than the encoder's (boxes would shift),
    or at more scales that cannot be."""
    if not 1 <= network.encoder.size <= 4096:
        raise ConfigError(
            f"model.encoder.config.size: {network.encoder.size} is not a side of 1 to 4096 pixels"
        )
    for field in ("scales", "region_scales"):
        if wrong := [side for side in getattr(prep, field) if not 1 <= side <= 4096]:
            raise ConfigError(f"preprocessing.{field}: {wrong[0]} is not a side of 1 to 4096 pixels")
    if network.encoder.size != prep.size:
        raise ConfigError(
            f"preprocessing.size: {prep.size}, but the encoder reads {network.encoder.size} pixels a side; "
            "change it, or model.encoder.config.size"
        )
