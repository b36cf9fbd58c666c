"""Which folder a model name means, what its config says, and a cheap fingerprint of it. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from mmgem.config import ModelConfig, Preprocessing, from_dict
from mmgem.config.legacy import current_config
from mmgem.errors import CheckpointError, ConfigError
from mmgem.utils.files import OLD

PACKAGED = Path(__file__).parent.parent / "weights"

FORMAT = 1  # of config.json
_SAMPLES, _SAMPLE = 16, 4096  # of a large tensor: how many, bytes of each


def resolve(name: str | os.PathLike[str]) -> Path:
    """Folder of a model: one that ships with the package, a path, or a hub id (fetched and cached).

    Raises ``CheckpointError`` if there is none.
    """
    text = os.fspath(name)
    packaged = PACKAGED / text
    if (packaged / "config.json").is_file():
        return packaged
    if (folder := complete(Path(text))).is_dir():
        if not (folder / "config.json").exists() and (folder / "model" / "config.json").is_file():
            raise CheckpointError(f"{text}: the folder of a training run; its model is {folder / 'model'}")
        return folder
    if text.count("/") == 1 and not text.startswith((".", "/", "~")):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            return Path(snapshot_download(text))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{text}: no such model folder, and not on the hub: {reason}") from error
    raise CheckpointError(f"{text}: no such model (a folder, a hub id, or {', '.join(packaged_models())})")


def lasting_name(name: str | os.PathLike[str]) -> str:
    """``name`` of a model so that it means the same in any working directory. Raises as :func:`resolve`."""
    folder = resolve(name)
    return str(folder.absolute()) if folder == complete(Path(name)) else os.fspath(name)


def complete(folder: Path) -> Path:
    """``folder``, or its last whole version where a kill came between the two renames that replace it."""
    current = folder.absolute()
    old = current.with_name(current.name + OLD)
    return old if old.is_dir() and not folder.exists() else folder


def packaged_models() -> list[str]:
    """Names of the models that ship with the package."""
    return sorted(p.parent.name for p in PACKAGED.glob("*/config.json"))


def read_config(folder: Path) -> tuple[ModelConfig, Preprocessing]:
    """What the model in a folder is and how its inputs are prepared. Raises ``CheckpointError``."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such model folder")
    raw = read_json(folder / "config.json")
    if raw.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder / 'config.json'}: format {raw.get('format')!r}, this version reads {FORMAT}"
        )
    try:
        config = from_dict(ModelConfig, current_config(raw.get("model"), "model")[0], "model")
        prep = current_config(read_json(folder / "preprocessor.json"), "preprocessing")[0]
        return config, from_dict(Preprocessing, prep, "preprocessor")
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model folder. Raises ``CheckpointError``."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON ({error})") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected an object")
    return data


def fingerprint(folder: Path) -> str:
    """A short hash that differs between models: configuration, tokenizer, and every tensor of the weights.

    Tensors of up to 64 KB are read whole, larger ones at 16 places: training shows in whichever tensor it
    changed, and a large model takes little longer than a small one. Needs no torch. Raises
    ``CheckpointError`` if there is no weight file, or it is damaged.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name in ("config.json", "preprocessor.json", "tokenizer.json"):
        path = folder / name
        digest.update(path.read_bytes() if path.is_file() else b"")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise CheckpointError(f"{weights}: missing")
    with weights.open("rb") as f:
        try:
            for start, length in _samples(f, weights.stat().st_size):
                f.seek(start)
                digest.update(f.read(length))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{weights}: damaged, or not in the safetensors format") from error
    return digest.hexdigest()


def _samples(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Start and length, in bytes, of what to read of a safetensors file: its header, samples of its tensors.

    Raises ``ValueError``, ``KeyError``, ``TypeError`` or ``AttributeError`` for another file.
    """
    # The format: 8 bytes that count the header's, the header in JSON, the tensors.
    start = 8 + int.from_bytes(file.read(8), "little")
    if start > size:
        raise ValueError
    header = json.loads(file.read(start - 8))
    yield 0, start
    for begin, end in sorted(
        entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"
    ):
        if not 0 <= begin <= end <= size - start:
            raise ValueError
        if end - begin <= _SAMPLES * _SAMPLE:
            yield start + begin, end - begin
        else:
            step = (end - begin - _SAMPLE) / (_SAMPLES - 1)
            yield from ((start + begin + int(step * i), _SAMPLE) for i in range(_SAMPLES))
